"""Mixers: modules that write recurrent states, made to remember a forward and to run it again.

Only objects of one model instance change class, as tapped layers do. While nothing is recorded a
mixer's call is its own class's call and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import CacheList

from ..caches import is_recurrent, leaves
from .probe import find_mixers, handed_caches


@dataclass(frozen=True)
class KeptRows:
    """The rows of a forward that stay: the first `n` of some of its requests.

    Attributes:
        width: rows of the forward, of each request.
        n: how many of them stay.
        batch: requests of the forward.
        requests: the indices of those that keep `n`; None for all.
    """

    width: int
    n: int
    batch: int = 1
    requests: tuple[int, ...] | None = None

    def has(self, value: mx.array) -> bool:
        """Whether an array has a row for each row of the forward, `[batch, width, ...]`."""
        return value.ndim > 1 and value.shape[:2] == (self.batch, self.width)

    def of_requests(self, value: Any) -> Any:
        """The requests' part of an array `[batch, ...]`; other things as they are."""
        if self.requests is None or not isinstance(value, mx.array):
            return value
        return value[mx.array(self.requests)]

    def of_rows(self, output: mx.array, leading: Sequence[int]) -> mx.array:
        """A remembered output's part for an input of a shape that begins with `leading`."""
        if self.requests is not None and output.shape[0] != self.batch:
            # The mixer has put the rows of all requests behind each other.
            rows = output.reshape(self.batch, self.width, -1)
            return self.of_requests(rows)[:, : self.n].reshape(*leading, -1)
        # Rows that stay come first.
        return self.of_requests(output)[tuple(slice(size) for size in leading)]


@dataclass
class MixerCall:
    """One mixer's call in a recorded forward.

    Attributes:
        module: the mixer.
        args, kwargs: what it was given.
        offsets: by cache without a recurrent part that it was handed, the position it stood at;
            in a batch the positions of its requests.
        outputs: by linear layer inside it, what each call of that layer gave.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    offsets: dict[int, int | mx.array]
    outputs: dict[int, list[mx.array]] = field(default_factory=dict)


class Mixers:
    """A model's mixers; to be used under the target's turns.

    Attributes:
        modules: in the order of their calls; none where no state is recurrent.
        attached: whether their classes are changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = find_mixers(model)
        self.attached = False
        self._calls: list[MixerCall] | None = None
        self._running: list[MixerCall] = []
        self._remembered: dict[int, Iterator[mx.array]] | None = None
        self._kept = KeptRows(0, 0)
        self._changed: list[tuple[nn.Module, type, type]] = []
        self.renew()

    def renew(self) -> None:
        """Take the modules' classes of now for their own; to be called while detached."""
        self._changed.clear()
        for mixer in self.modules:
            self._changed.append((mixer, type(mixer), self._mixer_class(type(mixer))))
            inner = (part for _, part in mixer.named_modules() if part is not mixer)
            for part in filter(is_linear, inner):
                self._changed.append((part, type(part), self._linear_class(type(part))))

    def attach(self) -> None:
        """Change the classes."""
        for module, _, made in self._changed:
            module.__class__ = made
        self.attached = True

    def detach(self) -> None:
        """Give the modules their own classes back."""
        for module, original, _ in self._changed:
            module.__class__ = original
        self.attached = False

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[MixerCall]]:
        """The calls of what runs in the block, in their order."""
        calls: list[MixerCall] = []
        self._calls = calls
        try:
            yield calls
        finally:
            self._calls = None
            self._running.clear()

    def run_again(self, call: MixerCall, kept: KeptRows) -> None:
        """Write a call's rows that stay into the states as they are now.

        The linear layers give back what they remember, so that no weight of theirs is read. MLX is
        lazy: gates, norms and products that only the mixer's output needs are never computed.
        """

        def cut(value: Any) -> Any:
            if any(handed_caches([value], {})):
                return self._stand_in(value, call, kept)
            if isinstance(value, mx.array):
                # Else it is a mask over keys, which matters to attention only.
                return kept.of_requests(value)[:, : kept.n] if kept.has(value) else None
            return value

        self._kept = kept
        self._remembered = {key: iter(outputs) for key, outputs in call.outputs.items()}
        try:
            call.module(*map(cut, call.args), **{k: cut(v) for k, v in call.kwargs.items()})
        finally:
            self._remembered = None

    @staticmethod
    def _stand_in(cache: Any, call: MixerCall, kept: KeptRows) -> Any:
        """The cache, with keys and values of attention beside the states left alone."""
        if isinstance(cache, CacheList):
            return CacheList(*(Mixers._stand_in(part, call, kept) for part in cache.caches))
        if is_recurrent(cache):
            return cache
        return _Unwritten(kept.of_requests(call.offsets[id(cache)]))

    def _mixer_class(self, original: Any) -> type:
        owner, call = self, original.__call__

        def recorded(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if owner._calls is None:
                return call(module, *args, **kwargs)
            parts = leaves(list(handed_caches(args, kwargs)))
            offsets = {id(c): c.offset for c in parts if not is_recurrent(c)}
            made = MixerCall(module, args, kwargs, offsets)
            owner._calls.append(made)
            owner._running.append(made)
            try:
                return call(module, *args, **kwargs)
            finally:
                owner._running.pop()

        return type(original.__name__, (original,), {"__call__": recorded})

    def _linear_class(self, original: Any) -> type:
        owner, call = self, original.__call__

        def remembering(module: nn.Module, x: mx.array) -> mx.array:
            if owner._remembered is not None:
                return owner._kept.of_rows(next(owner._remembered[id(module)]), x.shape[:-1])
            y = call(module, x)
            if owner._running:
                owner._running[-1].outputs.setdefault(id(module), []).append(y)
            return y

        return type(original.__name__, (original,), {"__call__": remembering})


class _Unwritten:
    """A key-value cache whose rows the real one has already.

    Args:
        offset: where the real one stood.
    """

    def __init__(self, offset: int | mx.array) -> None:
        self.offset = offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The new keys and values; nobody reads the attention over them."""
        return keys, values

    def make_mask(self, *args: Any, **kwargs: Any) -> None:
        """No mask."""


def is_linear(module: nn.Module) -> bool:
    """Whether each row of its output comes from the same row of its one input, by a matrix."""
    if isinstance(module, nn.Linear | nn.QuantizedLinear):
        return True
    return (
        "scales" in module
        and hasattr(module, "weight")
        and module.weight.ndim == 2
        and (not hasattr(module, "as_linear"))
    )
