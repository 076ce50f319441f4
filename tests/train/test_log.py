"""A run's log as a file: cut off by a full disk, or damaged by whatever else."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dspark_mlx.errors import InputError
from dspark_mlx.train.log import FIELDS, Entry, TrainingLog, read_log
from dspark_mlx.train.step.metrics import BlockMetrics

GAMMA = 2
METRICS = BlockMetrics(1, 0.5, np.ones((6, GAMMA)))


@pytest.fixture
def path(tmp_path):
    """The log of two lines, of steps 10 and 20."""
    made = tmp_path / "log.csv"
    log = TrainingLog(made, GAMMA, -1)
    log.add(Entry("train", 10, 0.1, 1e-3, METRICS, 1.0))
    log.add(Entry("held-out", 20, 0.2, 1e-3, METRICS, 2.0))
    return made


def test_lines_after_the_checkpoint_are_dropped(path):
    """Steps that stand twice in a log after a run was killed and gone on with."""
    assert [row["step"] for row in read_log(path)] == ["10", "20"]
    TrainingLog(path, GAMMA, 10)
    assert [row["step"] for row in read_log(path)] == ["10"]


def test_a_log_with_windows_line_ends_is_read(path):
    """Logs that earlier versions wrote."""
    rows = read_log(path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_log(path) == rows


def test_a_line_cut_off_is_left_out(path):
    """A run that cannot go on since its disk was full once."""
    path.write_bytes(path.read_bytes()[:-9])
    assert [row["step"] for row in read_log(path)] == ["10"]


def test_no_file_and_an_empty_one_have_no_lines(tmp_path):
    """A run whose first line was never written."""
    assert read_log(tmp_path / "log.csv") == []
    (tmp_path / "log.csv").touch()
    assert read_log(tmp_path / "log.csv") == []


DAMAGES = {
    "everything twice": (lambda old: old * 2, "log.csv:4: found kind 'kind'; expected train or"),
    "a step in letters": (lambda old: old.replace(b"10,", b"ten,", 1), ":2: found step 'ten'"),
    "a step of many digits": (lambda old: old.replace(b"10,", b"9" * 5000 + b",", 1), ":2: found"),
    "a negative step": (lambda old: old.replace(b"10,", b"-10,", 1), ":2: found step '-10'"),
    "a loss in letters": (lambda old: old.replace(b"0.50000", b"half"), ":2: found loss 'half'"),
    "a column less": (lambda old: old.replace(b"seconds,", b"", 1), "found columns kind, step"),
    "a value less": (lambda old: old.replace(b"0.50000,", b"", 1), ":2: found 10 values; expected"),
    "a value more": (lambda old: old.replace(b"10,", b"10,10,", 1), ":2: found 12 values"),
    "no header": (lambda old: old.partition(b"\n")[2], "found columns train, 10"),
    "a cut header": (lambda old: old[:9], "found columns kind, step"),
    "another order": (lambda old: old.replace(b"kind,step", b"step,kind"), "columns step, kind"),
    "an empty line": (lambda old: old.replace(b"\n", b"\n\n", 1), ":2: found 1 values"),
    "a quote": (lambda old: old.replace(b"10,", b'"10,', 1), ":2: found step '\"10'"),
    "zeros": (lambda old: bytes(64), "found columns"),
    "another encoding": (lambda old: old.decode().encode("utf-16"), "bytes that are not text"),
    "a long field": (lambda old: b"a" * (1 << 18) + old, "found columns a"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_log_is_refused_in_one_line(path, name):
    """ValueError, TypeError, csv.Error or UnicodeDecodeError, and a log that is written over."""
    damage, said = DAMAGES[name]
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        TrainingLog(path, GAMMA, 10)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000
    assert path.read_bytes() == before


def test_a_folder_in_its_place_is_refused(tmp_path):
    """IsADirectoryError."""
    (tmp_path / "log.csv").mkdir()
    with pytest.raises(InputError, match="no readable file"):
        TrainingLog(tmp_path / "log.csv", GAMMA, 10)


def test_blocks_of_another_length_are_refused(path):
    """Columns of a table that mean two things."""
    with pytest.raises(InputError, match=f"{FIELDS[-1]}, acceptance_1, acceptance_2; expected"):
        TrainingLog(path, GAMMA + 1, 10)
