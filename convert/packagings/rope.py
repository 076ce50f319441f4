"""Reads rotary embeddings from published configs: the base, and YaRN's or Llama 3's scaling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...checkpoint.rope_scaling import ROPE_NUMBERS
from ...errors import InputError
from .source import Source


def read_rope(source: Source, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The canonical keys of a rotary embedding: `rope_theta`, and `rope_scaling` for scaled ones.

    They come from `rope_parameters` (transformers 5) or from older top-level keys.

    Args:
        source: the checkpoint.
        values: the object that holds the keys; None for the checkpoint's config.

    Raises:
        InputError: the scaling is of another kind, or a value is not usable.
    """
    values = source.config if values is None else values
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise InputError(source.path, f"rope_parameters {rope!r}", "an object")
    if isinstance(rope.get("sliding_attention"), dict):
        rope = rope["sliding_attention"]
    kind = rope.get("rope_type", rope.get("type", "default"))
    canonical: dict[str, Any] = {
        "rope_theta": source.number("rope_theta", {"rope_theta": values.get("rope_theta")} | rope)
    }
    if kind == "yarn":
        canonical["rope_scaling"] = _yarn(source, rope)
    elif kind == "llama3":
        numbers = {key: source.number(key, rope) for key in ROPE_NUMBERS["llama3"]}
        canonical["rope_scaling"] = {"rope_type": "llama3", **numbers}
    elif kind not in ("default", "mrope"):
        raise InputError(source.path, f"rope type {kind!r}", "'default', 'yarn' or 'llama3'")
    return canonical


def _yarn(source: Source, rope: Mapping[str, Any]) -> dict[str, Any]:
    known = {"rope_theta", "rope_type", "type", "partial_rotary_factor", "attention_factor"}
    keys = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
    more = ("mscale", "mscale_all_dim")
    if unknown := sorted(set(rope) - known - {*keys, *more}):
        raise InputError(source.path, f"YaRN keys {', '.join(unknown)}", f"only {', '.join(keys)}")
    if rope.get("attention_factor") is not None:
        source.refuse("attention_factor", rope["attention_factor"], "no such key: YaRN's default")
    scaling = {key: source.number(key, rope) for key in keys[:2]}
    scaling |= {key: source.number(key, rope) for key in (*keys[2:], *more) if key in rope}
    return {"rope_type": "yarn", **scaling}
