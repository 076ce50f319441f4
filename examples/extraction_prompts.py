"""Prompts of one narrow workload, for fitting a drafter to it: orders to be extracted as JSON.

    python examples/extraction_prompts.py --to prompts

writes `train.jsonl` to learn from and `held-out/extraction.jsonl` to judge on; no name, city or
item is in both.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

FIRST = "Mara Jonas Aiko Pedro Lena Omar Chloe Ravi Ines Tomas Greta Idris Wanda Felix Noor Kwame"
LAST = "Lindt Okafor Tanaka Silva Brandt Haddad Moreau Patel Costa Novak Weiss Amara Kowal Reyes"
CITIES = "Bergen Lagos Osaka Porto Graz Amman Lyon Pune Faro Brno Ulm Accra Lodz Cusco Turku Malmo"
ITEMS = "lamp kettle jacket bicycle camera blanket drill guitar helmet mirror printer rug saw tent"
COLOURS = "red blue green black white grey yellow brown"
FORMS = (
    "{name} from {city} ordered {count} {colour} {item}s on {date} for ${price}.",
    "On {date}, {count} {colour} {item}s were sold to {name} ({city}) at ${price}.",
    "Order of {date}: {count} x {colour} {item}, ${price}, to be sent to {name} in {city}.",
)
MONTHS = "March April May June July"
TASK = "Extract the order as JSON with the keys name, city, item, colour, count, price and date."


def prompts(count: int, part: slice, seed: int) -> list[str]:
    """Prompts made of a part of every list of words."""
    rng = random.Random(seed)
    first, last, cities, items = (words.split()[part] for words in (FIRST, LAST, CITIES, ITEMS))
    texts = []
    for _ in range(count):
        values = {
            "name": f"{rng.choice(first)} {rng.choice(last)}",
            "city": rng.choice(cities),
            "item": rng.choice(items),
            "colour": rng.choice(COLOURS.split()),
            "count": rng.randint(2, 60),
            "price": rng.randint(20, 900),
            "date": f"{rng.randint(1, 28)} {rng.choice(MONTHS.split())} 2026",
        }
        texts.append(f"{TASK}\n\n{rng.choice(FORMS).format(**values)}")
    return texts


def write(path: Path, texts: list[str]) -> None:
    """JSON lines with "turns", which train and evaluate read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"turns": [text]}) + "\n" for text in texts))


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR")
    to = parser.parse_args().to
    write(to / "train.jsonl", prompts(300, slice(0, -4), 0))
    write(to / "held-out" / "extraction.jsonl", prompts(12, slice(-4, None), 1))


if __name__ == "__main__":
    main()
