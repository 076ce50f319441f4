"""The interface of a drafter, the same for every method, and its context of a request.

This module knows token ids and arrays only; loading, scheduling and verifying are elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self, TypeAlias

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from ..caches.trimmable import PlainCache
from ..calibration.by_temperature import Calibrations
from ..checkpoint.base_config import CanonicalConfig
from ..sampling import Pick
from ..types import Draft
from .heads.base import Correction
from .tensors import DrafterTensors
from .vocabulary import DraftOutput, DraftVocabulary

Embed: TypeAlias = Callable[[mx.array], mx.array]
"""Token ids `[n]` to embeddings `[n, hidden]`."""


@dataclass(frozen=True)
class SharedParts:
    """What drafters of all methods have beside a network of their own.

    Attributes:
        embed: token ids `[n]` to embeddings `[n, hidden]`, normally the target's table.
        output: turns hidden rows into logits; a method gives it its sequential head.
        calibrations: calibrations of the confidences; without a confidence head, the acceptance
            that some schedulers start from. None leaves drafts uncalibrated, see
            `calibration.sts.identity`.
    """

    embed: Embed
    output: DraftOutput
    calibrations: Calibrations | None = None

    def with_head(self, head: Correction | None) -> Self:
        """The same parts with a head that corrects the logits."""
        return replace(self, output=self.output.with_head(head))


@dataclass(frozen=True)
class Pending:
    """Features of committed tokens that are not in the drafter's K/V cache yet.

    Attributes:
        taps: one array per tap, `[rows or more, target_hidden]`.
        tokens: the tokens that the features belong to, int `[rows or more]`.
        rows: how many leading rows of `taps` and `tokens` were committed; later rows are ignored.
    """

    taps: tuple[mx.array, ...]
    tokens: mx.array
    rows: int


@dataclass
class DrafterContext:
    """A request's drafter context: tap features of the committed tokens before the anchor.

    Features that arrived since the last draft wait in `pending`. The next draft projects them with
    one product, and writes them together with the block's rows, one write per layer. Pending
    features are evaluated, since another thread may make the next draft.

    Attributes:
        caches: K/V made of the features, a `ContextCache` or mlx-lm's KVCache per drafter layer.
        confidence_temperatures: calibration temperatures T_k of the request, float32 `[gamma]`.
        vocabulary: the request's draft vocabulary; None for the whole vocabulary.
        pending: features that are not in `caches` yet, oldest first.
    """

    caches: Sequence[Any]
    confidence_temperatures: mx.array
    vocabulary: DraftVocabulary | None = None
    pending: list[Pending] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Number of committed tokens in the context, pending ones included."""
        return self.caches[0].offset + sum(waiting.rows for waiting in self.pending)

    def add(self, taps: Sequence[mx.array], tokens: mx.array, rows: int | None) -> None:
        """Append committed tokens and their features to `pending`, see `Drafter.extend`."""
        self.pending.append(Pending(tuple(taps), tokens, tokens.size if rows is None else rows))

    def take(self) -> tuple[mx.array, mx.array] | None:
        """Remove and return what is pending; None when nothing is.

        Returns:
            Features `[rows, taps * target_hidden]` and their tokens, int `[rows]`.
        """
        if not self.pending:
            return None
        pending, self.pending = self.pending, []
        features = [mx.concatenate([tap[: p.rows] for tap in p.taps], axis=-1) for p in pending]
        tokens = [p.tokens[: p.rows] for p in pending]
        if len(pending) == 1:
            return features[0], tokens[0]
        return mx.concatenate(features), mx.concatenate(tokens)

    def trim(self, rows: int) -> None:
        """Remove the last `rows` rows from every layer's cache."""
        for cache in self.caches:
            cache.trim(rows)

    def commit(self, tokens: Iterable[int]) -> None:
        """Add committed tokens to the request's draft vocabulary."""
        if self.vocabulary:
            self.vocabulary.commit(tokens)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that each further position takes; layers with a window have a limit, and take none.

        0 before anything is cached.
        """
        growing = [cache for cache in self.caches if not getattr(cache, "window", 0)]
        return sum(array.nbytes // array.shape[2] for array in _stored(growing))

    def bytes_at(self, tokens: int, rows: int) -> int:
        """Bytes of a context like this at so many positions, see `CacheKind.bytes_at`."""
        return sum(
            PlainCache.bytes_at(cache, tokens, rows)
            if isinstance(cache, KVCache)
            else cache.bytes_at(tokens, rows)
            for cache in self.caches
        )

    def arrays(self) -> list[mx.array]:
        """Every array that the context holds on the device, to be evaluated with the round."""
        return _stored(self.caches) + [a for p in self.pending for a in (*p.taps, p.tokens)]


def _stored(caches: Sequence[Any]) -> list[mx.array]:
    """The keys and values of caches that hold any."""
    return [a for cache in caches for a in (cache.keys, cache.values) if a is not None]


class Drafter(Protocol):
    """Proposes blocks of `config.gamma` tokens. Every request has a context of its own."""

    @property
    def config(self) -> CanonicalConfig:
        """The drafter's canonical configuration."""
        ...

    @property
    def calibrations(self) -> Calibrations:
        """Calibrations of its confidences; temperatures of 1 for a drafter without calibration."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that every request's drafts are chosen from."""
        ...

    def new_context(self, prompt: Iterable[int] = (), temperature: float = 0.0) -> DrafterContext:
        """An empty context for a new request.

        Args:
            prompt: the prompt's token ids, which are added to the request's draft vocabulary.
            temperature: the request's sampling temperature, which its calibration is chosen by.
        """
        ...

    def extend(
        self,
        context: DrafterContext,
        taps: Sequence[mx.array],
        tokens: mx.array,
        rows: int | None = None,
    ) -> None:
        """Append committed tokens and their features.

        Args:
            context: the request's context, changed in place.
            taps: one array per tap in the configuration's order, each `[rows, target_hidden]`.
            tokens: the tokens that the target's forward ran, int `[rows]`.
            rows: how many of the first rows were committed; None for all.
        """
        ...

    def flush(self, context: DrafterContext) -> None:
        """Move the pending features into the K/V cache now, as a prefill does after every chunk."""
        ...

    def draft(self, context: DrafterContext, anchor: mx.array, pick: Pick) -> Draft:
        """Propose a block after the anchor (paper section 3.1); reads nothing back to the host.

        Args:
            context: holds every committed token before the anchor. Pending rows move into its
                caches; the block's own rows do not stay in them.
            anchor: the newest committed token, int `[1]`, at position `context.length`.
            pick: chooses each slot's token.
        """
        ...


class DraftingMethod(Drafter, Protocol):
    """The class of a drafting method: its configuration's class and how its tensors are loaded.

    Attributes:
        CONFIG: the canonical configuration's class, whose METHOD is the method's name.
    """

    CONFIG: ClassVar[type[CanonicalConfig]]

    @classmethod
    def load(cls, config: Any, tensors: DrafterTensors, shared: SharedParts) -> Drafter:
        """A drafter made of checked tensors; its weights are evaluated.

        Args:
            config: an instance of CONFIG.
            tensors: the folder's tensors.
            shared: the parts of all methods; the output has no sequential head yet.
        """
        ...
