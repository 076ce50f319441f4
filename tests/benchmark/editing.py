"""Speed of copies: `python tests/benchmark/editing.py`; --model and --drafter name another pair.

Twelve prompts hold a file of about 400 tokens and ask for it with a change; others ask for what
stands nowhere. Each is decoded plainly, by the drafter alone, by copies alone and by both. All
sides take turns in one process, in an order that changes. The number of a side is the median over
prompts of its speed over the drafter's alone, of medians over repeats.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import dspark_mlx
from dspark_mlx.decoder import Decoder
from dspark_mlx.engine.state import Engine
from dspark_mlx.schedulers.copies import CopyScheduler
from dspark_mlx.system.files import DATA
from dspark_mlx.types import Round

EDITING = Path(__file__).parents[1] / "data" / "editing_prompts.jsonl"
OTHERS = DATA / "bench_prompts.jsonl"
SIDES = ("plain", "drafter", "lookup", "both")


def prompts(path: Path, count: int) -> list[str]:
    """The first prompts of a file of JSON lines."""
    return [json.loads(line)["prompt"] for line in path.read_text().splitlines()][:count]


def sides(decoder: Decoder) -> dict[str, Callable]:
    """For each side a function from token ids and settings to a generator of rounds."""
    engine = decoder.engine
    assert engine.profile is not None
    copies = CopyScheduler(engine.profile)
    alone = decoder.with_engine(Engine(engine.target, None, copies, engine.profile), None)

    def drafter(ids, **settings):
        return decoder.rounds(ids, copies=False, **settings)

    return {
        "plain": decoder.plain().rounds,
        "drafter": drafter,
        "lookup": alone.rounds,
        "both": decoder.rounds,
    }


def timed(decode: Callable, ids: list[int], **settings) -> tuple[float, list[Round]]:
    """Tokens per second after the first one, and the rounds."""
    rounds: list[Round] = []
    started = 0.0
    for done in decode(ids, **settings):
        started = started or perf_counter()
        rounds.append(done)
    count = sum(len(done.tokens) for done in rounds) - 1
    return count / (perf_counter() - started), rounds


def measure(decoder: Decoder, texts: list[str], repeats: int, settings: dict) -> None:
    """Print a table of one kind of prompts."""
    decoders = sides(decoder)
    ratios: dict[str, list[float]] = {side: [] for side in SIDES}
    print(f"{'tokens':>8}" + "".join(f"{side:>10}" for side in SIDES) + "  copied, equal tokens")
    for number, text in enumerate(texts):
        ids = decoder.encode([{"role": "user", "content": text}])
        speeds: dict[str, list[float]] = {side: [] for side in SIDES}
        last: dict[str, list[Round]] = {}
        for repeat in range(repeats):
            for i in range(len(SIDES)):
                side = SIDES[(i + number + repeat) % len(SIDES)]
                speed, last[side] = timed(decoders[side], ids, **settings)
                speeds[side].append(speed)
        found = {side: median(speeds[side]) for side in SIDES}
        for side in SIDES:
            ratios[side].append(found[side] / found["drafter"])
        tokens = {side: [t for done in last[side] for t in done.tokens] for side in SIDES}
        copied = sum(done.accepted for done in last["both"] if done.proposer == "lookup")
        equal = all(tokens[side] == tokens["plain"] for side in SIDES)
        row = "".join(f"{found[side]:>10.1f}" for side in SIDES)
        print(f"{len(tokens['plain']):>8}{row}  {copied}, {equal}", flush=True)
    over = {side: round(median(ratios[side]), 3) for side in SIDES}
    print("over the drafter alone, median:", json.dumps(over))
    least = {side: round(min(ratios[side]), 3) for side in SIDES}
    print("over the drafter alone, least:", json.dumps(least), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--drafter")
    parser.add_argument("--max-tokens", "-m", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=12, help="so many of each kind at most")
    parser.add_argument("--temp", type=float, default=0.0)
    parser.add_argument("--only", choices=("editing", "others"))
    args = parser.parse_args()
    decoder = dspark_mlx.load(args.model, args.drafter)
    settings = {"max_tokens": args.max_tokens, "temperature": args.temp}
    if args.temp:
        # Draws by position: all sides write the same text.
        settings |= {"seed": 0, "reproducible": True}
    for kind, path in (("editing", EDITING), ("others", OTHERS)):
        if args.only in (None, kind):
            print(f"{kind}:")
            measure(decoder, prompts(path, args.prompts), args.repeats, settings)


if __name__ == "__main__":
    main()
