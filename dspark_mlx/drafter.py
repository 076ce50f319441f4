"""The drafter: parallel backbone, context cache, sequential head, confidence head -> Draft.

Knows token ids and arrays only; what loads, schedules or verifies stands elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from .backbone import Backbone
from .calibration import identity
from .calibrations import Calibrations
from .config import DrafterConfig
from .heads import SequentialHead
from .heads.confidence import ConfidenceHead
from .matrix import Matrix
from .sampling import Pick
from .types import Draft
from .vocabulary import DraftVocabulary, Readout


@dataclass
class DrafterContext:
    """Tap features of the committed tokens before the anchor, as each layer's cached K/V.

    Features that arrived since the last draft wait in `pending`, so that one product projects them
    and one write per layer takes them and the block's rows together. `vocabulary` is the request's
    draft vocabulary, None for the whole one; `temperatures` are those of its confidences, float32
    `[gamma]`.
    """

    caches: list[KVCache]
    temperatures: mx.array
    vocabulary: DraftVocabulary | None = None
    pending: list[mx.array] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Committed positions covered, the pending ones included."""
        return self.caches[0].offset + sum(rows.shape[0] for rows in self.pending)

    def commit(self, tokens: Iterable[int]) -> None:
        """Tell the draft vocabulary what was committed."""
        if self.vocabulary:
            self.vocabulary.commit(tokens)

    def arrays(self) -> list[mx.array]:
        """Everything it holds on the device."""
        kept = [a for c in self.caches if c.keys is not None for a in (c.keys, c.values)]
        return kept + self.pending


class Drafter:
    """A drafter bound to its target's embedding and head.

    Args:
        config: the canonical configuration.
        backbone: the parallel backbone.
        head: the sequential head; None for a DFlash drafter.
        confidence: the confidence head; None without one.
        embed: token ids `[n]` to embeddings `[n, hidden]`, normally the target's table.
        logits: hidden rows `[n, hidden]` to base logits `[n, output size]`, normally the target's
            head.
        ids: token ids of a reduced draft vocabulary, int32 `[output size]`; None for the whole one.
        vocabulary: the output matrix and how many of its first rows drafts are cut down to; None
            reads out every row.
        calibrations: of the confidence head; None takes it as it is.
    """

    def __init__(
        self,
        config: DrafterConfig,
        backbone: Backbone,
        head: SequentialHead | None,
        confidence: ConfidenceHead | None,
        embed: Callable[[mx.array], mx.array],
        logits: Callable[[mx.array], mx.array],
        ids: mx.array | None = None,
        vocabulary: tuple[Matrix, int] | None = None,
        calibrations: Calibrations | None = None,
    ) -> None:
        self.config = config
        self._backbone = backbone
        self._readout = Readout(logits, head, ids)
        self._confidence = confidence
        self._embed = embed
        self._vocabulary = vocabulary
        self.calibrations = calibrations or Calibrations({0.0: identity(config.gamma)})
        self._masks = mx.full((config.block_size - 1,), config.mask_token_id, dtype=mx.int32)

    @property
    def vocabulary_size(self) -> int:
        """Tokens that drafts are chosen from, before a request has shown any more."""
        return self._vocabulary[1] if self._vocabulary else self.config.output_size

    def new_context(self, prompt: Iterable[int] = (), temperature: float = 0.0) -> DrafterContext:
        """An empty context, for a request whose prompt has these tokens.

        Args:
            prompt: token ids.
            temperature: the request's sampling temperature, for its confidences.
        """
        vocabulary = None
        if self._vocabulary:
            matrix, size = self._vocabulary
            vocabulary = DraftVocabulary(size, matrix, self._readout)
            vocabulary.add(prompt)
        caches = [KVCache() for _ in range(self.config.num_layers)]
        calibration = self.calibrations.at(temperature)
        return DrafterContext(caches, mx.array(calibration.temperatures), vocabulary)

    def extend(self, context: DrafterContext, taps: Sequence[mx.array]) -> None:
        """Append committed tokens' features.

        Args:
            context: changed in place.
            taps: one `[rows, target_hidden]` per tap, in the configuration's order.
        """
        context.pending.append(mx.concatenate(list(taps), axis=-1))

    def flush(self, context: DrafterContext) -> None:
        """Move the pending features into the K/V cache now, as a long prefill does by chunk."""
        rows = self._take_pending(context)
        if rows is not None:
            self._backbone.extend(context.caches, rows)

    def draft(self, context: DrafterContext, anchor: mx.array, pick: Pick) -> Draft:
        """Propose a block after the anchor (paper section 3.1), nothing read back to the host.

        Args:
            context: holds every committed token before the anchor; its pending rows are taken in.
            anchor: the newest committed token, int `[1]`, at position `context.length`.
            pick: chooses the tokens, slot by slot.
        """
        hidden = self._block(context, anchor)[self.config.logits_start :]
        readout = context.vocabulary.readout() if context.vocabulary else self._readout
        base, gamma = readout.logits(hidden), self.config.gamma
        tokens: list[mx.array] = []
        columns, logits, weights, embeddings = [], [], [], []
        previous, state = anchor, None
        rows = zip(mx.split(base, gamma), mx.split(hidden, gamma), strict=True)
        for row, hidden_row in rows:
            if readout.head is not None:
                row, embedding, state = readout.head.step(row, previous, hidden_row, state)
                embeddings.append(embedding)
            column, weight = pick(row, readout.ids, tokens)
            previous = readout.tokens(column)
            tokens.append(previous)
            columns.append(column)
            logits.append(row)
            if weight is not None:
                weights.append(weight)
        odds = confidence = None
        if self._confidence is not None:
            odds = self._confidence(hidden, mx.concatenate(embeddings) if embeddings else None)
            confidence = mx.sigmoid(odds / context.temperatures)
        return Draft(
            mx.concatenate(tokens),
            mx.concatenate(logits),
            odds,
            confidence,
            hidden,
            base,
            readout.ids,
            mx.concatenate(columns),
            mx.concatenate(weights) if weights else None,
        )

    def _block(self, context: DrafterContext, anchor: mx.array) -> mx.array:
        x = self._embed(mx.concatenate([anchor, self._masks]))
        return self._backbone.block(context.caches, x, self._take_pending(context))

    def _take_pending(self, context: DrafterContext) -> list[mx.array] | None:
        """Context K/V of all layers for the pending features."""
        if not context.pending:
            return None
        pending, context.pending = context.pending, []
        features = pending[0] if len(pending) == 1 else mx.concatenate(pending)
        return self._backbone.context_rows(features)
