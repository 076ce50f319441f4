"""Speed of copies: `python tests/benchmark/editing.py`; --model and --drafter name another pair.

Twelve prompts hold a file of about 400 tokens and ask for it with a change; others ask for what
stands nowhere. Each is decoded plainly, by the drafter alone, by copies alone and by both. All
sides take turns in one process, in an order that changes, and must write the same tokens. The
number of a side is its speed over the drafter's alone, of medians over repeats. A long run can be
made in pieces, `--prompts 0:4 --results FILE`, then 4:8, which the last one's summary covers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import dspark_mlx
from dspark_mlx.decoder import Decoder
from dspark_mlx.engine.state import Engine
from dspark_mlx.schedulers.copies import CopyScheduler
from dspark_mlx.system.files import DATA
from dspark_mlx.types import Round

EDITING = Path(__file__).parents[1] / "data" / "editing_prompts.jsonl"
OTHERS = DATA / "bench_prompts.jsonl"
SIDES = ("plain", "drafter", "lookup", "both")

Row = dict[str, Any]
"""What was measured of a prompt: tokens, seconds a token by side, tokens copied, equality."""


def prompts(path: Path, of: slice) -> dict[str, str]:
    """Some prompts of a file of JSON lines, by names that tell them apart."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    named = {f"{i} {d.get('name', d['task'])}": d["prompt"] for i, d in enumerate(lines)}
    return dict(list(named.items())[of])


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


def timed(
    decode: Callable, ids: list[int], clock: Callable[[], float], **settings
) -> tuple[float, list[Round]]:
    """Seconds a token after the first one, and the rounds."""
    rounds: list[Round] = []
    started = 0.0
    for done in decode(ids, **settings):
        started = started or clock()
        rounds.append(done)
    seconds = clock() - started
    return seconds / (sum(len(done.tokens) for done in rounds) - 1), rounds


def measure(
    decoder: Decoder, text: str, turn: int, asked: Sequence[str], repeats: int, settings: dict
) -> Row:
    """Decode a prompt by each side, `repeats` times, in an order that changes.

    `settings` are those of `rounds`, and `clock`, which counts seconds.
    """
    decoders = sides(decoder)
    ids = decoder.encode([{"role": "user", "content": text}])
    taken: dict[str, list[float]] = {side: [] for side in asked}
    last: dict[str, list[Round]] = {}
    for repeat in range(repeats):
        for i in range(len(asked)):
            side = asked[(i + turn + repeat) % len(asked)]
            seconds, last[side] = timed(decoders[side], ids, **settings)
            taken[side].append(seconds)
    tokens = {side: [t for done in last[side] for t in done.tokens] for side in asked}
    copies = [done for done in last[asked[-1]] if done.proposer == "lookup"]
    return {
        "tokens": len(tokens[asked[0]]),
        "seconds": {side: median(taken[side]) for side in asked},
        "copied": sum(done.accepted for done in copies),
        "equal": all(found == tokens[asked[0]] for found in tokens.values()),
    }


def show(name: str, row: Row) -> None:
    """Print a prompt's tokens, each side's speed, and its speed over the drafter's alone."""
    per = row["seconds"]
    speeds = "".join(f"{1 / seconds:>10.1f}" for seconds in per.values())
    ratio = per["drafter"] / list(per.values())[-1]
    parts = f"{ratio:.2f}x, {row['copied']} copied", "equal" if row["equal"] else "NOT EQUAL"
    print(f"{name:<18}{row['tokens']:>7}{speeds}  {', '.join(parts)}", flush=True)


def summary(rows: Sequence[Row]) -> str:
    """Each side's speed over the drafter's alone: of the median and of the worst prompt, in all."""
    lines = []
    for side in rows[0]["seconds"]:
        ratios = [row["seconds"]["drafter"] / row["seconds"][side] for row in rows]
        alone, total = (
            sum(row["tokens"] * row["seconds"][each] for row in rows) for each in ("drafter", side)
        )
        found = f"median {median(ratios):.3f}, least {min(ratios):.3f}, total {alone / total:.3f}"
        lines.append(f"{side:>8} over the drafter alone, {len(rows)} prompts: {found}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model")
    add("--drafter")
    add("--max-tokens", "-m", type=int, default=400)
    add("--repeats", type=int, default=3)
    add("--prompts", default=":", metavar="A:B", help="those of each kind from A to before B")
    add("--sides", nargs="+", choices=SIDES, default=SIDES, help="the last one's copies are shown")
    add("--temp", type=float, default=0.0)
    add("--cpu-time", action="store_true", help="count the CPU's time, where others use it too")
    add("--only", choices=("editing", "others"))
    add(
        "--results", type=Path, help="keep what is measured here; the summary is of all that it has"
    )
    args = parser.parse_args()
    asked = [side for side in SIDES if side in {"drafter", *args.sides}]
    start, _, end = args.prompts.partition(":")
    decoder = dspark_mlx.load(args.model, args.drafter)
    settings: dict[str, Any] = {"max_tokens": args.max_tokens, "temperature": args.temp}
    settings["clock"] = process_time if args.cpu_time else perf_counter
    if args.temp:
        # Draws by position: all sides write the same text.
        settings |= {"seed": 0, "reproducible": True}
    kept = args.results and args.results.exists() and json.loads(args.results.read_text())
    results: dict[str, dict[str, Row]] = kept or {}
    for kind, path in (("editing", EDITING), ("others", OTHERS)):
        if args.only not in (None, kind):
            continue
        print(f"{kind:<18}{'tokens':>7}" + "".join(f"{side:>10}" for side in asked))
        found = results.setdefault(kind, {})
        texts = prompts(path, slice(int(start or 0), int(end) if end else None))
        for turn, (name, text) in enumerate(texts.items()):
            found[name] = measure(decoder, text, turn, asked, args.repeats, settings)
            show(name, found[name])
            if args.results:
                args.results.write_text(json.dumps(results))
        print(summary(list(found.values())), flush=True)


if __name__ == "__main__":
    main()
