"""Taps: records the outputs of chosen layers during an mlx-lm model's own forward.

A tapped layer object becomes an instance of a subclass of its class, whose call records its output.
Other models and the class itself do not change. All logits come from the model's own forward.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.linear import Matrix
from ..errors import InputError
from ..sampling import finite_rows
from .turns import Turns

_EMBEDDING_NAMES = ("embed_tokens", "wte", "embed_in", "tok_embeddings", "embeddings", "embedding")
_HEAD_NAMES = ("lm_head", "embed_out", "output")
_EMBEDDING_TYPES = (nn.Embedding, nn.QuantizedEmbedding)
_LINEAR_TYPES = (nn.Linear, nn.QuantizedLinear)


class Target:
    """A model whose forward also yields its taps.

    Args:
        model: an mlx-lm model; its tapped layers change class until `close`.
        taps: layers whose output to record, -1 for the embedding output.
        where: names the model in errors.

    Attributes:
        where: names the model in errors.
        turns: the lock to hold while the model runs or changes; all targets of a model share it.
        num_layers: number of the model's layers.
        hidden_size: width of a tap.
        vocab_size: rows of the embedding table.

    Raises:
        InputError: a tap is not a layer of this model, its layers are tapped already, or it does
            not have exactly one embedding table.
    """

    def __init__(self, model: nn.Module, taps: Iterable[int], where: object) -> None:
        self.model = model
        self.where = where
        self.turns = Turns()
        self._layers: Sequence[nn.Module] = model.layers
        self._embedding = _find_embedding(model, where)
        own_head = _find_head(model, self._embedding)
        self._tied = own_head is None
        self._head_module = self._embedding if own_head is None else own_head
        self._taps = tuple(taps)
        # All targets of one model share this set, the recorded taps and the tapped layers.
        self._every = set(self._taps)
        self._recorded: dict[int, mx.array] = {}
        self._tapped: list[tuple[nn.Module, type, type]] = []
        self.num_layers = len(self._layers)
        self.vocab_size, self.hidden_size = _embedding_shape(self._embedding)
        self._check(where)
        self._attach(where)

    def sharing(self, taps: Iterable[int], where: object) -> Target:
        """A target of the same model with other taps; closing either of them closes both.

        Args:
            taps, where: see `Target`.

        Raises:
            InputError: a tap is not a layer of this model.
        """
        other = copy.copy(self)
        other._taps = tuple(taps)
        other._check(where)
        with self.turns:
            self.close()
            self._tapped.clear()
            self._every.update(other._taps)
            self._attach(where)
        return other

    def __call__(self, tokens: mx.array, caches: list[Any]) -> tuple[mx.array, list[mx.array]]:
        """Run the model's own forward over new tokens, int `[rows]`.

        Returns:
            Logits `[rows, vocabulary]`, and one `[rows, hidden]` per tap in the order of `taps`.

        Raises:
            InputError: the target was closed.
        """
        with self.turns:
            logits = self.model(tokens[None], cache=caches)
            taps = self._take()
        return logits.squeeze(0), [tap.squeeze(0) for tap in taps]

    def embed(self, tokens: mx.array) -> mx.array:
        """Rows of the embedding table without the model's scale: int `[n]` to `[n, hidden]`."""
        return self._embedding(tokens)

    def logits(self, hidden: mx.array) -> mx.array:
        """The output matrix without scale or softcap: `[n, hidden]` to `[n, vocabulary]`."""
        return self._embedding.as_linear(hidden) if self._tied else self._head_module(hidden)

    def record(self, tokens: mx.array) -> tuple[list[mx.array], mx.array]:
        """Taps of whole texts, and the output matrix's input; no logits are evaluated.

        Args:
            tokens: int `[batch, length]`; shorter texts are padded at their end.

        Returns:
            One `[batch, length, hidden]` per tap, and the output matrix's input of the same shape.

        Raises:
            InputError: the model's forward does not call its output matrix.
        """
        recorded: list[mx.array] = []
        with self.turns:
            module, original = self._head_module, type(self._head_module)
            module.__class__ = _recording_head(original, self._tied, recorded)
            try:
                self.model(tokens)
            finally:
                module.__class__ = original
            taps = self._take()
        if len(recorded) != 1:
            found = f"a forward that calls its output matrix {len(recorded)} times"
            raise InputError(type(self.model).__module__, found, "one call")
        return taps, recorded[0]

    @property
    def head(self) -> Matrix | None:
        """The output matrix as stored; None when it has a bias or `Matrix` cannot hold it."""
        module = self._head_module
        quantized = hasattr(module, "scales")
        if "bias" in module or (quantized and getattr(module, "mode", "affine") != "affine"):
            return None
        if not quantized:
            return Matrix(module.weight)
        return Matrix(module.weight, module.scales, module.biases, module.bits, module.group_size)

    @property
    def dtype(self) -> mx.Dtype:
        """The type of the model's hidden states."""
        return self.embed(mx.array([0])).dtype

    def close(self) -> None:
        """Remove the taps from the model; requests that still run end with an error."""
        with self.turns:
            for layer, original, _ in self._tapped:
                layer.__class__ = original
            self._recorded.clear()

    @contextlib.contextmanager
    def untapped(self) -> Iterator[None]:
        """Remove the taps while the block runs; other threads wait for the model meanwhile."""
        with self.turns:
            self.close()
            try:
                yield
            finally:
                for layer, _, tapped in self._tapped:
                    layer.__class__ = tapped

    def _take(self) -> list[mx.array]:
        """This target's taps of the last forward; all recorded arrays are released."""
        if not self._recorded.keys() >= set(self._taps):
            raise InputError(self.where, "a target that was closed", "one that is open")
        recorded = [self._recorded[tap] for tap in self._taps]
        self._recorded.clear()
        return recorded

    def _check(self, where: object) -> None:
        outside = [tap for tap in self._taps if not -1 <= tap < self.num_layers]
        if outside:
            raise InputError(where, f"{self.num_layers} layers", f"layers to tap at {outside}")

    def _attach(self, where: object) -> None:
        # The input of layer 0 is the embedding output, after the family's scaling or norm.
        indices = {max(tap, 0) for tap in self._every}
        if any(getattr(type(self._layers[i]), "_tapped", False) for i in indices):
            raise InputError(where, "a model that is tapped already", "one Target per model")
        for i in sorted(indices):
            layer = self._layers[i]
            tapped = _tapped_class(layer, i, i in self._every, -1 in self._every, self._recorded)
            self._tapped.append((layer, type(layer), tapped))
            layer.__class__ = tapped


