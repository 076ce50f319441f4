"""Progress bars for work of a known number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from tqdm import tqdm

ProgressCallback: TypeAlias = Callable[[int, int], None]
"""Called with how much is done and how much there is in all, in whatever unit the work has."""


@contextmanager
def progress_bar(label: str, unit: str, delay: float = 0.0) -> Iterator[ProgressCallback]:
    """A bar on standard error, cleared at the end.

    Args:
        label: what is being done. unit: of a step.
        delay: seconds before it is drawn, for work that is often done at once.

    Yields:
        A function to be called with steps done and steps in all.
    """
    with tqdm(desc=label, unit=unit, leave=False, delay=delay) as bar:

        def progress(count: int, total: int) -> None:
            bar.total = total
            bar.update(count - bar.n)

        yield progress
