"""Training forwards of the drafters of whole blocks: DSpark, DFlash and DFlash 2."""

from __future__ import annotations

import mlx.core as mx

from ...drafters.base import Embed
from ...drafters.dflash2.config import DFlash2Config
from ...drafters.dflash2.selector import Selector
from ...drafters.dspark.config import BlockConfig, DSparkConfig
from ...drafters.heads import load_head
from ...drafters.tensors import DrafterTensors
from .blocks import TrainingBlocks, block_hidden
from .forward import BlockRows, Features, TrainingBatch, slot_positions


class _Parallel:
    """The backbone's rows of all blocks.

    Args:
        config: the canonical configuration, unquantised.
        embed: token ids `[n]` to embeddings `[n, hidden]`.
        checkpoint: see `block_hidden`.
    """

    def __init__(self, config: BlockConfig, embed: Embed, checkpoint: bool) -> None:
        self._block = config
        self._embed = embed
        self._checkpoint = checkpoint

    def _hidden(
        self, stored: DrafterTensors, batch: TrainingBatch, features: Features
    ) -> tuple[mx.array, mx.array]:
        """The slots' rows `[blocks, gamma, hidden]`, and the token before each, `[blocks, gamma]`.

        The tokens are the text's own instead of drafts (teacher forcing).
        """
        config = self._block
        anchor_tokens = mx.take_along_axis(batch.tokens, batch.anchors, axis=1)
        masks = mx.full((*batch.anchors.shape, config.block_size - 1), config.mask_token_id)
        ids = mx.concatenate([anchor_tokens[..., None], masks.astype(mx.int32)], axis=-1)
        embeddings = self._embed(ids.reshape(-1)).reshape(*ids.shape, -1)
        blocks = TrainingBlocks(
            mx.concatenate(features.taps, axis=-1), batch.anchors, mx.stop_gradient(embeddings)
        )
        hidden = block_hidden(stored, config, blocks, checkpoint=self._checkpoint)
        hidden = hidden[:, :, config.logits_start :]
        before, _ = slot_positions(batch, config.gamma)
        return hidden.reshape(-1, *hidden.shape[2:]), batch.tokens.reshape(-1)[before]


class DSparkForward(_Parallel):
    """See `TrainingForward`; the sequential head corrects the slots' logits one after the other."""

    def __init__(self, config: DSparkConfig, embed: Embed, checkpoint: bool) -> None:
        super().__init__(config, embed, checkpoint)
        self._head = config.head

    def __call__(
        self, stored: DrafterTensors, batch: TrainingBatch, features: Features
    ) -> BlockRows:
        """See `TrainingForward`."""
        hidden, previous = self._hidden(stored, batch, features)
        head = load_head(self._head, stored)
        if head is None:
            return BlockRows(hidden)
        vectors, embeddings, state = [], [], None
        for slot in range(hidden.shape[1]):
            vector, embedding, state = head.vector(previous[:, slot], hidden[:, slot], state)
            vectors.append(vector)
            embeddings.append(embedding)
        return BlockRows(
            hidden, mx.stack(vectors, axis=1), head.w2.weight, mx.stack(embeddings, axis=1)
        )


class DFlash2Forward(_Parallel):
    """See `TrainingForward`; the selector corrects the logits of all tokens, not of a few.

    Which few it will choose from is not known before the logits are computed, so that these are
    learnt too, without its corrections.
    """

    def __init__(self, config: DFlash2Config, embed: Embed, checkpoint: bool) -> None:
        super().__init__(config, embed, checkpoint)
        self._top_k = config.selector_top_k

    def __call__(
        self, stored: DrafterTensors, batch: TrainingBatch, features: Features
    ) -> BlockRows:
        """See `TrainingForward`."""
        hidden, previous = self._hidden(stored, batch, features)
        selector = Selector.load(self._top_k, stored)
        vectors = selector.vector(previous, hidden)
        return BlockRows(hidden, vectors, selector.successor.weight, chosen_by_base=True)
