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


@dataclass
class MixerCall:
    """One mixer's call in a recorded forward.

    Attributes:
        module: the mixer.
        args, kwargs: what it was given.
        offsets: by cache without a recurrent part that it was handed, the position it stood at.
        outputs: by linear layer inside it, what each call of that layer gave.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    offsets: dict[int, int]
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
        self._changed: list[tuple[nn.Module, type, type]] = []
        for mixer in self.modules:
            self._changed.append((mixer, type(mixer), self._mixer_class(type(mixer))))
            inner = (part for _, part in mixer.named_modules() if part is not mixer)
            for part in filter(_is_linear, inner):
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

    def run_again(self, call: MixerCall, width: int, n: int) -> None:
        """Write the first `n` of a call's `width` rows into the states as they are now.

        The linear layers give back what they remember, so that no weight of theirs is read. MLX is
        lazy: gates, norms and products that only the mixer's output needs are never computed.
        """

        def cut(value: Any) -> Any:
            if any(handed_caches([value], {})):
                return self._stand_in(value, call)
            if isinstance(value, mx.array):
                rows = value.ndim > 1 and value.shape[:2] == (1, width)
                # A mask over keys, which matters to attention only.
                return value[:, :n] if rows else None
            return value

        self._remembered = {key: iter(outputs) for key, outputs in call.outputs.items()}
        try:
            call.module(*map(cut, call.args), **{k: cut(v) for k, v in call.kwargs.items()})
        finally:
            self._remembered = None

    @staticmethod
    def _stand_in(cache: Any, call: MixerCall) -> Any:
        """The cache, with keys and values of attention beside the states left alone."""
        if isinstance(cache, CacheList):
            return CacheList(*(Mixers._stand_in(part, call) for part in cache.caches))
        return cache if is_recurrent(cache) else _Unwritten(call.offsets[id(cache)])

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
                return _first(next(owner._remembered[id(module)]), x.shape[:-1])
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

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The new keys and values; nobody reads the attention over them."""
        return keys, values

    def make_mask(self, *args: Any, **kwargs: Any) -> None:
        """No mask."""


def _first(y: mx.array, leading: Sequence[int]) -> mx.array:
    """The beginning of every leading axis: rows that stay come first."""
    return y[tuple(slice(size) for size in leading)]


def _is_linear(module: nn.Module) -> bool:
    """Whether each row of its output comes from the same row of its one input, by a matrix."""
    if isinstance(module, nn.Linear | nn.QuantizedLinear):
        return True
    return (
        "scales" in module
        and hasattr(module, "weight")
        and module.weight.ndim == 2
        and (not hasattr(module, "as_linear"))
    )
