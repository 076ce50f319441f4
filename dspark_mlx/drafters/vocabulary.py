"""The draft vocabulary: which tokens a drafter may propose, and the matrices cut down to them.

Logits over the whole vocabulary cost more than a small drafter's backbone. The tokens that the
target writes most often, with those of the request's own text, include nearly every token that a
draft could get right. When the frequencies are not known, the lowest ids are used: byte-pair
vocabularies are in merge order. The target verifies every draft, so a draft vocabulary changes the
accepted length but not the output.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, TypeAlias

import mlx.core as mx

from ..checkpoint.linear import Matrix, arrays_of
from ..errors import InputError
from .heads.base import Correction

Setting: TypeAlias = int | Literal["auto", "full"]

MIN_SIZE = 8192
"""The least tokens that "auto" keeps; logits over fewer tokens cost hardly less."""

_WINDOW = 64
_MAX_MISSES = 5
# Drafts of several requests before new tokens of their texts are taken in.
_SHARED_DRAFTS = 8


@dataclass(frozen=True)
class Readout:
    """The functions that turn hidden rows into logits and token ids.

    Attributes:
        logits: maps hidden rows `[n, hidden]` to base logits `[n, size]`.
        head: corrects the logits of the same `size` columns; None for a DFlash drafter.
        ids: the token id of each column, int32 `[size]`; None for the whole vocabulary.
        matrix: the output matrix's rows by token id; None where single rows cannot be taken.
    """

    logits: Callable[[mx.array], mx.array]
    head: Correction | None
    ids: mx.array | None = None
    matrix: Matrix | None = None

    def tokens(self, columns: mx.array) -> mx.array:
        """The token ids of columns, int32 of the same shape."""
        return columns if self.ids is None else self.ids[columns]

    def logits_of(self, columns: mx.array, hidden: mx.array) -> mx.array:
        """The logits of a few columns `[n, k]` of rows `[n, hidden]`, `[n, k]`."""
        if self.matrix is None:
            return mx.take_along_axis(self.logits(hidden), columns, axis=-1)
        return (self.matrix.rows(self.tokens(columns)) @ hidden[..., None]).squeeze(-1)


@dataclass(frozen=True)
class CommonTokens:
    """The tokens that every request's drafts can be chosen from.

    Attributes:
        ids: the token ids, ascending, int32 `[size]`.
        members: the same ids as a Python container, for membership tests.
        matrix: the whole output matrix, `[vocabulary, hidden]`.
        rows: the output matrix's rows of these ids, `[size, hidden]`.
    """

    ids: mx.array
    members: Container[int]
    matrix: Matrix
    rows: Matrix

    @property
    def max_seen(self) -> int:
        """The most further tokens with which drafts are chosen from fewer than all."""
        return (self.matrix.out_features - self.ids.size) // 2

    @staticmethod
    def of(matrix: Matrix, size: int, ranking: Sequence[int] = ()) -> CommonTokens:
        """The first `size` tokens of a ranking, filled up with the lowest ids; evaluated."""
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
    """Gives a drafter the readout for a request: the whole vocabulary, or a draft vocabulary.

    Attributes:
        full: the readout over every token that the drafter can propose.
        cut: the tokens that draft vocabularies begin with; None uses the full readout.
    """

    full: Readout
    cut: CommonTokens | None = None

    def with_head(self, head: Correction | None) -> DraftOutput:
        """The same output with a head that corrects the logits."""
        return replace(self, full=replace(self.full, head=head))

    @property
    def size(self) -> int:
        """Tokens that draft vocabularies begin with; 0 when the full readout is used."""
        return self.cut.ids.size if self.cut else 0

    def vocabulary(self, prompt: Iterable[int]) -> DraftVocabulary | None:
        """A new request's draft vocabulary, with its prompt's tokens; None for the whole one."""
        if self.cut is None:
            return None
        vocabulary = DraftVocabulary(self.cut, self.full)
        vocabulary.add(prompt)
        return vocabulary

    def readout(self, vocabulary: DraftVocabulary | None) -> Readout:
        """The readout for a request's next draft; `vocabulary` is what `vocabulary()` gave."""
        return vocabulary.readout() if vocabulary else self.full


