"""Cases of one parametrized test, of which some run in every run and the others under -m slow."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest


def some_slow(cases: Iterable, always: Collection) -> list:
    """The cases in order; those that are not in `always` are marked slow."""
    return [
        case if case in always else pytest.param(case, marks=pytest.mark.slow, id=str(case))
        for case in cases
    ]
