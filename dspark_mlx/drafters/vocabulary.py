"""The draft vocabulary: which tokens a drafter may propose, and the matrices cut down to them.

Reading out every row against the whole vocabulary costs more than a small drafter's backbone. The
tokens that the target writes most, with those that the request itself has shown, hold nearly every
token that a draft could get right. Where nobody counted them, the first ids stand for them: those
of byte-pair vocabularies are in merge order. Whatever is drafted, the target verifies it: the
output is the same, only the accepted length can change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, TypeAlias

import mlx.core as mx

from ..checkpoint.linear import Matrix, arrays_of
from ..errors import InputError
from .heads.base import SequentialHead

Setting: TypeAlias = int | Literal["auto", "full"]

MIN_SIZE = 8192
"""Tokens of the smallest vocabulary that "auto" cuts to; smaller ones cost little anyway."""

_WINDOW = 64
_MAX_MISSES = 5


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
class CommonTokens:
    """The tokens that every request's drafts can be chosen from.

    Attributes:
        ids: ascending, int32 `[size]`.
        members: the same ids, to look up.
        matrix: the whole output matrix, `[vocabulary, hidden]`.
        rows: its rows of `ids`.
    """

    ids: mx.array
    members: Container[int]
    matrix: Matrix
    rows: Matrix

    @staticmethod
    def of(matrix: Matrix, size: int, ranking: Sequence[int] = ()) -> CommonTokens:
        """The first `size` of a ranking, and the lowest ids where it is too short; evaluated."""
        if not ranking:
            ids, rows = mx.arange(size), matrix.slice(0, size)
            members: Container[int] = range(size)
        else:
            chosen = dict.fromkeys(ranking[:size])
            missing = (i for i in range(matrix.out_features) if i not in chosen)
            chosen.update(dict.fromkeys(islice(missing, size - len(chosen))))
            ids, members = mx.array(sorted(chosen), dtype=mx.int32), frozenset(chosen)
            rows = matrix.take(ids)
        common = CommonTokens(ids, members, matrix, rows)
        mx.eval(arrays_of(common))
        return common


@dataclass(frozen=True)
class DraftOutput:
    """How a drafter reads out: the whole vocabulary, or what a request's drafts are cut down to.

    Attributes:
        full: the readout over every token that it can propose.
        cut: what drafts are cut down to; None reads out every row.
    """

    full: Readout
    cut: CommonTokens | None = None

    def with_head(self, head: SequentialHead | None) -> DraftOutput:
        """The same output with a sequential head."""
        return replace(self, full=replace(self.full, head=head))

    @property
    def size(self) -> int:
        """Tokens that drafts are cut down to; 0 for none."""
        return self.cut.ids.size if self.cut else 0

    def vocabulary(self, prompt: Iterable[int]) -> DraftVocabulary | None:
        """The draft vocabulary of a request whose prompt has these tokens; None for the whole."""
        if self.cut is None:
            return None
        vocabulary = DraftVocabulary(self.cut, self.full)
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


def choose_size(setting: Setting, vocab_size: int, ranked: int = 0) -> int | None:
    """Tokens to keep of `vocab_size`; None for all of them.

    "auto" keeps a quarter, at least `MIN_SIZE`; a sixth where so many are `ranked` by how often the
    target writes them. It cuts nothing where that saves less than half.
    """
    if setting == "full":
        return None
    if setting == "auto":
        sixth = max(MIN_SIZE, vocab_size // 6)
        size = sixth if ranked >= sixth else max(MIN_SIZE, vocab_size // 4)
        return size if size <= vocab_size // 2 else None
    return setting if setting < vocab_size else None


class DraftVocabulary:
    """One request's draft vocabulary: the common tokens, and every one that the request has shown.

    Where the text keeps leaving it (a language whose tokens have late ids), the whole vocabulary is
    read out until it no longer does.

    Args:
        common: tokens kept from the start.
        full: the readout over the whole vocabulary.
    """

    def __init__(self, common: CommonTokens, full: Readout) -> None:
        self._common = common
        self._full = full
        self._seen: dict[int, None] = {}
        self._misses: deque[bool] = deque(maxlen=_WINDOW)
        self._cut: Readout | None = None

    def add(self, tokens: Iterable[int]) -> None:
        """Take in tokens that no draft could have proposed, as the prompt's."""
        new = [t for t in tokens if not self._holds(t)]
        if new:
            self._seen.update(dict.fromkeys(new))
            self._cut = None

    def commit(self, tokens: Iterable[int]) -> None:
        """Take in committed tokens, counting those that were not in it."""
        for token in tokens:
            missed = not self._holds(token)
            self._misses.append(missed)
            if missed:
                self.add((token,))

    def _holds(self, token: int) -> bool:
        return token in self._common.members or token in self._seen

    def readout(self) -> Readout:
        """The readout for the next draft."""
        most = (self._common.matrix.out_features - self._common.ids.size) // 2
        if len(self._seen) > most or sum(self._misses) > _MAX_MISSES:
            return self._full
        if self._cut is None:
            self._cut = self._cut_down(mx.array(list(self._seen), dtype=mx.int32))
        return self._cut

    def _cut_down(self, seen: mx.array) -> Readout:
        ids = mx.concatenate([self._common.ids, seen])
        head = self._full.head
        if head is not None:
            # Small enough to copy, which spares the block's steps a second product each.
            head = replace(head, w2=head.w2.take(ids))  # type: ignore[type-var]
        first, rest = self._common.rows, self._common.matrix.take(seen)
        # It is kept for later rounds, which another thread may compute.
        mx.async_eval(arrays_of([ids, head, rest]))

        def logits(hidden: mx.array) -> mx.array:
            return mx.concatenate([first(hidden), rest(hidden)], axis=-1)

        return Readout(logits if seen.size else first, head, ids)
