"""python -m dspark_mlx.profile: measures what verifying, drafting and plain steps cost here."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from . import plots
from .errors import InputError
from .kernels.guard import backend_here
from .kernels.report import forwards_report, forwards_table, race_report, race_table
from .plots import speed as speed_plot
from .profiling.pair import Pair
from .profiling.roofline import Rates, measured_rates, roofline_table
from .profiling.store import Obtained, forget, get_profile, import_profile, read_importable
from .progress import progress_bar
from .schedulers.profile_table import profile_table
from .system.files import check_output, write_json
from .system.process import program
from .targets.tap import Target
from .terminal import command, flags

# Seconds. A user who asks for a measurement waits longer for it than one who starts to decode.
_LIMIT = 120.0


def main(argv: list[str] | None) -> int:
    """Run the command: find or measure a profile, and print it; returns the exit status."""
    args = _parser().parse_args(argv)
    if args.roofline and args.json:
        raise InputError("--roofline", "--json too", "a table")
    flags.check_drafter(args, "whose blocks are timed")
    if args.plot:
        plots.check_path(args.plot)
    if args.export:
        check_output("--export", args.export)
    given = read_importable(args.import_file) if args.import_file else None
    pair = _pair(args)
    if args.forget:
        _print_forgotten(pair, forget(pair), args.json)
        return 0
    obtained = (
        import_profile(pair, given, args.import_file) if given else _obtain(pair, args.remeasure)
    )
    if args.plot:
        speed_plot.plot(obtained.profile, args.plot)
    target = pair.engine.target
    if args.export:
        write_json(args.export, obtained.profile.to_dict() | _races(target))
    _print(obtained, target, args.json)
    if args.roofline:
        print(f"\n{roofline_table(pair.engine, obtained.profile, _rates(pair))}")
    return 0


def _rates(pair: Pair) -> Rates:
    return measured_rates(pair.engine.target.dtype)


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=program("profile"),
        description="Measure what verifying, drafting and plain steps cost here.",
    )
    flags.add_model_flags(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--remeasure", action="store_true", help="measure even if one is stored")
    source.add_argument("--forget", action="store_true", help="remove the stored one, and end")
    source.add_argument(
        "--import",
        dest="import_file",
        type=Path,
        metavar="FILE.json",
        help="store an exported profile as this pair's, which every later use checks; one that was "
        "too noisy to be kept where it was measured is refused",
    )
    add = parser.add_argument
    add(
        "--export",
        type=Path,
        metavar="FILE.json",
        help="write the profile and all that was raced to a file, to be shared",
    )
    add(
        "--roofline",
        action="store_true",
        help="add what a round must cost by bytes and operations: from rates measured here, and "
        "predicted for other devices",
    )
    add("--plot", type=Path, metavar="FILE.png", help="draw it (png, svg or pdf)")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def _pair(args: argparse.Namespace) -> Pair:
    # Other schedulers could find or measure a profile themselves while the pair is loaded.
    args.scheduler = "full"
    # What kernels can do here is part of what is measured.
    if args.kernels is None:
        args.kernels = backend_here() is not None and not args.exact
    decoder = flags.load_decoder(args, advises=not args.forget)
    return Pair.of(decoder)


def _obtain(pair: Pair, remeasure: bool) -> Obtained:
    # The bar appears after a second, in which a stored profile is found.
    with progress_bar(f"Measuring, {_LIMIT:.0f} s at most", "pass", delay=1.0) as progress:
        return get_profile(pair, remeasure=remeasure, progress=progress, limit=_LIMIT)


def _print_forgotten(pair: Pair, path: Path | None, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"removed": str(path) if path else None}))
    elif path:
        print(f"Removed {path}, the profile of {pair.name}.")
    else:
        print(f"No profile of {pair.name} is stored.")


def _races(target: Target) -> dict[str, Any]:
    """What races have found, without those that there were none of."""
    found: dict[str, Any] = {}
    if target.kernels:
        found["kernels"] = race_report(target.kernels)
    if target.compiled_races:
        found["compiled"] = forwards_report(target.compiled_races)
    return found


def _print(obtained: Obtained, target: Target, as_json: bool) -> None:
    if as_json:
        report = {
            "measured": obtained.measured,
            "stored": obtained.kept,
            "message": obtained.message,
            "stale_reason": obtained.stale_reason,
            "profile": obtained.profile.to_dict(),
            "kernels": None,
            "compiled": None,
            **_races(target),
        }
        print(json.dumps(report))
        return
    print(profile_table(obtained.profile))
    if target.kernels:
        print(race_table(target.kernels))
    if target.compiled_races:
        print(forwards_table(target.compiled_races))
    if obtained.stale_reason:
        print(f"warning: {obtained.stale_reason}", file=sys.stderr)
    print(obtained.message, file=sys.stderr)


if __name__ == "__main__":
    command.run(main)
