"""A released checkpoint's tensors under the names, and in the form, that the layers hold them.

A release stores each routed expert by itself, and most matrices as FP8 or FP4 (`checkpoint.
block_floats`), which stay packed: `scale` beside a `weight` becomes MLX's `scales`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ..checkpoint.block_floats import GROUP, is_repackable, repacked
from .config import ModelArgs

# mlx-vlm's names, with which MLX repacks are published, and transformers'; then the release's.
_NAMES = (
    (re.compile(r"^(language_model\.)?(model\.)?"), ""),
    (re.compile(r"^embed_tokens\."), "embed."),
    (re.compile(r"\.self_attn\."), ".attn."),
    (re.compile(r"\.mlp\."), ".ffn."),
    (re.compile(r"\.switch_mlp\."), ".experts."),
    (re.compile(r"\.gate\.e_score_correction_bias$"), ".gate.bias"),
    (re.compile(r"(?<=\.)(attn|ffn)_hc\."), r"hc_\1."),
    (re.compile(r"(hc_\w+\.fn)$"), r"\1.weight"),
    (re.compile(r"^head\."), "lm_head."),
    (re.compile(r"hc_(attn|ffn|head)_fn$"), r"hc_\1.fn.weight"),
    (re.compile(r"hc_(attn|ffn|head)_(base|scale)$"), r"hc_\1.\2"),
    (re.compile(r"shared_experts\.w1\."), "shared_experts.gate_proj."),
    (re.compile(r"shared_experts\.w2\."), "shared_experts.down_proj."),
    (re.compile(r"shared_experts\.w3\."), "shared_experts.up_proj."),
)
_EXPERT = re.compile(r"(.*\.ffn\.experts)\.(\d+)\.(w[123])\.(\w+)")
_EXPERT_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
# Small, and read in float32 by every token.
_EXACT = re.compile(r"\.(compressor\.(wkv|wgate)|gate)\.weight$")


HASH_TABLE = ".tid2eid"
"""What the name of a table of each token's experts ends with."""


def as_mlx_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with MLX's `quantization` in place of a release's FP8 `quantization_config`.

    Which mode a matrix has, mxfp8 or mxfp4, follows from its shape. A repack's own `quantization`
    stays, with this package's names of the matrices.
    """
    changed = dict(config)
    released = config.get("quantization_config")
    if own := config.get("quantization"):
        changed.pop("quantization_config", None)
        changed["quantization"] = {_matrix_name(key): value for key, value in own.items()}
    elif isinstance(released, dict) and released.get("quant_method") == "fp8":
        del changed["quantization_config"]
        changed["quantization"] = {"group_size": GROUP, "bits": 8, "mode": "mxfp8"}
    return changed


def with_mlx_scales(tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The tensors with each FP8 or FP4 matrix repacked; see `block_floats.repacked`.

    Raises:
        ValueError: a scale does not fit its matrix.
    """
    found = dict(tensors)
    for name in tensors:
        base = name.removesuffix(".scale")
        if base != name and f"{base}.weight" in tensors:
            weight, scale = found[f"{base}.weight"], found.pop(name)
            if not is_repackable(weight, scale):
                shapes = f"{list(weight.shape)} with a scale of {list(scale.shape)}"
                raise ValueError(f"{base}: {weight.dtype} {shapes}, which is neither FP8 nor FP4")
            words, scales = repacked(weight, scale)
            found[f"{base}.weight"], found[f"{base}.scales"] = words, scales
    return found


def module_name(name: str) -> str:
    """The name that the modules give a tensor; a released routed expert's stays as it is."""
    for pattern, replacement in _NAMES:
        name = pattern.sub(replacement, name)
    return name


def _matrix_name(name: str) -> str:
    return module_name(f"{name}.weight").removesuffix(".weight")


def expert_name(name: str) -> tuple[int, str] | None:
    """The number of a released expert's tensor, and the name of the stack that it belongs to.

    None for any other tensor.
    """
    match = _EXPERT.fullmatch(name)
    if match is None:
        return None
    prefix, index, part, kind = match.groups()
    return int(index), f"{prefix}.{_EXPERT_PARTS[part]}.{kind}"


def is_exact(name: str) -> bool:
    """Whether a tensor is held in float32 whatever its stored type is."""
    return _EXACT.search(name) is not None


def wrong_experts(table: mx.array, experts: int) -> str:
    """What a table of tokens' experts has beside them, in words; "" where it has none.

    MLX would read behind the experts' weights.

    Args:
        table: numbers of experts; it is read.
        experts: how many there are.
    """
    low, high = table.min().item(), table.max().item()
    return "" if low >= 0 and high < experts else f"experts {low} to {high}"  # type: ignore[operator]


def loadable(tensors: Mapping[str, mx.array], args: ModelArgs) -> dict[str, mx.array]:
    """The tensors as the modules hold them; those that are so already stay as they are.

    Args:
        tensors: the release's names, with prefixes or without.
        args: the checkpoint's sizes.

    Raises:
        ValueError: the experts of a layer are not as many as the config says, or a token has
            others.
    """
    found: dict[str, mx.array] = {}
    experts: dict[str, dict[int, mx.array]] = {}
    for stored, tensor in with_mlx_scales(tensors).items():
        name = module_name(stored)
        if found_in := expert_name(name):
            index, stacked = found_in
            experts.setdefault(stacked, {})[index] = tensor
            continue
        found[name] = _held(name, tensor, args)
    for name, parts in experts.items():
        if sorted(parts) != list(range(args.n_routed_experts)):
            expected = f"those of the {args.n_routed_experts} experts of the config"
            raise ValueError(f"{len(parts)} tensors for {name}, not {expected}")
        found[name] = mx.stack([parts[i] for i in range(args.n_routed_experts)])
    return found


def _held(name: str, tensor: mx.array, args: ModelArgs) -> mx.array:
    if name.endswith(HASH_TABLE):
        if found := wrong_experts(tensor, args.n_routed_experts):
            raise ValueError(f"{name}: {found} of {args.n_routed_experts}")
        return tensor.astype(mx.int32)
    if ".wo_a." in name and tensor.ndim == 2:
        # A matrix for each group of heads, one behind the other.
        return tensor.reshape(args.o_groups, -1, tensor.shape[-1])
    if is_exact(name) and mx.issubdtype(tensor.dtype, mx.floating):
        return tensor.astype(mx.float32)
    return tensor