def parse_setting(value: object) -> Setting:
    """The `draft_vocabulary` setting from a flag's text or an argument's value.

    Raises:
        InputError: the value is neither "auto", "full" nor a whole number of at least 1.
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
    """How many of `vocab_size` tokens to keep; None for all of them.

    "auto" keeps a sixth when at least as many tokens are ranked by frequency, else a quarter, and
    in either case at least `MIN_SIZE`. It keeps all where that would drop less than half.

    Args:
        setting: "auto", "full" or a number of tokens.
        vocab_size: tokens of the whole vocabulary.
        ranked: how many tokens are ranked by how often the target writes them.
    """
    if setting == "full":
        return None
    if setting == "auto":
        sixth = max(MIN_SIZE, vocab_size // 6)
        size = sixth if ranked >= sixth else max(MIN_SIZE, vocab_size // 4)
        return size if size <= vocab_size // 2 else None
    return setting if setting < vocab_size else None


class DraftVocabulary:
    """One request's draft vocabulary: the common tokens and all tokens of the request's text.

    When many of the newest tokens were not in it (in a language whose tokens have high ids, say),
    the whole vocabulary is used until few of them are new.

    Args:
        common: tokens that the draft vocabulary begins with.
        full: the readout over the whole vocabulary.
    """

    def __init__(self, common: CommonTokens, full: Readout) -> None:
        self._common = common
        self._full = full
        self._seen: dict[int, None] = {}
        self._misses: deque[bool] = deque(maxlen=_WINDOW)
        self._cut: Readout | None = None

    def add(self, tokens: Iterable[int]) -> None:
        """Add tokens that were not drafted against this vocabulary, such as the prompt's."""
        new = [t for t in tokens if not self._contains(t)]
        if new:
            self._seen.update(dict.fromkeys(new))
            self._cut = None

    def commit(self, tokens: Iterable[int]) -> None:
        """Add committed tokens, and count those that were not in the draft vocabulary."""
        for token in tokens:
            missed = not self._contains(token)
            self._misses.append(missed)
            if missed:
                self.add((token,))

    def _contains(self, token: int) -> bool:
        return token in self._common.members or token in self._seen

    @property
    def seen(self) -> Collection[int]:
        """The request's tokens that are not common ones."""
        return self._seen.keys()

    @property
    def drafts_from_all(self) -> bool:
        """Whether the whole vocabulary is used now."""
        return len(self._seen) > self._common.max_seen or sum(self._misses) > _MAX_MISSES

    def readout(self) -> Readout:
        """The readout for the next draft."""
        if self.drafts_from_all:
            return self._full
        if self._cut is None:
            self._cut = cut_down(self._common, self._full, self._seen)
        return self._cut


class SharedVocabulary:
    """One readout for the drafts of several requests: the tokens of all their texts.

    For requests whose output does not depend on which tokens could have been drafted.

    Args:
        output: the drafter's.
    """

    def __init__(self, output: DraftOutput) -> None:
        self._output = output
        self._cut: Readout | None = None
        self._sizes: list[int] = []
        self._drafts = 0

    def readout(self, vocabularies: Sequence[DraftVocabulary]) -> Readout:
        """The readout for the next draft of requests with these vocabularies.

        New tokens of their texts are taken in every few drafts, since each time copies matrices.
        """
        common, full = self._output.cut, self._output.full
        assert common is not None  # else no request has a vocabulary
        sizes = [len(vocabulary.seen) for vocabulary in vocabularies]
        self._drafts += 1
        due = len(sizes) != len(self._sizes) or self._drafts >= _SHARED_DRAFTS
        if self._cut is None or (due and sizes != self._sizes):
            self._sizes, self._drafts = sizes, 0
            seen = dict.fromkeys(token for v in vocabularies for token in v.seen)
            self._cut = full if len(seen) > common.max_seen else cut_down(common, full, seen)
        return self._cut


def cut_down(common: CommonTokens, full: Readout, seen: Iterable[int]) -> Readout:
    """The readout over the common tokens and those of a text, which are others."""
    more = mx.array(list(seen), dtype=mx.int32)
    ids = mx.concatenate([common.ids, more])
    head = full.head
    if head is not None:
        # The cut matrix is copied whole: two parts would cost two products a slot.
        head = replace(head, w2=head.w2.take(ids))  # type: ignore[type-var]
    rows, rest = common.rows, common.matrix.take(more)
    # The readout is kept for later rounds, which another thread may compute.
    mx.async_eval(arrays_of([ids, head, rest]))

    def logits(hidden: mx.array) -> mx.array:
        return mx.concatenate([rows(hidden), rest(hidden)], axis=-1)

    return Readout(logits if more.size else rows, head, ids, full.matrix)
