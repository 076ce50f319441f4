"""Names, types and shapes of a released DeepSeek V4 checkpoint, from its config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoint.block_floats import BLOCKS, GROUP
from ..checkpoint.tensor_writer import Planned
from .config import OVERLAPPING, ModelArgs


def released_tensors(config: Mapping[str, Any], stages: int) -> dict[str, Planned]:
    """All tensors of a release, by name.

    Args:
        config: content of config.json.
        stages: stages of the DSpark head; 0 for a release without.
    """
    release = _Release(ModelArgs.from_dict(dict(config)))
    args, found = release.args, release.found
    table = (args.vocab_size, args.hidden_size)
    found |= {f"{name}.weight": Planned("BF16", table) for name in ("embed", "head")}
    release.vector("norm.weight", args.hidden_size)
    release.reduction("")
    for layer in range(args.num_hidden_layers):
        release.layer(f"layers.{layer}.", args.compress_ratios[layer], layer < args.num_hash_layers)
    for stage in range(stages):
        release.layer(f"mtp.{stage}.", 0, hashed=False)
    if stages:
        release.head(config, "mtp.0.", f"mtp.{stages - 1}.")
    return found


class _Release:
    def __init__(self, args: ModelArgs) -> None:
        self.args = args
        self.found: dict[str, Planned] = {}

    def vector(self, name: str, size: int, dtype: str = "BF16") -> None:
        self.found[name] = Planned(dtype, (size,))

    def fp8(self, name: str, rows: int, columns: int) -> None:
        block = BLOCKS[0]
        self.found[f"{name}.weight"] = Planned("F8_E4M3", (rows, columns))
        scale = (-(-rows // block), -(-columns // block))
        self.found[f"{name}.scale"] = Planned("F8_E8M0", scale)

    def fp4(self, name: str, rows: int, columns: int) -> None:
        self.found[f"{name}.weight"] = Planned("I8", (rows, columns // 2))
        self.found[f"{name}.scale"] = Planned("F8_E8M0", (rows, columns // GROUP))

    def layer(self, prefix: str, ratio: int, hashed: bool) -> None:
        args, hidden = self.args, self.args.hidden_size
        for part in ("attn", "ffn"):
            self.vector(f"{prefix}{part}_norm.weight", hidden)
            self.mixing(f"{prefix}hc_{part}", (2 + args.hc_mult) * args.hc_mult, 3)
        self.attention(f"{prefix}attn.")
        if ratio:
            self.compressor(f"{prefix}attn.compressor.", ratio, args.head_dim)
        if ratio == OVERLAPPING:
            heads, indexer = args.index_n_heads, f"{prefix}attn.indexer."
            self.fp8(f"{indexer}wq_b", heads * args.index_head_dim, args.q_lora_rank)
            self.found[f"{indexer}weights_proj.weight"] = Planned("BF16", (heads, hidden))
            self.compressor(f"{indexer}compressor.", ratio, args.index_head_dim)
        self.experts(f"{prefix}ffn.", hashed)

    def attention(self, prefix: str) -> None:
        args, hidden = self.args, self.args.hidden_size
        width, low = args.num_attention_heads * args.head_dim, args.o_groups * args.o_lora_rank
        self.fp8(f"{prefix}wq_a", args.q_lora_rank, hidden)
        self.fp8(f"{prefix}wq_b", width, args.q_lora_rank)
        self.fp8(f"{prefix}wkv", args.head_dim, hidden)
        self.fp8(f"{prefix}wo_a", low, width // args.o_groups)
        self.fp8(f"{prefix}wo_b", hidden, low)
        self.vector(f"{prefix}q_norm.weight", args.q_lora_rank)
        self.vector(f"{prefix}kv_norm.weight", args.head_dim)
        self.vector(f"{prefix}attn_sink", args.num_attention_heads, "F32")

    def compressor(self, prefix: str, ratio: int, width: int) -> None:
        channels = width * (2 if ratio == OVERLAPPING else 1)
        for name in ("wkv", "wgate"):
            self.found[f"{prefix}{name}.weight"] = Planned(
                "BF16", (channels, self.args.hidden_size)
            )
        self.found[f"{prefix}ape"] = Planned("F32", (ratio, channels))
        self.vector(f"{prefix}norm.weight", width)

    def experts(self, prefix: str, hashed: bool) -> None:
        args, hidden, width = self.args, self.args.hidden_size, self.args.moe_intermediate_size
        count = args.n_routed_experts
        self.found[f"{prefix}gate.weight"] = Planned("BF16", (count, hidden))
        if hashed:
            table = (args.vocab_size, args.num_experts_per_tok)
            self.found[f"{prefix}gate.tid2eid"] = Planned("I64", table)
        else:
            self.vector(f"{prefix}gate.bias", count, "F32")
        for name, up in (("w1", True), ("w2", False), ("w3", True)):
            for expert in range(count):
                shape = (width, hidden) if up else (hidden, width)
                self.fp4(f"{prefix}experts.{expert}.{name}", *shape)
            wide = width * args.n_shared_experts
            self.fp8(f"{prefix}shared_experts.{name}", *((wide, hidden) if up else (hidden, wide)))

    def mixing(self, name: str, mixes: int, scales: int) -> None:
        wide = self.args.hc_mult * self.args.hidden_size
        self.found[f"{name}_fn"] = Planned("F32", (mixes, wide))
        self.vector(f"{name}_base", mixes, "F32")
        self.vector(f"{name}_scale", scales, "F32")

    def reduction(self, prefix: str) -> None:
        self.mixing(f"{prefix}hc_head", self.args.hc_mult, 1)

    def head(self, config: Mapping[str, Any], first: str, last: str) -> None:
        args, hidden, rank = self.args, self.args.hidden_size, config["dspark_markov_rank"]
        self.fp8(f"{first}main_proj", hidden, len(config["dspark_target_layer_ids"]) * hidden)
        self.vector(f"{first}main_norm.weight", hidden)
        self.vector(f"{last}norm.weight", hidden)
        self.reduction(last)
        for name in ("markov_w1", "markov_w2"):
            table = Planned("BF16", (args.vocab_size, rank))
            self.found[f"{last}markov_head.{name}.weight"] = table
        confidence = Planned("BF16", (1, hidden + rank))
        self.found[f"{last}confidence_head.proj.weight"] = confidence
