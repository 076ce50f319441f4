"""Which files of kept prompts are read where not all of them fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspark_mlx.reuse.outline import Outline, newest_within

A, B, C, D = (Path(name) for name in "abcd")
FILES = {
    A: Outline(0, None, 10, 1),
    B: Outline(4, A, 1, 4),
    C: Outline(4, A, 2, 2),
    D: Outline(0, None, 5, 3),
}


@pytest.mark.parametrize(
    "max_bytes, taken",
    [(18, {A, B, C, D}), (17, {A, B, D}), (11, {A, B}), (10, {D}), (4, set()), (0, set())],
)
def test_the_newest_come_first_with_those_before_them(max_bytes, taken):
    """A file that is read without the tokens before it, and is removed as an orphan."""
    assert newest_within(max_bytes, FILES) == taken


def test_foreign_files_that_follow_each_other_end():
    """A start that never ends."""
    circle = {A: Outline(1, B, 1, 1), B: Outline(1, A, 1, 2), C: Outline(1, D, 1, 3)}
    assert newest_within(3, circle) == {A, B, C}
    assert newest_within(2, circle) == {C}
