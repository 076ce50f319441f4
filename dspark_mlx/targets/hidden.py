"""The hidden state among what a layer is given and gives back, in families that keep several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..deepseek_v4.hyper_connections import mean_of_copies
from ..deepseek_v4.layer import Layer


def entering_hidden(layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> mx.array:
    """The hidden state `[batch, rows, hidden]` that a call gives to a layer.

    It is the first array, passed by position or, as GPT-J does, by name.
    """
    arrays = [value for value in (*args, *kwargs.values()) if isinstance(value, mx.array)]
    return _one_stream(layer, arrays)


def leaving_hidden(layer: nn.Module, result: Any) -> mx.array:
    """The hidden state `[batch, rows, hidden]` that a layer returns, alone or first in a tuple."""
    return _one_stream(layer, list(result) if isinstance(result, tuple) else [result])


def _one_stream(layer: nn.Module, values: Sequence[Any]) -> mx.array:
    """What the next layer's own parts read, of one stream or of several.

    Gemma 3n keeps `[streams, batch, rows, hidden]`, one of which is active: the stream that
    attention and the output matrix work on. DeepSeek V4 and V4.1 keep copies `[batch, rows, copies,
    hidden]`, which stay apart here, see `of_copies`; V4.1 hands the weights `[batch, rows, copies]`
    along that mix them for the next layer.
    """
    first: mx.array = values[0]
    if first.ndim != 4:
        return first
    if "altup" in layer:
        return first[layer.altup.config.altup_active_idx]
    mix = values[1] if len(values) > 1 else None
    mixed = isinstance(mix, mx.array) and mix.shape == first.shape[:3]
    # What is not known here is refused by its width.
    return first if mixed or isinstance(layer, Layer) else first.flatten(2)


def of_copies(hidden: mx.array, whole: bool) -> mx.array:
    """A recorded hidden state as a tap, `[batch, rows, width]`.

    Args:
        hidden: `[batch, rows, hidden]`, or copies of it, `[batch, rows, copies, hidden]`.
        whole: False for the mean over the copies, which DSpark's heads read; True for all of them
            behind each other.
    """
    if hidden.ndim != 4:
        return hidden
    return hidden.flatten(-2) if whole else mean_of_copies(hidden)
