"""The process that runs cases: python -m fuzz.worker STOCK --seed S --first A --count N --every K.

A line of JSON a case. With `--keep FOLDER` the inputs of the last case stay there, and what the
command said.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

# Before the Hub's library is imported: a name that is no path must not be asked for.
os.environ["HF_HUB_OFFLINE"] = "1"

from . import judge, process, stock
from .cases import Place, make


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz.worker")
    add = parser.add_argument
    add("stock", type=Path, help="folder of the undamaged inputs; made where it is missing")
    add("--seed", type=int, default=0)
    add("--first", type=int, default=0)
    add("--count", type=int, default=1)
    add("--every", type=int, default=1, help="other workers run the cases between")
    add("--keep", type=Path, help="an empty folder, for the last case's files")
    args = parser.parse_args()
    process.prepare()
    if not args.stock.exists():
        _make_stock(args.stock)
    for number in range(args.first, args.first + args.count * args.every, args.every):
        print(json.dumps(case(args.seed, number, args.stock.resolve(), args.keep)), flush=True)


def _make_stock(folder: Path) -> None:
    """In a child: nothing is computed in this process."""
    child = os.fork()
    if child == 0:
        stock.make(folder)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("the undamaged inputs could not be made")


def case(seed: int, number: int, stocked: Path, keep: Path | None = None) -> dict[str, Any]:
    """Run one case; what it was and what is wrong."""
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-")).resolve()
    folder, aside = scratch / "work", scratch / "aside"
    folder.mkdir()
    try:
        made = make(Random(f"{seed} {number}"), Place(folder, stocked))
        if keep:
            shutil.copytree(folder, keep / "work", symlinks=True, dirs_exist_ok=True)
        before = judge.tree(folder)
        outcome = process.run(made.call, folder, aside)
        found = judge.fault(made.call, outcome, before, judge.tree(folder), aside)
        if keep:
            shutil.copytree(aside, keep / "aside", dirs_exist_ok=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    line = f"{made.call.command} {' '.join(made.call.arguments)}"
    report = {"case": number, "command": line[:300], "damage": made.words[:500]}
    report |= {"status": outcome.status, "seconds": round(outcome.seconds, 2)}
    report |= {"megabytes": outcome.peak >> 20, "fault": None}
    return report | ({"fault": vars(found)} if found else {})


if __name__ == "__main__":
    main()
