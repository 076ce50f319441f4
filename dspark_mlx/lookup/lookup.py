"""The lookup of one request: what it would copy next, and how likely that is right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .chances import CopyChances
from .suffixes import SuffixIndex

MAX_COPY = 32
"""The most tokens of a copy."""


class Lookup:
    """Copies from a request's text and from the texts given with it; sees committed tokens only.

    Args:
        references: token ids of texts that the answer may quote, beside its prompt.

    Attributes:
        tokens: the tokens that followed where the text was last as it ends now; may be none.
    """

    def __init__(self, references: Iterable[Sequence[int]] = ()) -> None:
        self.tokens: list[int] = []
        self._index = SuffixIndex()
        self._chances = CopyChances()
        for reference in references:
            self._index.extend(reference)
            self._index.wall()

    def read(self, prompt: Iterable[int]) -> None:
        """Take in the prompt, to be called once, at the request's begin."""
        self._index.extend(prompt)

    def survival(self) -> list[float]:
        """The chances that the target accepts the first k of `tokens`, see `CopyChances`."""
        return self._chances.survival(self._index.match, len(self.tokens))

    def commit(self, tokens: Sequence[int]) -> None:
        """Take in the tokens of a round, whoever proposed them, and learn from them."""
        self._chances.learn(self._index.match, self.tokens, tokens)
        self._index.extend(tokens)
        self.tokens = self._index.continuation(MAX_COPY)
