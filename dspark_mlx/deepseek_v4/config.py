"""Sizes of a DeepSeek V4 checkpoint, as its config.json names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lm.models.base import BaseModelArgs

from ..checkpoint.number_ranges import LARGEST, check_within
from ..errors import InputError
from ..numbers import check_whole, shown

SCORING = "sqrtsoftplus"
OVERLAPPING = 4
"""The ratio of compression whose windows overlap and have an indexer (CSA)."""

_LONGEST = 2**31 - 1


@dataclass
class ModelArgs(BaseModelArgs):
    """What the layers need to know; keys of config.json that are not here do not matter to them.

    `compress_ratios` has an entry for each layer: 0 for a layer that sees its window only, 4 for
    compressed sparse attention (CSA: windows that overlap, and an indexer that chooses among them),
    any other number for heavily compressed attention (HCA). Entries behind the last layer belong to
    the head's stages.

    V4.1's stages are made of the same layers: without a norm of each head's query (`query_norm`),
    with the weights of the copies that a sublayer reads from the sublayer before (`late_mixing`),
    and router logits divided by `gate_temp`.

    Nothing is checked here, see `checked_args`.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_lora_rank: int
    o_groups: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    sliding_window: int
    compress_ratios: list[int]
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    rope_theta: float = 10000.0
    compress_rope_theta: float = 160000.0
    rope_scaling: dict[str, Any] | None = None
    n_shared_experts: int = 1
    num_hash_layers: int = 0
    scoring_func: str = SCORING
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    swiglu_limit: float = 0.0
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    rms_norm_eps: float = 1e-6
    gate_temp: float = 1.0
    query_norm: bool = True
    late_mixing: bool = False


_WHOLE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "qk_rope_head_dim",
    "q_lora_rank",
    "o_lora_rank",
    "o_groups",
    "moe_intermediate_size",
    "n_routed_experts",
    "num_experts_per_tok",
    "sliding_window",
    "index_n_heads",
    "index_head_dim",
    "index_topk",
    "hc_mult",
)
# Those with a default are required too: a checkpoint with another value would write other text.
_NUMBERS = {
    "rope_theta": (1.0, LARGEST),
    "compress_rope_theta": (1.0, LARGEST),
    "routed_scaling_factor": (0.0, 1e4),
    "swiglu_limit": (0.0, 1e4),
    "hc_eps": (0.0, 1.0),
    "rms_norm_eps": (0.0, 1.0),
}
_MOST_EXPERTS, _MOST_ROUNDS = 1 << 14, 1000


def checked_args(where: Path | str, config: Mapping[str, Any]) -> ModelArgs:
    """The sizes of a target's layers.

    Args:
        where: names the config in errors.
        config: content of its config.json.

    Raises:
        InputError: a key is missing, or the checkpoint asks for something else than these layers
            compute.
    """
    for key in (*_WHOLE, "num_hash_layers", "hc_sinkhorn_iters", *_NUMBERS, "compress_ratios"):
        if config.get(key) is None:
            raise InputError(where, f"no {key}", "a DeepSeek V4 config, which has it")
    for key in _WHOLE:
        most = _MOST_EXPERTS if key == "n_routed_experts" else _LONGEST
        check_whole(f"{where}: {key}", config[key], 1, most)
    check_whole(f"{where}: n_shared_experts", config.get("n_shared_experts", 1), 1, _LONGEST)
    layers = config["num_hidden_layers"]
    check_whole(f"{where}: num_hash_layers", config["num_hash_layers"], 0, layers)
    check_whole(f"{where}: hc_sinkhorn_iters", config["hc_sinkhorn_iters"], 1, _MOST_ROUNDS)
    for key, (low, high) in _NUMBERS.items():
        check_within(where, key, config[key], low, high)
    _check_layers(where, config)
    _check_rotation(where, config)
    return ModelArgs.from_dict(dict(config))


def _check_layers(where: Path | str, config: Mapping[str, Any]) -> None:
    ratios, layers = config["compress_ratios"], config["num_hidden_layers"]
    if not isinstance(ratios, list) or any(type(r) is not int or r < 0 for r in ratios):
        found = f"compress_ratios {shown(ratios)}"
        raise InputError(where, found, "a list of whole numbers, 0 or more")
    if len(ratios) < layers:
        raise InputError(
            where, f"{len(ratios)} compress_ratios", f"one for each of {layers} layers"
        )
    scoring, normed = config.get("scoring_func", SCORING), config.get("norm_topk_prob", True)
    if scoring != SCORING or normed is not True:
        found = f"scoring_func {scoring!r}, norm_topk_prob {normed!r}"
        raise InputError(where, found, f"{SCORING!r}, True")
    heads, groups = config["num_attention_heads"], config["o_groups"]
    if heads % groups:
        found = f"{heads} attention heads in {groups} o_groups"
        raise InputError(where, found, "as many in each group")
    chosen, experts = config["num_experts_per_tok"], config["n_routed_experts"]
    if chosen > experts:
        raise InputError(where, f"num_experts_per_tok {chosen}", f"{experts} at most, the experts")


def _check_rotation(where: Path | str, config: Mapping[str, Any]) -> None:
    rotated, narrowest = config["qk_rope_head_dim"], config["head_dim"]
    if any(ratio == OVERLAPPING for ratio in config["compress_ratios"]):
        narrowest = min(narrowest, config["index_head_dim"])
    if rotated % 2 or rotated > narrowest:
        expected = f"an even number, {narrowest} at most, a row's channels"
        raise InputError(where, f"qk_rope_head_dim {rotated}", expected)
    scaling = config.get("rope_scaling")
    if scaling is None:
        return
    if not isinstance(scaling, dict):
        raise InputError(where, f"rope_scaling {shown(scaling)}", "an object")
    if (kind := scaling.get("type", scaling.get("rope_type"))) != "yarn":
        raise InputError(where, f"rope_scaling of type {kind!r}", "'yarn'")
    for key, low in (("factor", 2.0**-20), ("original_max_position_embeddings", 1.0)):
        check_within(where, f"rope_scaling.{key}", scaling.get(key), low, 2.0**40)
    for key in ("beta_fast", "beta_slow"):
        check_within(where, f"rope_scaling.{key}", scaling.get(key, 1), 2.0**-20, 2.0**20)
