"""Progress bars for work of a known number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from tqdm import tqdm

ProgressCallback: TypeAlias = Callable[[int, int], None]
"""Called with the units of work done so far and the units in all."""


@contextmanager
def progress_bar(label: str, unit: str, delay: float = 0.0) -> Iterator[ProgressCallback]:
    """Show a progress bar on standard error while the block runs, and clear it at the end.

    Args:
        label: what is being done.
        unit: name of one step.
        delay: seconds before the bar is drawn, so that quick work shows none.

    Yields:
        The callback that moves the bar.
    """
    with tqdm(desc=label, unit=unit, leave=False, delay=delay) as bar:

        def progress(count: int, total: int) -> None:
            bar.total = total
            bar.update(count - bar.n)

        yield progress
