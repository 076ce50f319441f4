"""Reduced vocabularies: an output matrix of their own, and `d2t` with token ids as offsets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ...checkpoint.base_config import DRAFT_IDS
from ...errors import InputError
from .names import token_ids
from .source import Source


def adapt(config: Mapping[str, Any], name: str, tensor: mx.array) -> mx.array:
    """`d2t` converted from offsets to token ids; other tensors unchanged."""
    if name != DRAFT_IDS or not mx.issubdtype(tensor.dtype, mx.integer):
        return tensor
    # A sum in a narrow type would begin again at its other end.
    return token_ids(tensor.astype(mx.int64) + mx.arange(tensor.size))


def reduced(source: Source, vocab_size: int, keep: bool) -> dict[str, Any]:
    """The canonical keys of the drafter's tables, and `draft_vocab_size` where it is reduced.

    Args:
        source: the checkpoint.
        vocab_size: of the target.
        keep: see `Source.copies`.

    Raises:
        InputError: a reduced vocabulary lacks its matrix or its ids, or ids stand beside a whole
            vocabulary.
    """
    size = source.config.get("draft_vocab_size") or vocab_size
    if size == vocab_size:
        if DRAFT_IDS in source.shapes:
            found = f"{DRAFT_IDS} with draft_vocab_size {size}"
            raise InputError(source.where, found, f"fewer than the {vocab_size} tokens")
        return source.copies(keep)
    for name in ("lm_head.weight", DRAFT_IDS):
        if name not in source.shapes:
            raise InputError(source.where, f"no {name}", f"one, for {size} draft tokens")
    owns = {"owns_head": True, "draft_vocab_size": size}
    return source.copies(keep) | owns
