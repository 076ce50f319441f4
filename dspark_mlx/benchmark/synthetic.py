"""A pair of a published model's size that needs no download, and drafts with a chosen acceptance.

The target's weights are random, but its greedy text counts upwards: its output matrix is its
embedding, moved by one row. So the text is known in closed form, the drafter runs in full on random
weights, and what it proposes is then right or wrong as a chance decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.qwen3 import Model, ModelArgs

from ..calibration.by_temperature import Calibrations
from ..calibration.sts import identity
from ..drafters.assemble import assemble
from ..drafters.base import Drafter, DrafterContext
from ..drafters.dspark.config import DSparkConfig
from ..sampling import Pick
from ..targets.tap import Target
from ..types import Draft

GAMMA = 7
"""Tokens of a block, as published drafters have."""

_DRAFTER_LAYERS = 5
_EPS, _ROPE = 1e-6, 1e6
_STEP = 50.0


@dataclass(frozen=True)
class Shape:
    """Widths and depths of a target; all are built as Qwen3 is, whatever their family does more.

    Attributes:
        hidden, layers, intermediate, heads, kv_heads, head_dim, vocabulary: as in config.json.
        rank: rank of the drafter's sequential head.
    """

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    rank: int = 256

    @property
    def taps(self) -> tuple[int, ...]:
        """Five layers, evenly spread."""
        return tuple(round(i * (self.layers - 2) / 4) for i in range(5))


SHAPES = {
    "qwen3-4b": Shape(2560, 36, 9728, 32, 8, 128, 151936),
    "qwen3-8b": Shape(4096, 36, 12288, 32, 8, 128, 151936),
    "gemma4-12b": Shape(3840, 48, 15360, 16, 8, 256, 262144),
    "llama-1b": Shape(2048, 16, 8192, 32, 8, 64, 128256),
    "tiny": Shape(128, 8, 256, 4, 2, 32, 1024, rank=16),
}


def counting_target(shape: Shape, bits: int) -> Target:
    """A random target whose greedy text counts upwards; 16 bits are bfloat16."""
    mx.random.seed(0)
    model = Model(
        ModelArgs(
            model_type="qwen3",
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            intermediate_size=shape.intermediate,
            num_attention_heads=shape.heads,
            rms_norm_eps=_EPS,
            vocab_size=shape.vocabulary,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=4096,
            rope_theta=_ROPE,
            head_dim=shape.head_dim,
            tie_word_embeddings=False,
        )
    )
    # Long rows: what the layers add to them does not change which row of the head fits best.
    embedding = _STEP * mx.random.normal((shape.vocabulary, shape.hidden))
    model.model.embed_tokens.weight = embedding
    model.lm_head.weight = mx.roll(embedding, 1, 0) / _STEP
    model.set_dtype(mx.bfloat16)
    if bits < 16:
        nn.quantize(model, group_size=64, bits=bits)
    mx.eval(model.parameters())
    return Target(model, shape.taps, f"{bits} bits")


def random_drafter(target: Target, shape: Shape) -> Drafter:
    """A random bfloat16 drafter of five layers of the target's widths."""
    config = DSparkConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_layers=_DRAFTER_LAYERS,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=_EPS,
        vocab_size=shape.vocabulary,
        target_hidden_size=shape.hidden,
        target_num_layers=shape.layers,
        taps=shape.taps,
        block_size=GAMMA,
        logits_start=0,
        mask_token_id=0,
        rope_theta=_ROPE,
        head="vanilla",
        head_rank=shape.rank,
        confidence="hidden+markov",
        owns_embedding=False,
        owns_head=False,
        target="",
    )
    sizes = {f"{name}.weight": size for name, size in config.matrix_shapes().items()}
    tensors = {
        name: (0.02 * mx.random.normal(size)).astype(mx.bfloat16)
        for name, size in (sizes | dict(config.vector_shapes())).items()
    }
    return assemble(config, tensors, target.embed, target.logits, mx.bfloat16, dequantize=False)


class KnownDrafter:
    """A drafter that runs in full, and whose tokens are right with known chances.

    Chances differ by block and by slot, as those of trained drafters do.

    Args:
        inner: the drafter that runs.
        acceptance: mean chance that a token is right.
        informed: whether confidences are the chances; else they are noise from 0.3 to 0.7.
        seed: of chances and noise.
    """

    def __init__(
        self, inner: Drafter, acceptance: float, informed: bool = True, seed: int = 0
    ) -> None:
        self._inner = inner
        self.config = inner.config
        self.calibrations = Calibrations({0.0: identity(GAMMA)})
        self.vocabulary_size = inner.vocabulary_size
        self._informed = informed
        self._rng = np.random.default_rng(seed)
        spread = 1.1 * np.random.default_rng(1).normal(size=4001)
        levels = np.linspace(-8, 8, 3201)
        means = [(1 / (1 + np.exp(-level - spread))).mean() for level in levels]
        self._level = float(levels[np.searchsorted(means, acceptance)])

    def new_context(self, prompt: Iterable[int] = (), temperature: float = 0.0) -> DrafterContext:
        """See `Drafter.new_context`."""
        return self._inner.new_context(prompt, temperature)

    def extend(
        self,
        context: DrafterContext,
        taps: Sequence[mx.array],
        tokens: mx.array,
        rows: int | None = None,
    ) -> None:
        """See `Drafter.extend`."""
        self._inner.extend(context, taps, tokens, rows)

    def flush(self, context: DrafterContext) -> None:
        """See `Drafter.flush`."""
        self._inner.flush(context)

    def draft(self, context: DrafterContext, anchor: mx.array, pick: Pick) -> Draft:
        """See `Drafter.draft`."""
        return self.known(self._inner.draft(context, anchor, pick), anchor)

    def known(self, draft: Draft, anchor: mx.array) -> Draft:
        """The inner drafter's block after an anchor, with tokens that are right as chances say."""
        assert draft.confidence is not None
        block, slots = self._rng.normal(), self._rng.normal(size=GAMMA)
        chances = 1 / (1 + np.exp(-self._level - 0.9 * block - 0.6 * slots))
        wrong = self._rng.random(GAMMA) >= chances
        shown = chances if self._informed else self._rng.uniform(0.3, 0.7, GAMMA)
        steps = np.arange(1, GAMMA + 1) + 5 * wrong
        # Nothing of the draft may be left out of the graph.
        tokens = (anchor + mx.array(steps.astype(np.int32))) % self.vocabulary_size
        tokens = (tokens + 0 * draft.tokens).astype(mx.int32)
        confidence = mx.array(shown.astype(np.float32)) + 0 * draft.confidence
        return replace(draft, tokens=tokens, columns=tokens, confidence=confidence)
