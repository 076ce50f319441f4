"""Taps: records the outputs of chosen layers during an mlx-lm model's own forward.

A tapped layer object becomes an instance of a subclass of its class, whose call records its output.
Other models and the class itself do not change. All logits come from the model's own forward.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn

from ..caches import DEFAULT_CACHES, CacheSettings, as_single_rows, new_caches
from ..checkpoint.linear import Matrix
from ..errors import InputError
from ..kernels.attention import AppliedAttention, attention_taken
from ..kernels.guard import Decision
from ..kernels.linears import Applied
from ..sampling import finite_rows
from .hidden import entering_hidden, leaving_hidden, of_copies
from .made_keys import made_keys
from .mixers import Mixers
from .rollback import Rollback
from .row_by_row import RowByRow
from .tables import embedding_shape, find_embedding, find_head, is_plain_table
from .turns import Turns

Forward: TypeAlias = Callable[[mx.array, list[Any]], mx.array]
"""Runs the model over tokens int `[1, rows]` and caches, where a request's rows are not only tokens
at the positions of its caches; gives logits `[1, rows, vocabulary]`."""


class Target:
    """A model whose forward also yields its taps.

    Args:
        model: an mlx-lm model; its tapped layers change class until `close`.
        taps: layers whose output to record, -1 for the embedding output.
        where: names the model in errors.
        cache_settings: how the caches of requests are made.
        whole_copies: see `hidden.of_copies`.

    Attributes:
        where: names the model in errors.
        cache_settings: how the caches of requests are made.
        turns: the lock to hold while the model runs or changes; all targets of a model share it.
        num_layers: number of the model's layers.
        hidden_size: width of a tap.
        vocab_size: rows of the embedding table.
        rolls_back: whether `self_check.check_rollback` has found that it does.
        batches: what `batch_check.runs_in_batches` has found; None before it is asked.
        kernels: what the guard of kernels has found, whose winners are in use; None where MLX
            computes everything.

    Raises:
        InputError: a tap is not a layer of this model, its layers are tapped already, or it does
            not have exactly one embedding table.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Iterable[int],
        where: object,
        cache_settings: CacheSettings = DEFAULT_CACHES,
        whole_copies: bool = False,
    ) -> None:
        self.model = model
        self.where = where
        self.cache_settings = cache_settings
        self.turns = Turns()
        self._layers: Sequence[nn.Module] = model.layers
        self._embedding = find_embedding(model, where)
        own_head = find_head(model, self._embedding)
        self._tied = own_head is None
        self._head_module = self._embedding if own_head is None else own_head
        self.rolls_back = False
        self.batches: bool | None = None
        self.kernels: Decision | None = None
        self._applied: list[Applied | AppliedAttention] = []
        self._rows: RowByRow | None = None
        self._taps = tuple(taps)
        self._whole_copies = whole_copies
        # All targets of one model share this set, the recorded taps and the tapped layers.
        self._every = set(self._taps)
        self._recorded: dict[int, mx.array] = {}
        self._tapped: list[tuple[nn.Module, type, type]] = []
        self.num_layers = len(self._layers)
        self.vocab_size, self.hidden_size = embedding_shape(self._embedding)
        self._check(where)
        self._mixers = Mixers(model)
        self._attach(where)

    def sharing(self, taps: Iterable[int], where: object, whole_copies: bool = False) -> Target:
        """A target of the same model with other taps; closing either of them closes both.

        Args:
            taps, where, whole_copies: see `Target`.

        Raises:
            InputError: a tap is not a layer of this model.
        """
        other = copy.copy(self)
        other._taps = tuple(taps)
        other._whole_copies = whole_copies
        other._check(where)
        with self.turns:
            self._attach_anew(lambda: self._every.update(other._taps))
        return other

    def new_caches(self) -> list[Any]:
        """Empty caches for one request."""
        return new_caches(self.model, self.where, self.cache_settings)

    def __call__(
        self,
        tokens: mx.array,
        caches: list[Any],
        forward: Forward | None = None,
    ) -> tuple[mx.array, list[mx.array]]:
        """Run the model's own forward over new tokens.

        Args:
            tokens: int `[rows]`, or `[batch, rows]` for a batch.
            caches: the request's, or the batch's (see `caches.batch`).
            forward: see `Forward`; None for the model's own call.

        Caches that have become long enough to be quantized are quantized before.

        Returns:
            Logits `[rows, vocabulary]`, and one `[rows, hidden]` per tap in the order of `taps`;
            for a batch both with its axis in front.

        Raises:
            InputError: the target was closed.
        """
        with self.turns:
            if tokens.ndim == 2:
                return self.model(tokens, cache=caches), self._take()
            self.cache_settings.quantize(caches)
            row = tokens[None]
            logits = forward(row, caches) if forward else self.model(row, cache=caches)
            taps = self._take()
        return logits.squeeze(0), [tap.squeeze(0) for tap in taps]

    def verify(
        self, tokens: mx.array, caches: list[Any], forward: Forward | None = None
    ) -> tuple[mx.array, list[mx.array], Rollback]:
        """The same forward, with what cuts it back to the rows that are accepted.

        The rows of an exact target's request have the bits of single ones.

        Returns:
            Logits and taps, see `__call__`, and the forward's rollback.

        Raises:
            InputError: the target was closed.
        """
        with self.turns:
            # Before the snapshot: what is rolled back are the caches that the forward writes.
            if tokens.ndim == 1:
                self.cache_settings.quantize(caches)
            width = tokens.shape[-1]
            rollback = Rollback(self._mixers, self.turns, caches, width)
            exactly = self._rows.of(width) if self._rows else contextlib.nullcontext()
            if width == 1 or not self._mixers.modules:
                with as_single_rows(caches), exactly:
                    return *self(tokens, caches, forward), rollback
            if not self._mixers.attached:
                raise self._closed()
            with self._mixers.recording() as calls, exactly:
                logits, taps = self(tokens, caches, forward)
            rollback.calls = calls
        return logits, taps, rollback

    def embed(self, tokens: mx.array) -> mx.array:
        """Rows of the embedding table without the model's scale: int `[n]` to `[n, hidden]`."""
        return self._embedding(tokens)

    def logits(self, hidden: mx.array) -> mx.array:
        """The output matrix without scale or softcap: `[n, hidden]` to `[n, vocabulary]`."""
        return self._embedding.as_linear(hidden) if self._tied else self._head_module(hidden)

    def key_values(self, layer: int, hidden: mx.array, start: int) -> tuple[mx.array, mx.array]:
        """Keys and values that a layer's attention makes; no attention is evaluated.

        Args:
            layer: index of the layer.
            hidden: what enters it, `[rows, hidden]`.
            start: position of the first row.

        Returns:
            Keys and values as the layer's cache gets them, each `[1, heads, rows, size]`.

        Raises:
            InputError: the layer has no attention of its own keys and values.
        """
        made = made_keys(self._layers[layer], hidden[None].astype(self.dtype), start)
        if made is None:
            found = f"layer {layer} without keys and values of its own"
            raise InputError(self.where, found, "a layer of attention that makes them")
        return made

    def final_norm(self, hidden: mx.array) -> mx.array:
        """The last layer's output `[rows, hidden]` after the model's final norm.

        Raises:
            InputError: the norm has no name that is known here.
        """
        norm = _final_norm(self.model)
        if norm is None:
            raise InputError(self.where, "a model without a module `norm`", "a final norm")
        normed: mx.array = norm(hidden)
        return normed

    def record(self, tokens: mx.array) -> tuple[list[mx.array], mx.array]:
        """Taps of whole texts, and the output matrix's input; no logits are evaluated.

        Args:
            tokens: int `[batch, length]`; shorter texts are padded at their end.

        Returns:
            One `[batch, length, hidden]` per tap, and the output matrix's input of the same shape.

        Raises:
            InputError: the model's forward does not call its output matrix.
        """
        with self.head_inputs() as recorded:
            self.model(tokens)
            taps = self._take()
        if len(recorded) != 1:
            found = f"a forward that calls its output matrix {len(recorded)} times"
            raise InputError(type(self.model).__module__, found, "one call")
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
        """The output matrix as stored; None when it has a bias or `Matrix` cannot hold it."""
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
        """The type of the model's hidden states."""
        return self.embed(mx.array([0])).dtype

    def use_kernels(self, decision: Decision) -> None:
        """Compute products by the kernels that the guard has chosen, until `drop_kernels`."""
        with self.turns:
            self.drop_kernels()
            self._applied.append(Applied(self.model, decision.chosen))
            if kernel := decision.attention:
                takes = partial(attention_taken, kernel)
                self._applied.append(AppliedAttention(self.model, kernel, takes, kernel.max_keys))
            self.kernels = decision

    def drop_kernels(self) -> None:
        """Let MLX compute every product again."""
        with self.turns:
            while self._applied:
                self._applied.pop().close()
            self.kernels = None

    @property
    def exact(self) -> bool:
        """Whether rows of verify forwards have the bits of single rows."""
        return self._rows is not None and self._rows.attached

    def use_rows(self, rows: RowByRow) -> None:
        """Run verify forwards of requests row by row where they need it, until `drop_rows`.

        Under all other changes of classes, so that those see one call where the model makes one.
        """
        with self.turns:
            self.drop_rows()
            self._attach_anew(rows.attach)
            self._rows = rows

    def drop_rows(self) -> None:
        """Run verify forwards as the model does again."""
        with self.turns:
            if self._rows is None or not self._rows.attached:
                return
            if self._mixers.attached:
                self._attach_anew(self._rows.close)
            else:
                self._rows.close()

    def close(self) -> None:
        """Remove the taps from the model; requests that still run end with an error."""
        with self.turns:
            for layer, original, _ in self._tapped:
                layer.__class__ = original
            self._mixers.detach()
            self._recorded.clear()

    @contextlib.contextmanager
    def untapped(self) -> Iterator[None]:
        """Remove the taps while the block runs; other threads wait for the model meanwhile."""
        with self.turns:
            self.close()
            try:
                yield
            finally:
                self._mixers.attach()
                for layer, _, tapped in self._tapped:
                    layer.__class__ = tapped

    def _take(self) -> list[mx.array]:
        """This target's taps of the last forward; all recorded arrays are released."""
        if not self._recorded.keys() >= set(self._taps):
            raise self._closed()
        recorded = [of_copies(self._recorded[tap], self._whole_copies) for tap in self._taps]
        self._recorded.clear()
        return recorded

    def _closed(self) -> InputError:
        return InputError(self.where, "a target that was closed", "one that is open")

    def _check(self, where: object) -> None:
        outside = [tap for tap in self._taps if not -1 <= tap < self.num_layers]
        if outside:
            raise InputError(where, f"{self.num_layers} layers", f"layers to tap at {outside}")

    def _attach(self, where: object) -> None:
        # The input of layer 0 is the embedding output, after the family's scaling or norm.
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

    def _attach_anew(self, change: Callable[[], None]) -> None:
        """Make a change to what is attached, or under it."""
        self.close()
        self._tapped.clear()
        change()
        self._mixers.renew()
        self._attach(self.where)

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
            part = _final_norm(self.model)
        if part is None:
            found = f"{type(self._layers[0]).__name__}s, whose parts the model calls itself"
            raise InputError(self.where, found, "layers that are called as a whole, to be tapped")
        return part


def _final_norm(model: nn.Module) -> Any:
    """The model's final norm; None where it has no name that is known here."""
    return next((m for n, m in model.named_modules() if n.rpartition(".")[2] == "norm"), None)


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
        copies = value.shape[-1] // target.hidden_size if target._whole_copies else 1
        if value.shape != (*shape[:2], copies * target.hidden_size) or not copies:
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
