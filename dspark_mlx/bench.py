"""python -m dspark_mlx.bench: speculative against plain mlx-lm decoding, both in one run."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm

from . import cli
from .compare import first_difference, plain_run
from .decoder import Decoder
from .errors import InputError
from .overhead import round_overhead
from .prompts import read_prompts
from .replay_report import SHIPPED
from .replay_report import report as replay_report
from .types import Round

SAMPLE = Path(__file__).parent / "data" / "bench_prompts.jsonl"


@dataclass(frozen=True)
class Row:
    """One prompt's result; seconds are medians over the repeats, without the prefill.

    Attributes:
        task: its group. prompt_tokens, tokens: of the prompt, generated.
        plain_seconds, speculative_seconds: decoding time after the first token.
        accepted_length: tokens per round. host_ms: Python per round beyond the target's forward.
        equal: True when both sides gave the same tokens.
        margin: the target's top-two logit margin at the first difference; None when equal.
    """

    task: str
    prompt_tokens: int
    tokens: int
    plain_seconds: float
    speculative_seconds: float
    accepted_length: float
    host_ms: float
    equal: bool
    margin: float | None

    @property
    def speedup(self) -> float:
        """Plain time over speculative time."""
        return self.plain_seconds / self.speculative_seconds


def main(argv: list[str] | None) -> int:
    """Parse, measure, print a table and one last line of JSON."""
    args = _parser().parse_args(argv)
    if args.replay:
        profiles = args.profile or [path.stem for path in sorted(SHIPPED.glob("*.json"))]
        print(replay_report(args.replay, profiles, args.calibration, not args.sampling))
        return 0
    prompts = read_prompts(args.prompts)
    overhead = round_overhead(layers=5)
    decoder = cli.load_decoder(args)
    if decoder.engine.drafter is None:
        raise InputError("--no-drafter", "nothing to compare", "a drafter")
    ids = [(p["task"], decoder.encode([{"role": "user", "content": p["prompt"]}])) for p in prompts]
    _measure(decoder, *ids[0], min(args.max_tokens, 16), 1)  # warms both sides up
    bar = tqdm(ids, desc="Measuring", unit="prompt", leave=False)
    rows = [_measure(decoder, task, prompt, args.max_tokens, args.repeats) for task, prompt in bar]
    _print_table(rows)
    print(f"host time of a round with a 5-layer drafter: {overhead:.2f} ms of Python")
    print(json.dumps(_summary(rows, overhead, args)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dspark_mlx.bench", description=__doc__)
    cli.add_model_flags(parser)
    add = parser.add_argument
    add("--max-tokens", "-m", type=int, default=96, help="tokens per prompt (default: 96)")
    add("--repeats", type=int, default=3, help="runs of each side per prompt (default: 3)")
    add(
        "--prompts",
        type=Path,
        default=SAMPLE,
        help='JSON lines with "task" and "prompt" (default: two each of four benchmarks)',
    )
    replay = parser.add_argument_group("replay, which needs no model")
    add = replay.add_argument
    add(
        "--replay",
        type=Path,
        metavar="ROUNDS.jsonl",
        help="judge every scheduler on rounds that `calibrate --record` wrote",
    )
    add(
        "--profile",
        action="append",
        metavar="PROFILE",
        help="speed profile to replay on: a file that `profile --export` wrote, or a shipped one's "
        "name; repeatable (default: all shipped ones)",
    )
    add(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="drafter folder whose calibration is used (default: one fitted on the rounds)",
    )
    add("--sampling", action="store_true", help="show schedulers only what sampling lets them see")
    return parser


def _measure(
    decoder: Decoder, task: str, prompt: Sequence[int], max_tokens: int, repeats: int
) -> Row:
    target, stops = decoder.engine.target, decoder.stop_tokens
    plain_seconds, fast_seconds, rounds = [], [], list[Round]()
    # The sides alternate, so that both see the same noise of the machine.
    for _ in range(repeats):
        plain = plain_run(target, prompt, max_tokens, stops)
        plain_seconds.append(plain.seconds)
        rounds, seconds = _speculative_run(decoder, prompt, max_tokens)
        fast_seconds.append(seconds)
    tokens = [token for done in rounds for token in done.tokens]
    difference = first_difference(target, prompt, tokens, plain.tokens)
    later = rounds[1:]
    return Row(
        task=task,
        prompt_tokens=len(prompt),
        tokens=len(tokens),
        plain_seconds=statistics.median(plain_seconds),
        speculative_seconds=statistics.median(fast_seconds),
        accepted_length=(len(tokens) - 1) / max(len(later), 1),
        host_ms=1e3 * statistics.median([done.host_seconds for done in later] or [0.0]),
        equal=difference is None,
        margin=difference.margin if difference else None,
    )


def _speculative_run(
    decoder: Decoder, prompt: Sequence[int], max_tokens: int
) -> tuple[list[Round], float]:
    """All rounds, and wall-clock seconds after the first token."""
    rounds: list[Round] = []
    started = 0.0
    for done in decoder.rounds(prompt, max_tokens):
        started = started or perf_counter()
        rounds.append(done)
    return rounds, perf_counter() - started


def _print_table(rows: Sequence[Row]) -> None:
    head = f"{'task':<12}{'tokens':>7}{'plain tok/s':>13}{'spec tok/s':>12}{'speedup':>9}"
    print(head + f"{'tau':>7}{'host ms':>9}  tokens agree")
    for row in rows:
        plain = (row.tokens - 1) / row.plain_seconds
        fast = (row.tokens - 1) / row.speculative_seconds
        agree = "all" if row.equal else f"to a tie of {row.margin:.1e}"
        line = f"{row.task:<12}{row.tokens:>7}{plain:>13.1f}{fast:>12.1f}{row.speedup:>8.2f}x"
        print(line + f"{row.accepted_length:>7.2f}{row.host_ms:>9.2f}  {agree}")
    total, slowest = _speedups(rows)
    print(f"total tokens over total seconds: {total:.2f}x; slowest prompt {slowest:.2f}x")


def _speedups(rows: Sequence[Row]) -> tuple[float, float]:
    plain = sum(row.plain_seconds for row in rows)
    return plain / sum(row.speculative_seconds for row in rows), min(row.speedup for row in rows)


def _summary(rows: Sequence[Row], overhead: float, args: argparse.Namespace) -> dict[str, Any]:
    total, slowest = _speedups(rows)
    return {
        "speedup": total,
        "slowest": slowest,
        "round_overhead_ms": overhead,
        "scheduler": args.scheduler,
        "draft_vocabulary": args.draft_vocabulary,
        "max_tokens": args.max_tokens,
        "repeats": args.repeats,
        "rows": [asdict(row) | {"speedup": row.speedup} for row in rows],
    }


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    cli.run(main)
