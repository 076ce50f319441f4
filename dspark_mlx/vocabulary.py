"""The draft vocabulary: which tokens a drafter may propose, and the matrices cut down to them.

Reading out every row against the whole vocabulary costs more than a small drafter's backbone. Ids
of byte-pair vocabularies are in merge order, so the first ids with those that the request itself
has shown hold nearly every token that a draft could get right. Whatever is drafted, the target
verifies it: the output is the same, only the accepted length can change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import mlx.core as mx

from .errors import InputError
from .heads import SequentialHead
from .matrix import Matrix

Setting: TypeAlias = int | Literal["auto", "full"]

LEAST = 8192
"""Tokens of the smallest vocabulary that "auto" cuts to; smaller ones cost little anyway."""

_WINDOW = 64
_MOST_MISSES = 5


@dataclass(frozen=True)
class Readout:
    """What turns backbone rows into drafted tokens.

    Attributes:
        logits: hidden rows `[n, hidden]` to base logits `[n, size]`.
        head: the sequential head over the same `size` columns; None for a DFlash drafter.
        ids: the token id of each column, int32 `[size]`; None for the whole vocabulary.
    """

    logits: Callable[[mx.array], mx.array]
    head: SequentialHead | None
    ids: mx.array | None = None

    def tokens(self, columns: mx.array) -> mx.array:
        """Token ids of columns."""
        return columns if self.ids is None else self.ids[columns]


@dataclass(frozen=True)
class Output:
    """How a drafter reads out: the whole vocabulary, or what a request's drafts are cut down to.

    Attributes:
        full: the readout over every token that it can propose.
        cut: the output matrix and how many of its first rows drafts are cut down to; None reads out
            every row.
    """

    full: Readout
    cut: tuple[Matrix, int] | None = None

    @property
    def size(self) -> int:
        """Rows that drafts are cut down to; 0 for none."""
        return self.cut[1] if self.cut else 0

    def vocabulary(self, prompt: Iterable[int]) -> DraftVocabulary | None:
        """The draft vocabulary of a request whose prompt has these tokens; None for the whole."""
        if self.cut is None:
            return None
        matrix, size = self.cut
        vocabulary = DraftVocabulary(size, matrix, self.full)
        vocabulary.add(prompt)
        return vocabulary

    def readout(self, vocabulary: DraftVocabulary | None) -> Readout:
        """The readout for a request's next draft."""
        return vocabulary.readout() if vocabulary else self.full


def parse_setting(value: object) -> Setting:
    """A setting from its text or number.

    Raises:
        InputError: neither "auto", "full" nor a whole number of at least 1.
    """
    if value == "auto" or value == "full":
        return value
    try:
        size = int(value) if isinstance(value, str) else value
    except ValueError:
        size = None
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError("draft_vocabulary", repr(value), '"auto", "full" or a number of tokens')
    return size


def choose_size(setting: Setting, vocab_size: int) -> int | None:
    """Ids to keep of `vocab_size`; None for all of them.

    "auto" keeps a quarter, at least `LEAST`, and cuts nothing where that saves less than half.
    """
    if setting == "full":
        return None
    if setting == "auto":
        size = max(LEAST, vocab_size // 4)
        return size if size <= vocab_size // 2 else None
    return setting if setting < vocab_size else None


class DraftVocabulary:
    """One request's draft vocabulary: the first `size` ids, and every id the request has shown.

    Where the text keeps leaving it (a language whose tokens have late ids), the whole vocabulary is
    read out until it no longer does.

    Args:
        size: ids kept from the start.
        head: the output matrix, `[vocabulary, hidden]`.
        full: the readout over the whole vocabulary.
    """

    def __init__(self, size: int, head: Matrix, full: Readout) -> None:
        self._size = size
        self._matrix = head
        self._first = head.slice(0, size)
        self._full = full
        self._seen: dict[int, None] = {}
        self._misses: deque[bool] = deque(maxlen=_WINDOW)
        self._cut: Readout | None = None

    def add(self, tokens: Iterable[int]) -> None:
        """Take in tokens that no draft could have proposed, as the prompt's."""
        new = [t for t in tokens if t >= self._size and t not in self._seen]
        if new:
            self._seen.update(dict.fromkeys(new))
            self._cut = None

    def commit(self, tokens: Iterable[int]) -> None:
        """Take in committed tokens, counting those that were not in it."""
        for token in tokens:
            missed = token >= self._size and token not in self._seen
            self._misses.append(missed)
            if missed:
                self.add((token,))

    def readout(self) -> Readout:
        """The readout for the next draft."""
        most = (self._matrix.out_features - self._size) // 2
        if len(self._seen) > most or sum(self._misses) > _MOST_MISSES:
            return self._full
        if self._cut is None:
            self._cut = self._cut_down(mx.array(list(self._seen), dtype=mx.int32))
        return self._cut

    def _cut_down(self, seen: mx.array) -> Readout:
        ids = mx.concatenate([mx.arange(self._size, dtype=mx.int32), seen])
        head = self._full.head
        if head is not None:
            # Small enough to copy, which spares the block's steps a second product each.
            w2 = Matrix.concatenate([head.w2.slice(0, self._size), head.w2.take(seen)])
            head = replace(head, w2=w2)  # type: ignore[type-var]
        first, rest = self._first, self._matrix.take(seen)

        def logits(hidden: mx.array) -> mx.array:
            return mx.concatenate([first(hidden), rest(hidden)], axis=-1)

        return Readout(logits if seen.size else first, head, ids)
