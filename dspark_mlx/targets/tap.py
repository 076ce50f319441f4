"""Taps: an mlx-lm model's own forward, with the outputs of chosen layers recorded on the way.

Only the layer objects of that one instance change: each becomes an instance of a subclass of its
own class whose call records its output. No logit is computed anywhere but in the model's forward.
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
from .hidden import entering_hidden, leaving_hidden
from .mixers import Mixers
from .rollback import Rollback
from .tables import embedding_shape, find_embedding, find_head, is_plain_table
from .turns import Turns


class Target:
    """A model whose forward also yields its taps.

    Args:
        model: an mlx-lm model; its tapped layers change class until `close`.
        taps: layers whose output to record, -1 for the embedding output.
        where: names the model in errors.

    Attributes:
        where: see above.
        turns: held by whoever runs or changes the model, shared by all targets of it.
        num_layers: depth. hidden_size: width of a tap. vocab_size: rows of the embedding.

    Raises:
        InputError: a tap is not a layer of this model, its layers are tapped already, or no single
            embedding table is found.
    """

    def __init__(self, model: nn.Module, taps: Iterable[int], where: object) -> None:
        self.model = model
        self.where = where
        self.turns = Turns()
        self._layers: Sequence[nn.Module] = model.layers
        self._embedding = find_embedding(model, where)
        own_head = find_head(model, self._embedding)
        self._tied = own_head is None
        self._head_module = self._embedding if own_head is None else own_head
        self._taps = tuple(taps)
        # Shared by all targets of one model, as is what each layer call records.
        self._every = set(self._taps)
        self._recorded: dict[int, mx.array] = {}
        self._tapped: list[tuple[nn.Module, type, type]] = []
        self.num_layers = len(self._layers)
        self.vocab_size, self.hidden_size = embedding_shape(self._embedding)
        self._check(where)
        self._mixers = Mixers(model)
        self._attach(where)

    def sharing(self, taps: Iterable[int], where: object) -> Target:
        """The same model with other taps, for a second drafter; closing either closes both.

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
        """The model's own forward over int `[rows]` new tokens.

        Returns:
            Logits `[rows, vocabulary]` and, tap by tap in the order given, `[rows, hidden]`.

        Raises:
            InputError: the target was closed.
        """
        with self.turns:
            logits = self.model(tokens[None], cache=caches)
            taps = self._take()
        return logits.squeeze(0), [tap.squeeze(0) for tap in taps]

    def verify(
        self, tokens: mx.array, caches: list[Any]
    ) -> tuple[mx.array, list[mx.array], Rollback]:
        """The same forward, with what cuts it back to the rows that are accepted.

        Returns:
            Logits and taps, see `__call__`, and the forward's rollback.

        Raises:
            InputError: the target was closed.
        """
        with self.turns:
            rollback = Rollback(self._mixers, self.turns, caches, tokens.size)
            if tokens.size == 1 or not self._mixers.modules:
                return *self(tokens, caches), rollback
            if not self._mixers.attached:
                raise self._closed()
            with self._mixers.recording() as calls:
                logits, taps = self(tokens, caches)
            rollback.calls = calls
        return logits, taps, rollback

    def embed(self, tokens: mx.array) -> mx.array:
        """Rows of the embedding table as stored: int `[n]` to `[n, hidden]`, no scaling."""
        return self._embedding(tokens)

    def logits(self, hidden: mx.array) -> mx.array:
        """The output matrix alone, no scale or softcap: `[n, hidden]` to `[n, vocabulary]`."""
        return self._embedding.as_linear(hidden) if self._tied else self._head_module(hidden)

    def record(self, tokens: mx.array) -> tuple[list[mx.array], mx.array]:
        """Taps of whole texts, and what their output matrix would read; no logit is computed.

        Args:
            tokens: int `[batch, length]`; a text shorter than the others is padded at its end.

        Returns:
            Tap by tap `[batch, length, hidden]`, and the output matrix's input, shaped the same.

        Raises:
            InputError: the model's forward does not call its output matrix.
        """
        with self.head_inputs() as recorded:
            self.model(tokens)
            taps = self._take()
        if len(recorded) != 1:
            found = f"a forward that calls its output matrix {len(recorded)} times"
            raise InputError(type(self.model).__module__, found, "once")
        return taps, recorded[0]

    @contextlib.contextmanager
    def head_inputs(self) -> Iterator[list[mx.array]]:
        """What the output matrix is given in the block, call by call; other threads wait for it."""
        recorded: list[mx.array] = []
        with self.turns:
            module, original = self._head_module, type(self._head_module)
            module.__class__ = _recording_head(original, self._tied, recorded)
            try:
                yield recorded
            finally:
                module.__class__ = original

    @property
    def head(self) -> Matrix | None:
        """The output matrix as it is stored; None where it is not one that `Matrix` can hold."""
        module = self._head_module
        if not is_plain_table(module) or "bias" in module:
            return None
        quantized = hasattr(module, "scales")
        if quantized and getattr(module, "mode", "affine") != "affine":
            return None
        if not quantized:
            return Matrix(module.weight)
        return Matrix(module.weight, module.scales, module.biases, module.bits, module.group_size)

    @property
    def dtype(self) -> mx.Dtype:
        """The type of its hidden states."""
        return self.embed(mx.array([0])).dtype

    def close(self) -> None:
        """Give the layers their own classes back; requests still running end with an error."""
        with self.turns:
            for layer, original, _ in self._tapped:
                layer.__class__ = original
            self._mixers.detach()
            self._recorded.clear()

    @contextlib.contextmanager
    def untapped(self) -> Iterator[None]:
        """The bare model for the length of the block, in which other threads wait for it."""
        with self.turns:
            self.close()
            try:
                yield
            finally:
                self._mixers.attach()
                for layer, _, tapped in self._tapped:
                    layer.__class__ = tapped

    def _take(self) -> list[mx.array]:
        """What the last forward recorded of its own taps; nothing of others is kept alive."""
        if not self._recorded.keys() >= set(self._taps):
            raise self._closed()
        recorded = [self._recorded[tap] for tap in self._taps]
        self._recorded.clear()
        return recorded

    def _closed(self) -> InputError:
        return InputError(self.where, "a target that was closed", "one that is open")

    def _check(self, where: object) -> None:
        outside = [tap for tap in self._taps if not -1 <= tap < self.num_layers]
        if outside:
            raise InputError(where, f"{self.num_layers} layers", f"layers to tap at {outside}")

    def _attach(self, where: object) -> None:
        # The embedding output, after whatever the family does to it, is what enters layer 0.
        indices = {max(tap, 0) for tap in self._every}
        if any(getattr(type(self._layers[i]), "_tapped", False) for i in indices):
            raise InputError(where, "a model that is tapped already", "one Target per model")
        parts = [(i, self._part_behind(i)) for i in self._every if not self._is_called(i)]
        self._mixers.attach()
        for i in sorted(i for i in indices if callable(self._layers[i])):
            layer = self._layers[i]
            tapped = _tapped_class(layer, i, i in self._every, -1 in self._every, self._recorded)
            self._tapped.append((layer, type(layer), tapped))
            layer.__class__ = tapped
        for i, part in parts:
            tapped = _tapped_part_class(part, i, self._recorded)
            self._tapped.append((part, type(part), tapped))
            part.__class__ = tapped

    def _is_called(self, tap: int) -> bool:
        return callable(self._layers[max(tap, 0)])

    def _part_behind(self, tap: int) -> nn.Module:
        """The module that reads a layer's output, where the model calls the layers' parts itself.

        Raises:
            InputError: it has no name that is known here.
        """
        following = tap + 1
        if following < self.num_layers:
            part = self._layers[following].get("input_layernorm")
        else:
            norms = (m for n, m in self.model.named_modules() if n.rpartition(".")[2] == "norm")
            part = next(norms, None)
        if part is None:
            found = f"{type(self._layers[0]).__name__}s, whose parts the model calls itself"
            raise InputError(self.where, found, "layers that are called as a whole, to be tapped")
        return part


