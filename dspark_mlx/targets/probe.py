"""Which modules of a model write its recurrent caches, found by watching one small forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import CacheList, make_prompt_cache

from ..caches import CACHES, is_recurrent, leaves

_TOKENS = ((0, 1, 2),)


def find_mixers(model: nn.Module) -> list[nn.Module]:
    """The innermost modules that write a recurrent cache, in the order of their calls.

    A module counts where it is handed the cache and writes it itself, not only through modules
    inside it that are handed it too. No table of families is needed, and nothing is evaluated.
    """
    caches = make_prompt_cache(model)
    if not any(is_recurrent(leaf) for leaf in leaves(caches)):
        return []
    watch = _Watch()
    modules = {id(m): m for _, m in model.named_modules() if m is not model and callable(m)}
    classes = [(module, type(module)) for module in modules.values()]
    for module, original in classes:
        module.__class__ = watch.watching(original)
    try:
        model(mx.array(_TOKENS), cache=caches)
    finally:
        for module, original in classes:
            module.__class__ = original
    return list({id(module): module for module in watch.found}.values())


def handed_caches(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The caches with a recurrent part among a call's arguments."""
    for value in (*args, *kwargs.values()):
        parts = leaves([value]) if isinstance(value, CacheList) else [value]
        if any(is_recurrent(part) for part in parts):
            yield value


@dataclass
class _Frame:
    """A call under way, and what the recurrent caches that it was handed held when it was last
    known that the module itself had written nothing."""

    caches: list[Any]
    held: list[list[mx.array]] = field(default_factory=list)
    wrote: bool = False


class _Watch:
    """Notices who writes."""

    def __init__(self) -> None:
        self.found: list[nn.Module] = []
        self._frames: list[_Frame] = []

    def watching(self, original: Any) -> type:
        """A subclass whose calls are watched."""
        watch, call = self, original.__call__

        def watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            given = leaves(list(handed_caches(args, kwargs)))
            caches = [cache for cache in given if is_recurrent(cache)]
            if not caches:
                return call(module, *args, **kwargs)
            watch._look()
            inside = len(watch.found)
            watch._frames.append(_Frame(caches, _held(caches)))
            try:
                return call(module, *args, **kwargs)
            finally:
                watch._look()
                frame = watch._frames.pop()
                if frame.wrote:
                    # Running it again runs what it calls again.
                    watch.found[inside:] = [module]
                # What was written in there is not the outer module's own.
                for outer in watch._frames:
                    outer.held = _held(outer.caches)

        return type(original.__name__, (original,), {"__call__": watched})

    def _look(self) -> None:
        """Blame the innermost frame for what changed since the last look."""
        if self._frames:
            frame = self._frames[-1]
            now = _held(frame.caches)
            frame.wrote |= any(
                len(a) != len(b) or any(x is not y for x, y in zip(a, b, strict=True))
                for a, b in zip(frame.held, now, strict=True)
            )
            frame.held = now


def _held(caches: list[Any]) -> list[list[mx.array]]:
    return [CACHES[type(cache)].arrays(cache) for cache in caches]
