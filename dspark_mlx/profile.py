"""python -m dspark_mlx.profile: what verifying, drafting and plain steps cost here."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import cli, command, plots
from .bars import counting
from .errors import InputError
from .files import check_output
from .plots import speed as speed_plot
from .profiles import Obtained, Pair, adopt, obtain
from .speed import read_profile, table, write_profile


def main(argv: list[str] | None) -> int:
    """Parse, find or measure, print the profile and what was done for it."""
    args = _parser().parse_args(argv)
    if args.no_drafter:
        raise InputError("--no-drafter", "nothing to verify", "a drafter")
    if args.plot:
        plots.check_path(args.plot)
    if args.export:
        check_output("--export", args.export)
    given = read_profile(args.import_file) if args.import_file else None
    pair = _pair(args)
    obtained = adopt(pair, given, args.import_file) if given else _obtain(pair, args.remeasure)
    if args.plot:
        speed_plot.plot(obtained.profile, args.plot)
    if args.export:
        write_profile(args.export, obtained.profile)
    _print(obtained, args.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(prog="python -m dspark_mlx.profile", description=__doc__)
    cli.add_model_flags(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--remeasure", action="store_true", help="measure even if one is stored")
    source.add_argument(
        "--import",
        dest="import_file",
        type=Path,
        metavar="FILE.json",
        help="store an exported profile as this pair's; every later use checks it",
    )
    add = parser.add_argument
    add("--export", type=Path, metavar="FILE.json", help="write the profile to a file")
    add("--plot", type=Path, metavar="FILE.png", help="draw it (png, svg or pdf)")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def _pair(args: argparse.Namespace) -> Pair:
    # Another scheduler could itself look for a profile while the pair is loaded.
    args.scheduler = "full"
    decoder = cli.load_decoder(args)
    return Pair.of(decoder)


def _obtain(pair: Pair, remeasure: bool) -> Obtained:
    # Drawn after a moment only: a stored profile is there before.
    with counting("Measuring", "pass", delay=1.0) as progress:
        return obtain(pair, remeasure=remeasure, progress=progress)


def _print(obtained: Obtained, as_json: bool) -> None:
    if as_json:
        report = {"measured": obtained.measured, "story": obtained.story}
        report |= {"rejected": obtained.rejected, "profile": obtained.profile.to_dict()}
        print(json.dumps(report))
        return
    print(table(obtained.profile))
    if obtained.rejected:
        print(f"warning: {obtained.rejected}", file=sys.stderr)
    print(obtained.story, file=sys.stderr)


if __name__ == "__main__":
    command.run(main)
