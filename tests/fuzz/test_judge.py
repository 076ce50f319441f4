"""The fuzzer's own eyes: each kind of fault is seen, and a right ending is none."""

from __future__ import annotations

import sys

import pytest

from . import commands, judge, process
from .commands import Call

CALL = Call("generate", [], ())
BAR = "Converting:  50%|#####     | 1/2 [00:00<00:00, 9.1tensor/s]\r       \r"
SAID = {
    "": (0, "", {}),
    "one line": (2, "error: config.json: found x; expected y.\n", {}),
    "after a bar": (2, f"{BAR}error: config.json: found x; expected y.\n", {}),
    "after a note": (2, f"note: slow\n{BAR}error: config.json: found x; expected y.\n", {}),
    "an output": (0, "", {"out": "folder"}),
}
FAULTS = {
    "traceback: KeyError": (1, "Traceback (most recent call last):\n  File\nKeyError: 'a'\n", {}),
    "exit status 1": (1, "error: x\n", {}),
    "several lines": (2, "usage: generate [-h]\ngenerate: error: no --prompt\n", {}),
    "no lines": (2, "note: slow\n", {}),
    "several notes": (2, "note: slow\nnote: slow\nerror: x\n", {}),
    "no error:": (2, "found x\n", {}),
    "long message": (2, f"error: {'x' * 2000}\n", {}),
    "killed by signal 11": (-11, "", {}),
    "inputs changed": (0, "", {"target": "other"}),
    "left behind": (0, "", {".out.1234.partial": "folder"}),
    "written though refused": (2, "error: x\n", {"out": "folder"}),
}


def judged(tmp_path, status, said, new):
    (tmp_path / "cache").mkdir()
    (tmp_path / "tmp").mkdir()
    outcome = process.Outcome(status, b"", said.encode(), "", 0.1, 0)
    before = {"target": "folder"}
    return judge.fault(CALL, outcome, before, before | new, tmp_path)


@pytest.mark.parametrize("name", SAID)
def test_a_right_ending_is_no_fault(tmp_path, name):
    assert judged(tmp_path, *SAID[name]) is None


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_is_seen(tmp_path, kind):
    assert judged(tmp_path, *FAULTS[kind]).kind == kind


def test_the_place_is_the_packages_own(tmp_path):
    """A table of faults by lines of other libraries."""
    said = (
        'Traceback (most recent call last):\n  File "/a/dspark_mlx/load.py", line 7, in load\n'
        '  File "/a/site-packages/mlx_lm/utils.py", line 8, in load_model\nKeyError: 1\n'
    )
    assert judged(tmp_path, 1, said, {}).where == "dspark_mlx/load.py:7 load"


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
@pytest.mark.parametrize(
    ("what", "bound"),
    [("little", ""), ("memory", "more than 128 MB"), ("time", "more than 1 s")],
)
def test_bounds_are_kept(tmp_path, monkeypatch, what, bound):
    """Cases that take everything, and end the machine before they are judged."""
    monkeypatch.setitem(commands.MODULES, "hungry", "fuzz.hungry")
    monkeypatch.setattr(process, "SECONDS", 1)
    monkeypatch.setattr(process, "BYTES", 1 << 27)
    (tmp_path / "work").mkdir()
    outcome = process.run(Call("hungry", [what], ()), tmp_path / "work", tmp_path / "aside")
    assert outcome.bound == bound, outcome.stderr
    assert (outcome.status == 0) == (not bound)
