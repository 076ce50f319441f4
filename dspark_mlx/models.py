"""python -m dspark_mlx.models: lists published pairs, and which of their drafters are on disk."""

from __future__ import annotations

import dataclasses
import json

from huggingface_hub import try_to_load_from_cache

from .pairs import builtin
from .pairs.registry import published_pairs
from .system.process import program
from .terminal import command


def main(argv: list[str] | None) -> int:
    """Run the command: print the table or JSON; returns the exit status."""
    parser = command.Parser(
        prog=program("models"),
        description="List published pairs of targets and drafters, and which drafters are on disk.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a pair")
    args = parser.parse_args(argv)
    pairs = published_pairs()
    here = {pair.drafter: on_disk(pair.drafter) for pair in pairs}
    if args.json:
        for pair in pairs:
            print(json.dumps(dataclasses.asdict(pair) | {"on_disk": here[pair.drafter]}))
        return 0
    rows = [("target, any quantisation", "drafter", "packaging", "licence", "known", "on disk")]
    rows += [(f"built in: {builtin.NAME}", "shipped here", "canonical", "MIT", "-", "yes")]
    rows += [
        (
            ", ".join(p.targets),
            p.drafter,
            p.packaging,
            p.licence or "unknown",
            p.certainty,
            "yes" if here[p.drafter] else "no",
        )
        for p in pairs
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)))
    print("What is only reported is fetched when it is named (--drafter), and not before.")
    return 0


def on_disk(drafter: str) -> bool:
    """Whether huggingface-hub's cache has the config.json of a drafter."""
    name, _, revision = drafter.partition("@")
    return isinstance(try_to_load_from_cache(name, "config.json", revision=revision or None), str)


if __name__ == "__main__":
    command.run(main)