def _tapped_class(
    layer: nn.Module, index: int, output: bool, entering: bool, recorded: dict[int, mx.array]
) -> type:
    original: Any = type(layer)
    call = original.__call__
    record_input = entering and index == 0

    def tapped_call(self: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        if record_input:
            recorded[-1] = x
        result = call(self, x, *args, **kwargs)
        if output:
            # Layers of some families return a tuple that begins with the hidden state.
            recorded[index] = result[0] if isinstance(result, tuple) else result
        return result

    names = {"__call__": tapped_call, "_tapped": True, "__module__": original.__module__}
    return type(original.__name__, (original,), names)


def _recording_head(original: Any, tied: bool, recorded: list[mx.array]) -> type:
    name = "as_linear" if tied else "__call__"
    call = getattr(original, name)

    def recording_call(self: nn.Module, x: mx.array) -> mx.array:
        recorded.append(x)
        return call(self, x)

    return type(original.__name__, (original,), {name: recording_call})


def check_taps(model: nn.Module, target: Target, untapped: mx.array, where: object) -> None:
    """Refuse a model whose taps change its logits or do not have one row per token.

    Args:
        model: the target's model.
        target: the tapped target of this model.
        untapped: `probe_logits(model)` from before the model was tapped.
        where: names the model in errors.

    Raises:
        InputError: logits are not finite or differ in any bit, or a tap has another shape.
    """
    check_logits(untapped, where)
    with target.turns:
        logits = probe_logits(model)
        recorded = target._take()
    if not mx.array_equal(logits, untapped).item():
        raise InputError(where, "other logits when its layers are tapped", "equal logits")
    shape = (1, PROBE.size, target.hidden_size)
    for tap, value in zip(target._taps, recorded, strict=True):
        if value.shape != shape:
            raise InputError(where, f"tap {tap} of shape {list(value.shape)}", f"{list(shape)}")


PROBE = mx.array([[0, 1, 2, 3, 5]])
"""A short text of token ids that every vocabulary has, int `[1, 5]`."""


def probe_logits(model: nn.Module) -> mx.array:
    """Logits of `PROBE`, `[1, 5, vocabulary]`, computed without a cache."""
    return model(PROBE)


def check_logits(logits: mx.array, where: object) -> None:
    """Refuse a model with logits that no token can be chosen from.

    Args:
        logits: the model's `probe_logits`.
        where: names the model in errors.

    Raises:
        InputError: a row has NaN or +inf, or is all -inf.
    """
    if not finite_rows(logits).all().item():
        raise not_finite_error(where, "for a few fixed tokens")


def not_finite_error(where: object, tokens: str) -> InputError:
    """The error for a model whose logits are not finite; `tokens` says for which tokens."""
    found = f"logits that are not finite {tokens}"
    hint = "Weights may be damaged, or overflow in their precision; float32 holds more."
    return InputError(where, found, "finite numbers", hint)


def _find_embedding(model: nn.Module, where: object) -> Any:
    tables = [(n, m) for n, m in model.named_modules() if isinstance(m, _EMBEDDING_TYPES)]
    named = [(n, m) for n, m in tables if n.rsplit(".", 1)[-1] in _EMBEDDING_NAMES]
    if len(named) != 1:
        found = ", ".join(name for name, _ in tables) or "none"
        expected = f"exactly one that is named {' or '.join(_EMBEDDING_NAMES)}"
        raise InputError(where, f"embedding tables {found}", expected)
    return named[0][1]


def _find_head(model: nn.Module, embedding: Any) -> Any:
    """The output matrix's module; None when the output matrix is the embedding table."""
    rows, _ = _embedding_shape(embedding)
    for name, module in model.named_modules():
        named = name.rsplit(".", 1)[-1] in _HEAD_NAMES
        if named and isinstance(module, _LINEAR_TYPES) and module.weight.shape[0] == rows:
            return module
    return None


def _embedding_shape(embedding: Any) -> tuple[int, int]:
    rows, columns = embedding.weight.shape
    bits = getattr(embedding, "bits", None)
    return rows, columns * 32 // bits if bits else columns
