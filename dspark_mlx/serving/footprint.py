"""What a request takes of the device's memory: caches, drafter context, and the widest forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from ..caches import bytes_at
from ..caches.batch_attention import ROOM
from ..caches.slots import slots_for
from ..engine.state import Engine

_PROBED = 8
# Rows of hidden states and of the feed-forward part that one layer has at a time, and copies of
# attention's scores and of a block's logits: measured on llama's layers, and rounded up.
_HIDDEN, _WIDE, _SCORES, _LOGITS = 12, 3, 2, 4
_FUSED = (64, 80, 128)
"""Head sizes for which MLX's Metal kernels keep no scores."""


class Footprint:
    """Bytes that requests of a target and its drafter take.

    The sizes are those of the arrays that a forward over a few tokens would make; it is not
    computed.

    Args:
        engine: the target and the drafter.
        config: the target's config.json.
    """

    def __init__(self, engine: Engine, config: Mapping[str, Any]) -> None:
        target, drafter = engine.target, engine.drafter
        tokens = mx.zeros((_PROBED,), mx.int32)
        self._target = target
        self._settings = settings = target.cache_settings
        self._context = drafter.new_context([0]) if drafter is not None else None
        with target.turns:
            self._caches = target.new_caches()
            _, taps = target(tokens, self._caches)
            if drafter is not None and self._context is not None:
                drafter.extend(self._context, taps, tokens)
                drafter.flush(self._context)
                self._context.vocabulary = None  # sizes are all that is asked for
        self._quantized: list[Any] | None = None
        if settings.kv_bits is not None:
            bits = settings.kv_group_size, settings.kv_bits
            self._quantized = [
                cache.to_quantized(*bits) if type(cache) is KVCache else cache
                for cache in self._caches
            ]
        # Probabilities are float32, whatever the logits are.
        block = drafter.config.gamma + 1 if drafter is not None else 1
        self._logits = _LOGITS * 4 * block * target.vocab_size
        self._item = target.dtype.size
        self._taps = len(taps) * target.hidden_size
        self._widths = _Widths(config, target.hidden_size)

    def caches(self, tokens: int, rows: int) -> int:
        """Bytes of a request's caches and drafter context at a number of positions.

        Args:
            tokens: positions.
            rows: of the widest forward.
        """
        context = self._context.bytes_at(tokens, rows) if self._context is not None else 0
        if self._target.compiled:
            tokens = slots_for(tokens)
        if self._quantized is None:
            return bytes_at(self._caches, tokens, rows) + context
        # A chunk that crosses the switch is written as it is.
        plain = min(tokens, self._settings.quantized_kv_start + rows)
        before = bytes_at(self._caches, plain, rows)
        return max(before, bytes_at(self._quantized, tokens, rows)) + context

    def forward(self, rows: int, keys: int) -> int:
        """Bytes that a forward over so many rows holds at most, beside the caches.

        Args:
            rows: tokens of the forward; counted as those of a verify forward at least.
            keys: positions that they attend to.
        """
        widths, rows = self._widths, max(rows, ROOM)
        row = _HIDDEN * widths.hidden + _WIDE * widths.wide + self._taps
        scores = 0
        on_cpu = mx.default_device().type == mx.DeviceType.cpu
        if on_cpu or self._quantized is not None or widths.head not in _FUSED:
            scores = _SCORES * widths.heads * keys
        return self._item * rows * (row + scores) + self._logits


class _Widths:
    """Numbers of a target's config.json, with usual ones in place of what it does not say."""

    def __init__(self, config: Mapping[str, Any], hidden: int) -> None:
        text = config.get("text_config")
        self._config = {**config, **(text if isinstance(text, Mapping) else {})}
        self.hidden = hidden
        self.heads = self._number("num_attention_heads", max(hidden // 64, 1))
        self.head = self._number("head_dim", hidden // self.heads)
        each = self._number("moe_intermediate_size", 0) * self._number("num_experts_per_tok", 1)
        self.wide = max(self._number("intermediate_size", 4 * hidden), each)

    def _number(self, name: str, default: int) -> int:
        value = self._config.get(name)
        return value if isinstance(value, int) and value > 0 else default
