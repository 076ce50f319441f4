"""Names of a published drafter's tensors, and what packagings do with tensors by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from ...checkpoint.base_config import CanonicalConfig

COPIES = ("embed_tokens.weight", "lm_head.weight")
"""Copies of the target's tables."""

_OLD_NAMES = {
    f"aux_norm_{name}.weight": f"fc_norm.{i}.weight"
    for i, name in enumerate(("low", "mid", "high"))
}
_DROPPED = (
    "transfer_ready",
    "t2d",
    "mask_embedding",
    "verifier_lm_head.weight",
    "verifier_norm.weight",
)
# The last ones are leftovers of quantising activations and caches.
_DROPPED_ENDS = ("rotary_emb.inv_freq", ".k_scale", ".v_scale", ".input_scale")


def canonical_name(name: str) -> str | None:
    """A tensor's name without exporters' prefixes; None for a tensor that is never needed."""
    for prefix in ("model.", "logit_head."):
        name = name.removeprefix(prefix)
    # Eagle3's one layer, as EAGLE and SpecForge call it, and the norms of its taps.
    if name.startswith("midlayer."):
        name = f"layers.0.{name.removeprefix('midlayer.')}"
    name = _OLD_NAMES.get(name, name)
    if name in _DROPPED or name.endswith(_DROPPED_ENDS):
        return None
    # DFlash 2's and DSpine's files name these matrices as if they were vectors.
    return f"{name}.weight" if name.endswith(("_codebook", "transfer_codes")) else name


def rename(config: CanonicalConfig, names: Sequence[str]) -> dict[str, str | None]:
    """Maps names to themselves; copies of the target's tables to None unless they are kept."""
    owned = {COPIES[0]: config.owns_embedding, COPIES[1]: config.owns_head}
    return {name: name if owned.get(name, True) else None for name in names}


def adapt(config: Mapping[str, Any], name: str, tensor: mx.array) -> mx.array:
    """The tensor, unchanged."""
    return tensor


def token_ids(tensor: mx.array) -> mx.array:
    """Token ids of any integer type as int32; what is no integer is unchanged, for the checks.

    Ids that int32 lacks become its ends, or -1, which no vocabulary has, and not other ids.
    """
    if not mx.issubdtype(tensor.dtype, mx.integer):
        return tensor
    return mx.clip(tensor.astype(mx.int64), -1, (1 << 31) - 1).astype(mx.int32)
