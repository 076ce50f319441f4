"""python -m dspark_mlx.evaluate: evaluates drafters on DeepSpec's benchmark tasks."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

from .decoder import Decoder
from .errors import InputError
from .evaluation import EvaluationSettings, Task, read_tasks
from .evaluation.answers import Answer, LeftOut, answers
from .evaluation.draw import draw
from .evaluation.records import Evaluation
from .evaluation.summary import summarise
from .evaluation.table import text
from .evaluation.tasks import SHIPPED_NAMES
from .load import add_drafter
from .plots import check_folder
from .progress import progress_bar
from .system.process import program
from .terminal import command, flags
from .terminal.sampling_flags import (
    add_sampling_flags,
    sampling_settings,
    with_special_tokens,
)


def main(argv: list[str] | None) -> int:
    """Run the command: evaluate, print the tables or one JSON object, draw; returns the status."""
    args = _parser().parse_args(argv)
    settings = _settings(args)
    names = None if args.tasks is None else args.tasks.split(",")
    tasks = read_tasks(names, args.prompts, args.max_samples)
    if args.plot:
        check_folder(args.plot)
    decoders = _decoders(args)
    first = next(iter(decoders.values()))
    sampling = with_special_tokens(dict(settings.sampling), first)
    settings = dataclasses.replace(settings, sampling=sampling)
    evaluation, interrupted = _evaluate(decoders, tasks, settings)
    if not evaluation.tasks:
        if interrupted:
            raise KeyboardInterrupt
        longest = f"prompts too long for the target's {first.max_length} positions"
        raise InputError("--prompts", longest, "at least one that leaves room for --max-tokens")
    report = _report(evaluation, args, first)
    if args.json:
        command.print_json(report)
    else:
        print(text(evaluation))
    if args.plot:
        for path in draw(evaluation, args.plot):
            print(f"drawn: {path}", file=sys.stderr)
    return command.INTERRUPTED if interrupted else 0


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=program("evaluate"),
        description="Accepted length, acceptance by position, confidence and speed of drafters on "
        "benchmark tasks.",
    )
    flags.add_model_flags(parser, scheduler="full")
    add = parser.add_argument
    add(
        "--compare",
        nargs="+",
        default=[],
        metavar="DRAFTER",
        help="further drafters, evaluated beside it on the same loaded target",
    )
    add(
        "--tasks",
        metavar="NAME,NAME",
        help=f"of {', '.join(SHIPPED_NAMES)}; with --prompts, of its files (default: all)",
    )
    add(
        "--prompts",
        metavar="SOURCE",
        help='JSON lines with "turns" or "prompt", see "Prompt files" in docs/evaluation.md: a '
        "file, a folder with a file a task, or a dataset of the Hub (default: four prompts a task "
        "that ship with this package)",
    )
    add("--max-samples", type=int, metavar="N", help="prompts a task at most (default: all)")
    add("--max-tokens", "-m", type=int, default=128, help="tokens a turn (default: 128)")
    add("--repeats", type=int, default=1, help="runs of each side, for medians (default: 1)")
    add(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="let the target think, where its template can; off where nothing is said",
    )
    add("--no-speed", action="store_true", help="leave plain decoding out: no speeds")
    add("--no-sweep", action="store_true", help="leave the threshold sweep out: half the drafts")
    add("--plot", type=Path, metavar="FOLDER", help="draw acceptance, reliability and the sweep")
    add("--json", action="store_true", help="print one JSON object instead of tables")
    add_sampling_flags(parser)
    return parser


def _settings(args: argparse.Namespace) -> EvaluationSettings:
    """The settings that the flags give, checked before anything is loaded."""
    flags.check_drafter(args, "whose acceptance by position and confidences are evaluated")
    if "lookup" in args.compare:
        raise InputError("--compare", "lookup, which is no drafter", "drafters, as --drafter takes")
    for flag, value, least in (
        ("--max-tokens", args.max_tokens, 2),
        ("--repeats", args.repeats, 1),
        ("--max-samples", args.max_samples, 1),
    ):
        if value is not None and value < least:
            raise InputError(flag, value, f"{least} or more")
    settings = EvaluationSettings(
        max_tokens=args.max_tokens,
        repeats=args.repeats,
        plain=not args.no_speed,
        sweep=not args.no_sweep,
        thinking=args.thinking,
        sampling=sampling_settings(args),
    )
    settings.check()
    return settings


def _decoders(args: argparse.Namespace) -> dict[str, Decoder]:
    """A decoder for each drafter, on one target, by the names that the tables show."""
    if twice := [name for i, name in enumerate(args.compare) if name in args.compare[:i]]:
        raise InputError("--compare", f"{twice[0]} twice", "every drafter once")
    if args.drafter in args.compare:
        raise InputError("--compare", f"{args.drafter} twice", "another than --drafter")
    first = flags.load_decoder(args)
    others = [
        add_drafter(first, drafter, args.scheduler, draft_vocabulary=args.draft_vocabulary)
        for drafter in args.compare
    ]
    own = str(first.drafter_folder) if args.model else "built in"
    given = [args.drafter or own, *args.compare]
    short = [Path(name).name for name in given]
    names = short if len(set(short)) == len(short) else given
    return dict(zip(names, [first, *others], strict=True))


def _evaluate(
    decoders: dict[str, Decoder], tasks: list[Task], settings: EvaluationSettings
) -> tuple[Evaluation, bool]:
    """The evaluation of all finished turns, and whether Ctrl-C ended it."""
    found: list[Answer | LeftOut] = []
    interrupted = False
    try:
        with progress_bar("Evaluating", "turn") as progress:
            for answer in answers(decoders, tasks, settings, progress):
                found.append(answer)
    except KeyboardInterrupt:
        interrupted = True
    return summarise(decoders, tasks, settings, found), interrupted


def _report(evaluation: Evaluation, args: argparse.Namespace, decoder: Decoder) -> dict[str, Any]:
    report = _plain(dataclasses.asdict(evaluation))
    assert isinstance(report, dict)
    for score, line in zip(evaluation.scores, report["scores"], strict=True):
        line |= {"ece": score.ece, "auc": score.auc}
    names = {"target": str(decoder.target_folder), "scheduler": args.scheduler}
    return names | {"partial": evaluation.partial} | report


def _plain(value: Any) -> Any:
    """A value with lists for tuples and None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    command.run(main)
