"""DeepSpec's native packaging of Qwen3-shaped drafters (`Qwen3DSparkModel`), DFlash twin included.

Its conventions, which are the canonical ones: taps are outputs of layers (-1 the embedding),
anchor-first blocks, bidirectional attention, split-half rope over the whole head. The stored
embedding and head are frozen copies of the target's, so they are left out and shared instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...config import DrafterConfig
from ...errors import InputError

NAME = "DeepSpec Qwen3"
ARCHITECTURE = "Qwen3DSparkModel"
_COPIES = ("embed_tokens.weight", "lm_head.weight")


def matches(config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """The architecture's name, without the marks of the packagings that borrow it."""
    borrowed = "projector_type" in config or "dspark_bonus_anchor" in config
    quantised = any(name.endswith(("weight_scale", "weight_packed")) for name in shapes)
    named = config.get("architectures") == [ARCHITECTURE]
    return named and "fc.weight" in shapes and not borrowed and not quantised


def to_drafter_config(
    config: dict[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    where: Path,
    *,
    keep_embeddings: bool,
) -> DrafterConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or asks for what a DeepSpec Qwen3 drafter does not have.
    """

    def need(key: str) -> Any:
        if config.get(key) is None:
            raise InputError(where / "config.json", f"no {key}", f"the {NAME} key {key}")
        return config[key]

    _refuse_unknown_conventions(config, where / "config.json")
    taps = need("target_layer_ids")
    rank = config.get("markov_rank") or 0
    confidence = "none"
    if config.get("enable_confidence_head"):
        confidence = "hidden+markov" if need("confidence_head_with_markov") else "hidden"
    fc = shapes["fc.weight"]
    if not isinstance(taps, list) or not taps or len(fc) != 2 or fc[1] % len(taps):
        found = f"fc.weight {list(fc)} with target_layer_ids {taps}"
        raise InputError(where, found, "a whole number of columns per tap")
    canonical = DrafterConfig(
        hidden_size=need("hidden_size"),
        intermediate_size=need("intermediate_size"),
        num_layers=need("num_hidden_layers"),
        num_heads=need("num_attention_heads"),
        num_kv_heads=need("num_key_value_heads"),
        head_dim=need("head_dim"),
        rms_norm_eps=_number(config, "rms_norm_eps", where / "config.json"),
        vocab_size=need("vocab_size"),
        target_hidden_size=fc[1] // len(taps),
        target_num_layers=need("num_target_layers"),
        taps=tuple(taps),
        block_size=need("block_size"),
        logits_start=0,
        mask_token_id=need("mask_token_id"),
        rope_theta=_rope_theta(config, where / "config.json"),
        head=need("markov_head_type") if rank else "none",
        head_rank=rank,
        confidence=confidence,
        owns_embedding=keep_embeddings and "embed_tokens.weight" in shapes,
        owns_head=keep_embeddings and "lm_head.weight" in shapes,
        target=str(config.get("_name_or_path") or config.get("target_model_type") or ""),
    )
    # Reading it back applies every check of the canonical schema to the source's values.
    return DrafterConfig.from_dict(canonical.to_dict(), where / "config.json")


def rename(config: DrafterConfig, names: Sequence[str]) -> dict[str, str | None]:
    """Names stay; the frozen copies of the target's embedding and head go unless they are kept."""
    owned = {_COPIES[0]: config.owns_embedding, _COPIES[1]: config.owns_head}
    return {name: name if owned.get(name, True) else None for name in names}


def _refuse_unknown_conventions(config: dict[str, Any], where: Path) -> None:
    kinds = set(config.get("layer_types") or ["full_attention"])
    if kinds != {"full_attention"} or config.get("use_sliding_window"):
        raise InputError(where, f"layer_types {sorted(kinds)}", "full_attention alone")
    if config.get("attention_bias"):
        raise InputError(where, "attention_bias true", "projections without bias")
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(where, f"hidden_act {config['hidden_act']!r}", "'silu'")


def _rope_theta(config: dict[str, Any], where: Path) -> float:
    """From `rope_parameters` (transformers 5) or the older top-level `rope_theta`."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise InputError(where, f"rope_parameters {rope!r}", "an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise InputError(where, f"rope type {kind!r}", "'default'")
    return _number({"rope_theta": config.get("rope_theta")} | rope, "rope_theta", where)


def _number(values: dict[str, Any], key: str, where: Path) -> float:
    value = values.get(key)
    if value is None:
        raise InputError(where, f"no {key}", f"the {NAME} key {key}")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(where, f"{key} {value!r}", "a number")
    return float(value)
