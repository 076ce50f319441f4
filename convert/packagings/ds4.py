"""ds4's GGUF packaging ("deepseek4-dspark") of DeepSeek V4's embedded head.

The file has the head alone, and its metadata only what a release's config.json says of blocks.
Sizes, rotations and routing are read from that config.json, which has to lie beside the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...checkpoint.base_config import CanonicalConfig
from ...drafters.deepseek_v4.config import DeepseekV4Config
from ...errors import InputError
from ...system.files import read_json
from . import deepseek_v4
from .deepseek_v4 import adapt as adapt
from .llama_cpp import settings
from .source import Shapes, Source

NAME = "ds4 GGUF"
ARCHITECTURE = "deepseek4-dspark"
_MODEL_TYPE = "deepseek_v4"
_KEYS = {
    "dspark_block_size": "block_size",
    "dspark_markov_rank": "markov_rank",
    "dspark_noise_token_id": "noise_token_id",
    "dspark_target_layer_ids": "target_layer_ids",
}
_TENSORS = {
    "attn_q_a.weight": "attn.wq_a.weight",
    "attn_q_a_norm.weight": "attn.q_norm.weight",
    "attn_q_b.weight": "attn.wq_b.weight",
    "attn_kv.weight": "attn.wkv.weight",
    "attn_kv_a_norm.weight": "attn.kv_norm.weight",
    "attn_output_a.weight": "attn.wo_a.weight",
    "attn_output_b.weight": "attn.wo_b.weight",
    "attn_sinks.weight": "attn.attn_sink",
    "ffn_gate_inp.weight": "ffn.gate.weight",
    "exp_probs_b.bias": "ffn.gate.bias",
}
_PROJECTIONS = {"gate": "w1", "down": "w2", "up": "w3"}
_STAGE = re.compile(r"(mtp\.\d+)\.(.+)")
_EXPERT = re.compile(r"ffn_(gate|down|up)_exps\.(\d+)\.weight")
_SHARED = re.compile(r"ffn_(gate|down|up)_shexp\.weight")
_MIXES = re.compile(r"(hc_\w+_(?:fn|base|scale))\.weight")


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for the architecture's name in the GGUF metadata."""
    return config.get("general.architecture") == ARCHITECTURE


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> DeepseekV4Config:
    """The canonical configuration.

    Raises:
        InputError: there is no config.json of a V4 release beside the file, a key is missing, or
            has a value that is not supported.
    """
    beside = where.with_name("config.json")
    if not beside.is_file():
        expected = f"the config.json of the DeepSeek V4 release that {where.name} belongs to"
        raise InputError(beside, "no file", expected, "The GGUF file does not say its sizes.")
    release = read_json(beside)
    if release.get("model_type") != _MODEL_TYPE:
        raise InputError(beside, f"model_type {release.get('model_type')!r}", repr(_MODEL_TYPE))
    source = Source(settings(config, "dspark."), shapes, where, NAME)
    own = {ours: source.need(theirs) for ours, theirs in _KEYS.items()}
    published = {_published(name): shape for name, shape in shapes.items()}
    return deepseek_v4.to_drafter_config(
        release | own, published, where, keep_embeddings=keep_embeddings
    )


def rename(config: CanonicalConfig, names: Sequence[str]) -> dict[str, str | None]:
    """Maps each tensor name to its canonical one."""
    published = {name: _published(name) for name in names}
    canonical = deepseek_v4.rename(config, list(published.values()))
    # An unknown name stays, so that checks report it.
    return {name: canonical[new] or name for name, new in published.items()}


def _published(name: str) -> str:
    """A tensor's name in a release; an unknown one is unchanged."""
    stage = _STAGE.fullmatch(name)
    if stage is None:
        return name
    own = stage[2]
    if match := _EXPERT.fullmatch(own):
        own = f"ffn.experts.{match[2]}.{_PROJECTIONS[match[1]]}.weight"
    elif match := _SHARED.fullmatch(own):
        own = f"ffn.shared_experts.{_PROJECTIONS[match[1]]}.weight"
    elif match := _MIXES.fullmatch(own):
        own = match[1]
    return f"{stage[1]}.{_TENSORS.get(own, own)}"
