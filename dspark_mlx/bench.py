"""python -m dspark_mlx.bench: speculative against plain mlx-lm decoding, both in one run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from .benchmark.comparison import Row, bench_row, comparison_table, speedups
from .benchmark.overhead import round_overhead
from .benchmark.report import (
    TABLE_HEAD,
    make_report,
    public_name,
    reported_drafter,
    reported_target,
    table_line,
)
from .benchmark.synthetic import GAMMA, SHAPES
from .benchmark.synthetic_run import SYNTHETIC_HEAD, SYNTHETIC_LEGEND, measure
from .checkpoint.fingerprint import device_name
from .decoder import Decoder
from .engine.request import Request
from .errors import InputError
from .load.compiled import compile_forwards
from .load.kernels import apply_kernels
from .numbers import check_number
from .pairs import builtin
from .pairs.registry import find_pair, names_of
from .replay.report import SHIPPED, replay_report
from .system.files import check_output, write_json
from .system.process import program
from .targets.tap import Target
from .terminal import blas, command, flags
from .terminal.sampling_flags import (
    add_sampling_flags,
    sampling_settings,
    with_special_tokens,
)
from .text.prompt_files import SAMPLE, read_prompts

# Of the made-up drafter whose rounds show Python's cost.
_LAYERS = 5
# Of a synthetic pair, where the flags do not say.
_BITS, _ACCEPTANCE = (16, 8, 4), 0.8


def main(argv: list[str] | None) -> int:
    """Parse, measure, print a table and a line of JSON; see --help for --report."""
    args = _parser().parse_args(argv)
    if args.report:
        if args.replay:
            raise InputError("--report", "--replay too", "a measurement of a model")
        check_output("--report", args.report)
    if args.replay:
        if args.temp:
            found = f"--temp {args.temp}"
            raise InputError("--replay", found, "none: rounds keep their temperature")
        profiles = args.profile or [path.stem for path in sorted(SHIPPED.glob("*.json"))]
        print(replay_report(args.replay, profiles, args.calibration, not args.sampling))
        return 0
    if args.synthetic:
        _synthetic(args)
        return 0
    for flag, value in (("--bits", args.bits), ("--acceptance", args.acceptance)):
        if value is not None:
            raise InputError(flag, "no --synthetic beside it", "--synthetic too, or neither")
    if args.no_drafter:
        raise InputError("--no-drafter", "nothing to compare", "a drafter, or --drafter lookup")
    if args.report:
        flags.check_drafter(args, "which the report names")
    prompts = read_prompts(args.prompts)
    for flag, value, least in (
        ("--repeats", args.repeats, 1),
        ("--max-tokens", args.max_tokens, 2),
    ):
        if value < least:
            raise InputError(flag, value, f"{least} or more")
    settings = sampling_settings(args)
    Request.make(args.max_tokens, (), settings)
    overhead = round_overhead(_LAYERS)
    decoder = flags.load_decoder(args)
    asked, settings = settings, with_special_tokens(settings, decoder)
    ids = [(p.task, decoder.encode([{"role": "user", "content": p.turns[0]}])) for p in prompts]
    bench_row(decoder, *ids[0], min(args.max_tokens, 16), 1, settings)  # warms both sides up
    bar = tqdm(ids, desc="Measuring", unit="prompt", leave=False)
    rows = [bench_row(decoder, *each, args.max_tokens, args.repeats, settings) for each in bar]
    print(comparison_table(rows))
    print(f"Python's time a round, with a made-up drafter of {_LAYERS} layers: {overhead:.2f} ms")
    print(json.dumps(_summary(rows, overhead, args)))
    if args.report:
        report = _report(decoder, rows, overhead, asked, args)
        write_json(args.report, report)
        print(f"{args.report}: written. Its line of the README's table:", file=sys.stderr)
        print(TABLE_HEAD, file=sys.stderr)
        print(table_line(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=program("bench"),
        description="Compare speculative with plain mlx-lm decoding, both in one run.",
    )
    flags.add_model_flags(parser)
    add = parser.add_argument
    add("--max-tokens", "-m", type=int, default=96, help="tokens per prompt (default: 96)")
    add("--repeats", type=int, default=3, help="runs of each side per prompt (default: 3)")
    add(
        "--prompts",
        type=Path,
        default=SAMPLE,
        help='JSON lines with "prompt" or "turns", see "Prompt files" in docs/evaluation.md '
        "(default: two each of four benchmarks)",
    )
    add(
        "--report",
        type=Path,
        metavar="FILE.json",
        help="write what was measured, on what, to a file to be shared, and print the line of the "
        "README's table; it holds the models' names, no path and no user's or host's name",
    )
    add_sampling_flags(parser)
    synthetic = parser.add_argument_group("synthetic pairs, which need no download")
    add = synthetic.add_argument
    add(
        "--synthetic",
        choices=tuple(SHAPES),
        help="measure rounds of a random pair of this shape, whose text is known, beside mlx-lm's "
        "plain decoding",
    )
    add(
        "--bits",
        type=int,
        nargs="+",
        choices=(4, 8, 16),
        help="of the target's weights; 16 is bfloat16 (default: 16 8 4)",
    )
    add(
        "--acceptance",
        type=float,
        help="mean chance that a drafted token is right (default: 0.8)",
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
    add(
        "--sampling",
        action="store_true",
        help="show schedulers of greedy rounds no more than sampling lets them see",
    )
    return parser


def _synthetic(args: argparse.Namespace) -> None:
    """Measure a synthetic pair, and print a table and a line of JSON.

    Raises:
        InputError: --acceptance is no chance, or a text is not the one that is known.
    """
    acceptance = _ACCEPTANCE if args.acceptance is None else args.acceptance
    check_number("--acceptance", acceptance, lambda a: 0 < a < 1, "between 0 and 1")
    shape = SHAPES[args.synthetic]

    def prepare(target: Target) -> None:
        if args.kernels is not False:
            apply_kernels(target, GAMMA + 1)
        if args.compiled:
            compile_forwards(target)

    sizes = max(args.max_tokens, 2), max(args.repeats, 1)
    print(f"{args.synthetic} on {device_name()}, MLX {mx.__version__}")  # type: ignore[attr-defined]
    print(SYNTHETIC_HEAD)
    rows = []
    for bits in args.bits or _BITS:
        rows.append(measure(shape, bits, acceptance, *sizes, prepare))
        print(rows[-1].line())
    print(SYNTHETIC_LEGEND)
    print(json.dumps([asdict(row) | {"speedup": row.speedup} for row in rows]))


def _summary(rows: Sequence[Row], overhead: float, args: argparse.Namespace) -> dict[str, Any]:
    total, slowest = speedups(rows)
    return {
        "speedup": total,
        "slowest": slowest,
        "round_overhead_ms": overhead,
        "scheduler": args.scheduler,
        "draft_vocabulary": args.draft_vocabulary,
        "temperature": args.temp,
        "max_tokens": args.max_tokens,
        "repeats": args.repeats,
        "rows": [asdict(row) | {"speedup": row.speedup} for row in rows],
    }


def _report(
    decoder: Decoder,
    rows: Sequence[Row],
    overhead: float,
    settings: dict[str, Any],
    args: argparse.Namespace,
) -> dict[str, Any]:
    target, drafter = _public_names(decoder, args)
    measured = {
        "max_tokens": args.max_tokens,
        "repeats": args.repeats,
        "draft_vocabulary": args.draft_vocabulary,
        "caches": decoder.engine.target.cache_settings.key(),
        "exact": decoder.exact,
        "prompts": "shipped" if args.prompts == SAMPLE else "own",
    }
    return make_report(
        reported_target(decoder, target),
        reported_drafter(decoder, drafter),
        {"asked": args.scheduler, "used": decoder.engine.scheduler.name},
        settings | measured,
        rows,
        round_overhead_ms=overhead,
        unoptimized_blas=blas.advice(decoder.precision) is not None,
    )


def _public_names(decoder: Decoder, args: argparse.Namespace) -> tuple[str, str]:
    """The target's and the drafter's names for a report."""
    if args.model is None:
        drafter = public_name(args.drafter) if args.drafter else "built in"
        return builtin.NAME, drafter
    found = None if args.drafter else find_pair(names_of(args.model, decoder.config))
    return public_name(args.model), public_name(found.drafter if found else args.drafter)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    command.run(main)
