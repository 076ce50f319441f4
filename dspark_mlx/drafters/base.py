"""What the decode loop asks of a drafter, whatever its method, and what a drafter keeps of a text.

Knows token ids and arrays only; what loads, schedules or verifies stands elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from ..calibration.by_temperature import Calibrations
from ..checkpoint.base_config import CanonicalConfig
from ..sampling import Pick
from ..types import Draft
from .tensors import DrafterTensors
from .vocabulary import DraftOutput, DraftVocabulary

Embed: TypeAlias = Callable[[mx.array], mx.array]
"""Token ids `[n]` to embeddings `[n, hidden]`."""


@dataclass(frozen=True)
class Pending:
    """Features of committed tokens.

    Attributes:
        taps: one `[rows or more, target_hidden]` a tap.
        tokens: those that the features belong to, int `[rows or more]`.
        rows: how many of both count.
    """

    taps: tuple[mx.array, ...]
    tokens: mx.array
    rows: int


@dataclass
class DrafterContext:
    """Tap features of the committed tokens before the anchor, as each layer's cached K/V.

    Features that arrived since the last draft wait in `pending`, so that one product projects them
    and one write per layer takes them and the block's rows together. They wait as the forward left
    them, evaluated, since the next draft may be made by another thread. `vocabulary` is the
    request's draft vocabulary, None for the whole one; `confidence_temperatures` calibrate its
    confidences, float32 `[gamma]`.
    """

    caches: list[KVCache]
    confidence_temperatures: mx.array
    vocabulary: DraftVocabulary | None = None
    pending: list[Pending] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Committed positions covered, the pending ones included."""
        return self.caches[0].offset + sum(waiting.rows for waiting in self.pending)

    def add(self, taps: Sequence[mx.array], tokens: mx.array, rows: int | None) -> None:
        """Append committed tokens, see `Drafter.extend`."""
        self.pending.append(Pending(tuple(taps), tokens, tokens.size if rows is None else rows))

    def take(self) -> tuple[mx.array, mx.array] | None:
        """The pending features `[rows, taps * target_hidden]` and tokens `[rows]`, given away."""
        if not self.pending:
            return None
        pending, self.pending = self.pending, []
        features = [mx.concatenate([tap[: p.rows] for tap in p.taps], axis=-1) for p in pending]
        tokens = [p.tokens[: p.rows] for p in pending]
        if len(pending) == 1:
            return features[0], tokens[0]
        return mx.concatenate(features), mx.concatenate(tokens)

    def trim(self, rows: int) -> None:
        """Take back the last rows that a draft or a flush moved into the cache."""
        for cache in self.caches:
            cache.trim(rows)

    def commit(self, tokens: Iterable[int]) -> None:
        """Tell the draft vocabulary what was committed."""
        if self.vocabulary:
            self.vocabulary.commit(tokens)

    def arrays(self) -> list[mx.array]:
        """Everything it holds on the device."""
        kept = [a for c in self.caches if c.keys is not None for a in (c.keys, c.values)]
        return kept + [a for p in self.pending for a in (*p.taps, p.tokens)]


class Drafter(Protocol):
    """Proposes blocks of `config.gamma` tokens, for any number of requests with a context each."""

    @property
    def config(self) -> CanonicalConfig:
        """Its canonical configuration."""
        ...

    @property
    def calibrations(self) -> Calibrations:
        """Of its confidences; temperatures of 1 where there are none."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Tokens that drafts are chosen from, before a request has shown any more."""
        ...

    def new_context(self, prompt: Iterable[int] = (), temperature: float = 0.0) -> DrafterContext:
        """An empty context, for a request whose prompt has these tokens.

        Args:
            prompt: token ids.
            temperature: the request's sampling temperature, for its confidences.
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
            context: changed in place.
            taps: one `[rows, target_hidden]` per tap, in the configuration's order.
            tokens: those that were run through the target there, int `[rows]`.
            rows: how many of them were committed; None for all.
        """
        ...

    def flush(self, context: DrafterContext) -> None:
        """Move the pending features into the K/V cache now, as a long prefill does by chunk."""
        ...

    def draft(self, context: DrafterContext, anchor: mx.array, pick: Pick) -> Draft:
        """Propose a block after the anchor (paper section 3.1), nothing read back to the host.

        Args:
            context: holds every committed token before the anchor; its pending rows are taken in,
                and of the block nothing stays.
            anchor: the newest committed token, int `[1]`, at position `context.length`.
            pick: chooses the tokens, slot by slot.
        """
        ...


class DraftingMethod(Drafter, Protocol):
    """A method's class: what reads its configuration and what makes a drafter of its tensors.

    Attributes:
        CONFIG: the canonical configuration's class, whose METHOD is the method's name.
    """

    CONFIG: ClassVar[type[CanonicalConfig]]

    @classmethod
    def load(
        cls,
        config: Any,
        tensors: DrafterTensors,
        embed: Embed,
        output: DraftOutput,
        calibrations: Calibrations | None = None,
    ) -> Drafter:
        """A drafter of checked tensors, evaluated.

        Args:
            config: an instance of CONFIG.
            tensors: the folder's.
            embed: token ids `[n]` to embeddings `[n, hidden]`, normally the target's table.
            output: how hidden rows are read out; it has no sequential head yet.
            calibrations: of its confidences; None takes them as they are.
        """
        ...
