"""The warning of drafts that are not finite, which a decoder says once."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from ..types import Round


@dataclass
class NotFiniteWarning:
    """Says once that a drafter's numbers are not finite.

    Attributes:
        where: the drafter, as the warning names it.
    """

    where: str
    _said: bool = field(default=False, init=False)

    def watch(self, rounds: Iterator[Round]) -> Generator[Round, None, None]:
        """The same rounds; the first draft that is not finite is warned of."""
        for round_ in rounds:
            if not round_.drafts_finite and not self._said:
                self._said = True
                message = (
                    "drafts that are not finite (NaN or infinite) are rejected; the text is right"
                )
                warnings.warn(f"{self.where}: {message}", stacklevel=3)
            yield round_
