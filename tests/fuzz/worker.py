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

# Before the Hub's library is imported: no case asks anybody for anything.
os.environ |= {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}

from . import judge, process, stock
from .cases import NAMES, Place, make, undamaged


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz.worker")
    add = parser.add_argument
    add("stock", type=Path, help="folder of the undamaged inputs; made where it is missing")
    add("--seed", type=int, default=0)
    add("--first", type=int, default=0)
    add("--count", type=int, default=1)
    add("--every", type=int, default=1, help="other workers run the cases between")
    add("--undamaged", action="store_true", help="instead, each command as it works")
    add("--keep", type=Path, help="an empty folder, for the last case's files")
    args = parser.parse_args()
    process.prepare()
    if not args.stock.exists():
        _make_stock(args.stock)
    numbers = range(args.first, args.first + args.count * args.every, args.every)
    for number in range(len(NAMES)) if args.undamaged else numbers:
        seed = None if args.undamaged else args.seed
        print(json.dumps(case(seed, number, args.stock.resolve(), args.keep)), flush=True)


def _make_stock(folder: Path) -> None:
    """In a child: nothing is computed in this process."""
    child = os.fork()
    if child == 0:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        stock.make(folder)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("the undamaged inputs could not be made")


def case(seed: int | None, number: int, stocked: Path, keep: Path | None) -> dict[str, Any]:
    """Run one case; what it was and what is wrong. Without a seed nothing is damaged."""
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-")).resolve()
    folder, aside = scratch / "work", scratch / "aside"
    folder.mkdir()
    try:
        place = Place(folder, aside / "cache", stocked)
        damaged = seed is not None
        made = make(Random(f"{seed} {number}"), place) if damaged else undamaged(place, number)
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
