"""A target cut to what its self-check needs: one layer of each kind, without feed-forward parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from ..caches import leaves


@contextlib.contextmanager
def one_of_each_kind(model: nn.Module) -> Iterator[int | None]:
    """The model with one layer of each kind: later ones left out, those between passed through.

    Of the layers that stay, the feed-forward parts are passed through too: they compute each row
    by itself, and hold most of the weights.

    Args:
        model: it is as before afterwards.

    Yields the number of caches that it uses; None where the whole model runs.
    """
    layers, caches = list(model.layers), make_prompt_cache(model)
    holder = _holder(model, layers[0])
    if holder is None or len(caches) != len(layers):
        yield None
        return
    kinds = [_kind(*pair) for pair in zip(layers, caches, strict=True)]
    first = {kind: i for i, kind in reversed(list(enumerate(kinds)))}
    count = max(first.values()) + 1
    kept = [layers[i] for i in first.values()]
    passed = [layer for i, layer in enumerate(layers[:count]) if i not in first.values()]
    module, name = holder
    every = module[name]
    module[name] = every[:count]
    parts = [part for layer in kept for part in _parts(layer)]
    try:
        with _called(passed, _passed_through), _called(parts, _without_feed_forward):
            yield count
    finally:
        module[name] = every


@contextlib.contextmanager
def _called(modules: Iterable[nn.Module], call: Any) -> Iterator[None]:
    """Modules whose calls are another function's, given the module and its own class too."""
    changed = [(module, type(module)) for module in modules]
    for module, original in changed:
        module.__class__ = type(original.__name__, (original,), {"__call__": call(original)})
    try:
        yield
    finally:
        for module, original in changed:
            module.__class__ = original


def _parts(layer: nn.Module) -> list[nn.Module]:
    """Modules of a layer that are made of modules, as attention and feed-forward parts are."""
    parts = [part for part in layer.children().values() if isinstance(part, nn.Module)]
    return [part for part in parts if part.children()]


def _passed_through(original: type) -> Any:
    def call(layer: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        return x

    return call


def _without_feed_forward(original: Any) -> Any:
    def call(part: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Not evaluated where it is not used: MLX is lazy.
        result = original.__call__(part, *args, **kwargs)
        alone = len(args) == 1 and not kwargs and isinstance(args[0], mx.array)
        if alone and isinstance(result, mx.array) and result.shape == args[0].shape:
            return args[0]
        return result

    return call


def _holder(model: nn.Module, layer: Any) -> tuple[nn.Module, str] | None:
    """The module that holds the list of layers, and the list's name there."""
    for _, module in model.named_modules():
        for name, value in module.items():
            if isinstance(value, list) and value and value[0] is layer:
                return module, name
    return None


def _kind(layer: Any, cache: Any) -> str:
    """What tells layers apart: their caches, their modules, and the switches in these."""
    parts = layer.named_modules() if isinstance(layer, nn.Module) else []
    # Numbers are sizes, which no family changes between layers of a kind, or the layer's own.
    switches = [
        (name, type(part), [(k, v) for k, v in vars(part).items() if isinstance(v, bool | str)])
        for name, part in parts
    ]
    windows = [(type(leaf), getattr(leaf, "max_size", None)) for leaf in leaves([cache])]
    return str((switches, windows))
