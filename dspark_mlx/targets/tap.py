"""The target: an mlx-lm model whose own forward also gives the outputs of chosen layers, its taps.

All logits come from the model's own forward; `tapped_layers` has how taps are recorded.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn

from ..caches import DEFAULT_CACHES, CacheSettings, as_single_rows, new_caches
from ..errors import InputError
from ..kernels.store import Verdict
from .attached import AttachedModules
from .compiled import CompiledForwards
from .hidden import of_copies
from .positions import rows_alike_until
from .rollback import Rollback
from .tapped_layers import check_layers

Forward: TypeAlias = Callable[[mx.array, list[Any]], mx.array]
"""Runs the model over tokens int `[1, rows]` and caches, where a request's rows are not only tokens
at the positions of its caches; gives logits `[1, rows, vocabulary]`."""


class Target(AttachedModules):
    """A model whose forward also yields its taps.

    Args:
        model: an mlx-lm model; its tapped layers change class until `close`.
        taps: layers whose output to record, -1 for the embedding output.
        where: names the model in errors.
        cache_settings: how the caches of requests are made.
        whole_copies: see `hidden.of_copies`.

    Attributes:
        cache_settings: how the caches of requests are made.
        rolls_back: whether `self_check.check_rollback` has found that it does.
        batches: what `batch_check.runs_in_batches` has found; None before it is asked.
        compiled: its compiled verify forwards; None where Python builds each forward.
        compiled_races: what races of them have found, by what was raced.

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
        super().__init__(model, taps, where)
        self.cache_settings = cache_settings
        self.rolls_back = False
        self.batches: bool | None = None
        self.compiled: CompiledForwards | None = None
        self.compiled_races: Mapping[str, Verdict] = {}
        self._whole_copies = whole_copies
        self._alike_until = rows_alike_until(model)

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
            other.compiled = self.compiled.anew(self.version, other._run)
        check_layers(other._taps, self.num_layers, where)
        with self.turns:
            self._tapped.add(other._taps)
        return other

    def new_caches(self) -> list[Any]:
        """Empty caches for one request."""
        if self.compiled:
            self.compiled.renew()
        return new_caches(self.model, self.where, self.cache_settings)

    def rows_alike(self, position: int, limit: int) -> int:
        """How many rows from a position on see in one forward what each would see alone.

        Args:
            position: cached tokens before the forward.
            limit: the most that are wanted, at least 1.
        """
        limit = self.cache_settings.rows_until_quantized(position, limit)
        return max(min(limit, self._alike_until - position), 1)

    def reads_by_chunk(self, length: int) -> bool:
        """Whether a prompt's tokens see something else where it is cut into other chunks."""
        settings = self.cache_settings
        return length > self._alike_until or settings.reads_by_chunk(self.model, length)

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
            logits, taps = self._run(tokens[None], caches, forward)
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
        if self.compiled.version != self.version:
            self.compiled = self.compiled.anew(self.version)
        return self.compiled(tokens, caches)

    def _run(
        self, tokens: mx.array, caches: list[Any], forward: Forward | None = None
    ) -> tuple[mx.array, list[mx.array]]:
        """The model's own call over tokens int `[batch, rows]`, or `forward`, and its taps."""
        try:
            logits = forward(tokens, caches) if forward else self.model(tokens, cache=caches)
            return logits, self._take()
        finally:
            # Nothing of a forward that failed is left, which may have been one that is compiled.
            self._tapped.recorded.clear()

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

    def use_compiled(self, **limits: Any) -> CompiledForwards:
        """Compile verify forwards.

        Args:
            limits: `least`, `most` and `batches` of `CompiledForwards`.
        """
        with self.turns:
            self.compiled = CompiledForwards(self.model, self._run, self.version, **limits)
        return self.compiled

    def _take(self) -> list[mx.array]:
        """This target's taps of the last forward; all recorded arrays are released."""
        recorded = self._tapped.recorded
        if not recorded.keys() >= set(self._taps):
            raise self._closed()
        taken = [of_copies(recorded[tap], self._whole_copies) for tap in self._taps]
        recorded.clear()
        return taken
