"""The DSpark head inside a DeepSeek V4 or V4.1 checkpoint (`mtp.*`), beside the target's tensors.

The first stage holds the projection of the taps, the last one the reduction (V4), the final norm
and the heads. `num_nextn_predict_layers` is wrong in V4's releases: the stages are counted. Copies
of the target's tables, which some exports repeat in every stage, are left out.

V4 taps the layers that it names, V4.1 the streams that enter them. V4.1 has fewer experts in the
head than in the target, and router biases for images, which are left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ...checkpoint.base_config import CanonicalConfig
from ...deepseek_v4.config import SCORING
from ...deepseek_v4.weights import module_name
from ...drafters.deepseek_v4.config import DeepseekV4Config
from ...errors import InputError
from .names import adapt as adapt
from .source import Shapes, Source

NAME = "DeepSeek-V4's embedded head"
_V4, _V41 = "deepseek_v4", "deepseek_v41"
MODEL_TYPES = (_V4, _V41)
_PROJECTION = "mtp.0.main_proj.weight"
_STAGE = re.compile(r"mtp\.(\d+)\.(.+)")
COPIES = ("emb.", "embed.", "head.")
"""What names of copies of the target's tables begin with, in a stage."""
_SHARED = re.compile(r"norm\.weight|hc_head_\w+|(markov_head|confidence_head)\..+")
_RENAMED = {
    "main_proj.weight": "fc.weight",
    "main_norm.weight": "hidden_norm.weight",
    "markov_head.embed.weight": "markov_head.markov_w1.weight",
    "markov_head.head.weight": "markov_head.markov_w2.weight",
}


def is_embedded(config: dict[str, Any]) -> bool:
    """Whether a target's config.json says that it has such a head."""
    return config.get("model_type") in MODEL_TYPES and "dspark_block_size" in values_of(config)


def check_head(config: dict[str, Any], names: Collection[str], where: Path) -> None:
    """Refuse a target without the head that its config.json has, as MLX repacks leave it out.

    Raises:
        InputError: there is no tensor of a head.
    """
    if config.get("model_type") in MODEL_TYPES and not any(n.startswith("mtp.") for n in names):
        hint = "Pass that of the release (`convert target --head-only`), or none (--no-drafter)."
        raise InputError(where, "a target without a head (mtp.*)", "one with its head", hint)


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for a DeepSeek config with a block size, and the first stage's projection."""
    return is_embedded(config) and _PROJECTION in shapes


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> DeepseekV4Config:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
    """
    source = Source(values_of(config), shapes, where, NAME)
    # V4.1's text_config may have a model_type of its own.
    late = config["model_type"] == _V41
    taps = source.need("dspark_target_layer_ids")
    if not isinstance(taps, list) or any(type(tap) is not int for tap in taps):
        source.refuse("dspark_target_layer_ids", taps, "a list of layer numbers")
    stages = {match[1] for name in shapes if (match := _STAGE.fullmatch(name))}
    own: dict[str, Any] = {"late_mixing": late, "query_norm": not late}
    if late:
        own["num_experts"] = source.whole("dspark_n_routed_experts")
        own["experts_per_token"] = source.whole("dspark_num_experts_per_tok")
    return source.finish_as(
        DeepseekV4Config,
        **(layers_of(source) | own),
        taps=tuple(tap - late for tap in taps),
        num_layers=len(stages),
        block_size=source.whole("dspark_block_size"),
        mask_token_id=source.need("dspark_noise_token_id"),
        head_rank=source.whole("dspark_markov_rank"),
    )


def layers_of(source: Source) -> dict[str, Any]:
    """The canonical keys of `LayersConfig` but for the number of layers and V4.1's own.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
    """
    if (scoring := source.need("scoring_func")) != SCORING:
        source.refuse("scoring_func", scoring, SCORING)
    hidden = source.whole("hidden_size")
    return {
        "hidden_size": hidden,
        "intermediate_size": source.whole("moe_intermediate_size"),
        "num_heads": source.whole("num_attention_heads"),
        "num_kv_heads": 1,
        "head_dim": source.whole("head_dim"),
        "rms_norm_eps": source.number("rms_norm_eps"),
        "vocab_size": source.whole("vocab_size"),
        "target_hidden_size": hidden,
        "target_num_layers": source.whole("num_hidden_layers"),
        "rope_theta": source.number("rope_theta"),
        "rope_dims": source.whole("qk_rope_head_dim"),
        "rope_interleaved": True,
        "values": "keys",
        "owns_embedding": False,
        "owns_head": False,
        "window": source.whole("sliding_window"),
        "q_lora_rank": source.whole("q_lora_rank"),
        "o_lora_rank": source.whole("o_lora_rank"),
        "o_groups": source.whole("o_groups"),
        "num_experts": source.whole("n_routed_experts"),
        "num_shared_experts": source.whole("n_shared_experts"),
        "experts_per_token": source.whole("num_experts_per_tok"),
        "routed_scale": source.number("routed_scaling_factor"),
        "swiglu_limit": source.number("swiglu_limit"),
        "copies": source.whole("hc_mult"),
        "sinkhorn_iters": source.whole("hc_sinkhorn_iters"),
        "mix_eps": source.number("hc_eps"),
        "gate_temperature": source.number("gate_temp", default=1.0),
    }


def rename(config: CanonicalConfig, names: Sequence[str]) -> dict[str, str | None]:
    """Maps each tensor name to its canonical one; the target's own tensors to None."""
    return {name: _canonical(name) for name in names}


def values_of(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the text model's own part of it, which V4.1 has apart."""
    text = config.get("text_config")
    return {"n_shared_experts": 1, **config, **(text if isinstance(text, dict) else {})}


def _canonical(name: str) -> str | None:
    match = _STAGE.fullmatch(name)
    if match is None or match[2].startswith(COPIES) or match[2].endswith(".bias_vl"):
        return None
    stage, own = match.groups()
    if own in _RENAMED:
        return _RENAMED[own]
    return module_name(own if _SHARED.fullmatch(own) else f"layers.{stage}.{own}")
