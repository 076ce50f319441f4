"""Damaged configs, weights, GGUF, tokenizer and JSON files, and odd arguments, by the thousand.

pytest -m slow tests/fuzz --fuzz-seed S --fuzz-cases N. A case that fails is run again alone:
PYTHONPATH=tests python -m fuzz.worker STOCK --seed S --first NUMBER --keep FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
_SHOWN = 40

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    """The folder of undamaged inputs, and what every command made of them."""
    folder = tmp_path_factory.mktemp("fuzz") / "stock"
    return folder, worker(folder, "--undamaged")


def worker(stock: Path, *flags: object) -> list[dict]:
    """Run cases in a process of their own; a report a case."""
    path = os.pathsep.join([str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", "")])
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "fuzz.worker", str(stock), *map(str, flags)]
    done = subprocess.run(
        command, env=os.environ | one, stdout=subprocess.PIPE, text=True, cwd=TESTS
    )
    assert done.returncode == 0
    return [json.loads(line) for line in done.stdout.splitlines()]


def reports(stock: Path, seed: int, cases: int) -> list[dict]:
    """Run the first cases of a seed on all cores."""
    count = min(os.cpu_count() or 1, 1 + cases // 100)
    shares = [len(range(first, cases, count)) for first in range(count)]
    flags = [("--first", i, "--every", count, "--count", n) for i, n in enumerate(shares)]
    with ThreadPoolExecutor(count) as pool:
        parts = pool.map(lambda each: worker(stock, "--seed", seed, *each), flags)
        return [report for part in parts for report in part]


def summary(found: list[dict], seed: int) -> str:
    """The faults by kind and place, a case of each with its damage."""
    classes = defaultdict(list)
    for report in found:
        fault = report["fault"]
        classes[fault["kind"], fault["where"]].append(report)
    lines = []
    for (kind, where), same in sorted(classes.items(), key=lambda item: -len(item[1])):
        first = same[0]
        lines += [
            f"{len(same)} x {kind} {where}",
            f"    --fuzz-seed {seed}, case {first['case']}: {first['command']}",
            f"    {first['damage']}",
            f"    {first['fault']['message']}",
        ]
    return "\n".join(lines[: 4 * _SHOWN])


def test_every_command_works_undamaged(undamaged):
    """Cases that are refused for another reason than their damage."""
    _, run = undamaged
    # A random drafter fits no target well: `convert check` may say so.
    failed = [r for r in run if r["status"] and not r["command"].startswith("convert check")]
    assert [r for r in run if r["fault"]] + failed == []


@pytest.mark.parametrize("few", [30, pytest.param(None, marks=pytest.mark.slow)])
def test_damaged_input_is_used_or_refused_in_one_line(request, undamaged, few):
    """Tracebacks, messages of several lines, memory or time without end, files left behind."""
    seed = request.config.getoption("--fuzz-seed")
    cases = few or request.config.getoption("--fuzz-cases")
    run = reports(undamaged[0], seed, cases)
    assert len(run) == cases
    found = [report for report in run if report["fault"]]
    assert not found, f"{len(found)} of {cases} cases:\n{summary(found, seed)}"
    # A fuzzer whose every case is refused tries little.
    assert sum(report["status"] == 0 for report in run) > cases / 8