def _tapped_class(
    layer: nn.Module, index: int, output: bool, entering: bool, recorded: dict[int, mx.array]
) -> type:
    original: Any = type(layer)
    call = original.__call__
    record_input = entering and index == 0

    def tapped_call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if record_input:
            recorded[-1] = entering_hidden(self, args, kwargs)
        result = call(self, *args, **kwargs)
        if output:
            recorded[index] = leaving_hidden(self, result)
        return result

    names = {"__call__": tapped_call, "_tapped": True, "__module__": original.__module__}
    return type(original.__name__, (original,), names)


def _tapped_part_class(part: nn.Module, tap: int, recorded: dict[int, mx.array]) -> type:
    """Records a layer's output where the next part reads it.

    A model may go through its layers twice: the last output of each counts, and what enters first.
    """
    original: Any = type(part)
    call = original.__call__

    def tapped_call(self: nn.Module, x: mx.array) -> mx.array:
        if tap >= 0 or tap not in recorded:
            recorded[tap] = x
        return call(self, x)

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
    """Refuse a family whose taps change a logit or record something else than one row a token.

    Args:
        model: the target's model. target: it, tapped.
        untapped: logits of `probe_logits(model)` before it was tapped.
        where: names the model in errors.

    Raises:
        InputError: logits are not finite or differ in any bit, or a tap has another shape.
    """
    check_logits(untapped, where)
    with target.turns:
        logits = probe_logits(model)
        recorded = target._take()
    if not mx.array_equal(logits, untapped).item():
        raise InputError(where, "other logits when its layers are tapped", "the same, bit by bit")
    shape = (1, PROBE.size, target.hidden_size)
    for tap, value in zip(target._taps, recorded, strict=True):
        if value.shape != shape:
            raise InputError(where, f"tap {tap} of shape {list(value.shape)}", f"{list(shape)}")


PROBE = mx.array([[0, 1, 2, 3, 5]])
"""A short text of token ids that every vocabulary has."""


def probe_logits(model: nn.Module) -> mx.array:
    """Logits of a few fixed tokens, without a cache."""
    return model(PROBE)


def check_logits(logits: mx.array, where: object) -> None:
    """Refuse a model that nothing can be decoded with.

    Args:
        logits: see `probe_logits`.
        where: names the model in errors.

    Raises:
        InputError: a row is NaN, infinite, or all -inf.
    """
    if not finite_rows(logits).all().item():
        raise not_finite_error(where, "for a few fixed tokens")


def not_finite_error(where: object, tokens: str) -> InputError:
    """The error of a model whose logits are not finite for these tokens."""
    found = f"logits that are not finite {tokens}"
    hint = "Weights may be damaged, or overflow in their precision; float32 holds more."
    return InputError(where, found, "finite numbers", hint)
