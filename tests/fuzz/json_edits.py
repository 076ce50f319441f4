"""Edits of a JSON document: of its values, its keys and its nesting."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

from . import odd

_STOPS = 0.35


def damage(rng: Random, data: Any) -> tuple[bytes, str]:
    """The document with one to three edits, encoded, and the edits in words."""
    data = json.loads(json.dumps(data))
    if rng.random() < 0.03:
        whole = odd.value(rng)
        return encode(whole), f"the document is {odd.shown(whole)}"
    words = [edit(rng, data) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    return encode(data), "; ".join(words)


def edit(rng: Random, data: Any) -> str:
    """Change `data` in one place; returns the change in words."""
    container, key, path = _place(rng, data)
    if key is None:
        return "nothing to change"
    old = container[key]
    kind = rng.random()
    if kind < 0.3:
        container[key] = odd.value(rng)
        return f"{path} = {odd.shown(container[key])}"
    if kind < 0.7:
        container[key] = odd.near(rng, old)
        return f"{path} = {odd.shown(container[key])}, was {odd.shown(old)}"
    if kind < 0.82:
        del container[key]
        return f"no {path}"
    if kind < 0.88:
        # Another value of the same document: right in its type perhaps, wrong in its place.
        other, name, where = _place(rng, data)
        container[key] = copy.deepcopy(other[name]) if name is not None else None
        return f"{path} = the value of {where}"
    if isinstance(container, list):
        container.insert(key, odd.value(rng))
        return f"before {path}: {odd.shown(container[key])}"
    if kind < 0.92:
        name = rng.choice((f"{key}x", f" {key}", key.upper(), f"{key}\u200b", "", "extra"))
        container[name] = container.pop(key)
        return f"{path} is called {odd.shown(name)}"
    if kind < 0.96:
        name = rng.choice(("extra", "auto_map", "quantization", "model_file", "format", "\ud800"))
        container[name] = odd.value(rng)
        return f"beside {path}: {name!r} = {odd.shown(container[name])}"
    second = odd.value(rng)
    spelled = json.dumps(key)
    container[key] = odd.Raw(f"{_text(old)}, {spelled}: {_text(second)}")
    return f"{path} twice, then {odd.shown(second)}"


def encode(data: Any) -> bytes:
    """As UTF-8; lone surrogates are escaped."""
    return _text(data).encode("utf-8", "replace")


def _text(data: Any) -> str:
    raws: list[odd.Raw] = []

    def marked(node: Any) -> Any:
        if isinstance(node, odd.Raw):
            raws.append(node)
            return f"@raw{len(raws) - 1}@"
        if isinstance(node, dict):
            return {key: marked(child) for key, child in node.items()}
        return [marked(child) for child in node] if isinstance(node, list) else node

    text = json.dumps(marked(data))
    for number, raw in enumerate(raws):
        text = text.replace(f'"@raw{number}@"', raw)
    return text


def _place(rng: Random, data: Any) -> tuple[Any, Any, str]:
    """A container and a key of it, found by a walk that may end at every level."""
    container, key, path = data, None, ""
    while isinstance(container, dict | list) and container:
        keys = list(container) if isinstance(container, dict) else range(len(container))
        key = rng.choice(keys)
        path += f"[{odd.shown(key)}]"
        child = container[key]
        if not isinstance(child, dict | list) or not child or rng.random() < _STOPS:
            return container, key, path
        container = child
    return container, None, path or "the document"
