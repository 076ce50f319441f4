"""The target: an mlx-lm model whose own forward also gives the outputs of chosen layers, its taps.

All logits come from the model's own forward; `tapped_layers` has how taps are recorded.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn

from ..caches import DEFAULT_CACHES, CacheSettings, as_single_rows, new_caches
from ..checkpoint.linear import Matrix
from ..errors import InputError
from ..kernels.decision import Decision, Undone, apply_decision
from .compiled import CompiledForwards
from .hidden import of_copies
from .made_keys import made_keys
from .rollback import Rollback
from .row_by_row import RowByRow
from .tables import Tables, final_norm
from .tapped_layers import TappedLayers, check_layers
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
        compiled: its compiled verify forwards; None where Python builds each forward.

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
        self._tables = Tables(model, where)
        self.rolls_back = False
        self.batches: bool | None = None
        self.kernels: Decision | None = None
        self.compiled: CompiledForwards | None = None
        self._applied: list[Undone] = []
        self._rows: RowByRow | None = None
        self._taps = tuple(taps)
        self._whole_copies = whole_copies
        self.num_layers = len(self._layers)
        self.vocab_size, self.hidden_size = self._tables.vocab_size, self._tables.hidden_size
        check_layers(self._taps, self.num_layers, where)
        self._tapped = TappedLayers(model, self._taps, where)
        self._mixers = self._tapped.mixers

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
        if self.compiled:
            other.use_compiled(self.compiled.least)
        check_layers(other._taps, self.num_layers, where)
        with self.turns:
            self._tapped.add(other._taps)
        return other

    def new_caches(self) -> list[Any]:
        """Empty caches for one request."""
        if self.compiled:
            self.compiled.renew()
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
                return self._run(tokens, caches)
            self.cache_settings.quantize(caches)
            row = tokens[None]
            if forward:
                logits, taps = forward(row, caches), self._take()
            else:
                logits, taps = self._run(row, caches)
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
                made = None if forward else self._compiled(tokens, caches)
                if made is not None:
                    return *made, rollback
                with as_single_rows(caches), exactly:
                    return *self(tokens, caches, forward), rollback
            if not self._mixers.attached:
                raise self._closed()
            with self._mixers.recording() as calls, exactly:
                logits, taps = self(tokens, caches, forward)
            rollback.calls = calls
        return logits, taps, rollback

    def _compiled(
        self, tokens: mx.array, caches: list[Any]
    ) -> tuple[mx.array, list[mx.array]] | None:
        """A compiled forward; None where this one is not compiled."""
        if self.compiled is None or self.exact:
            return None
        if not self._mixers.attached:
            raise self._closed()
        if self.compiled.version != self._tapped.version:
            self.use_compiled(self.compiled.least)
        if tokens.ndim == 2:
            return self.compiled(tokens, caches)
        if len(tokens) < self.compiled.least:
            return None
        made = self.compiled(tokens[None], caches)
        return made and (made[0].squeeze(0), [tap.squeeze(0) for tap in made[1]])

    def _run(self, tokens: mx.array, caches: list[Any]) -> tuple[mx.array, list[mx.array]]:
        """The model's own call over tokens int `[batch, rows]`, and its taps."""
        return self.model(tokens, cache=caches), self._take()

    def embed(self, tokens: mx.array) -> mx.array:
        """Rows of the embedding table without the model's scale: int `[n]` to `[n, hidden]`."""
        return self._tables.embed(tokens)

    def logits(self, hidden: mx.array) -> mx.array:
        """The output matrix without scale or softcap: `[n, hidden]` to `[n, vocabulary]`."""
        return self._tables.logits(hidden)

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
        norm = final_norm(self.model)
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
        with self.turns, self._tables.head_inputs() as recorded:
            yield recorded

    @property
    def head(self) -> Matrix | None:
        """The output matrix as stored; None when it has a bias or `Matrix` cannot hold it."""
        return self._tables.head

    @property
    def dtype(self) -> mx.Dtype:
        """The type of the model's hidden states."""
        return self.embed(mx.array([0])).dtype

    def use_kernels(self, decision: Decision) -> None:
        """Compute products by the kernels that the guard has chosen, until `drop_kernels`.

        Under what is attached, which gives modules the classes back that it found.
        """
        with self.turns:
            self.drop_kernels()
            applied = self._applied
            self._tapped.attach_anew(lambda: applied.extend(apply_decision(self.model, decision)))
            self.kernels = decision

    def drop_kernels(self) -> None:
        """Let MLX compute every product again."""

        def drop() -> None:
            while self._applied:
                self._applied.pop().close()

        with self.turns:
            if self._applied:
                self._tapped.change_under(drop)
            self.kernels = None

    def use_compiled(self, least: int) -> CompiledForwards:
        """Compile verify forwards of requests alone from `least` rows on, and those of batches."""
        with self.turns:
            version = self._tapped.version
            self.compiled = CompiledForwards(self.model, self._run, least, version)
        return self.compiled

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
            self._tapped.attach_anew(rows.attach)
            self._rows = rows

    def drop_rows(self) -> None:
        """Run verify forwards as the model does again."""
        with self.turns:
            if self._rows is not None and self._rows.attached:
                self._tapped.change_under(self._rows.close)

    def close(self) -> None:
        """Remove the taps from the model; requests that still run end with an error."""
        with self.turns:
            self._tapped.detach()

    @contextlib.contextmanager
    def untapped(self) -> Iterator[None]:
        """Remove the taps while the block runs; other threads wait for the model meanwhile."""
        with self.turns:
            self.close()
            try:
                yield
            finally:
                self._tapped.attach_again()

    def _take(self) -> list[mx.array]:
        """This target's taps of the last forward; all recorded arrays are released."""
        recorded = self._tapped.recorded
        if not recorded.keys() >= set(self._taps):
            raise self._closed()
        taken = [of_copies(recorded[tap], self._whole_copies) for tap in self._taps]
        recorded.clear()
        return taken

    def _closed(self) -> InputError:
        return InputError(self.where, "a target that was closed", "one that is open")
