"""Makes a drafter of a target's own prediction head, read from the target's original checkpoint.

Heads that were published by themselves, by mlx-vlm or in vLLM's speculators packaging, are read
too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from ..checkpoint.base_config import CanonicalConfig
from ..checkpoint.hub import hub_name
from ..drafters.mtp.config import MTPConfig
from ..system.files import check_apart
from .canonical_folder import Settings, write_drafter
from .head_checkpoint import Head, open_head
from .head_tensors import FINAL_NORM, canonical
from .heads import LONE
from .published import Tensor

STEPS = 3
"""Tokens a round that heads propose by default."""


def convert_mtp(
    name: str | Path,
    destination: Path,
    *,
    steps: int | None = None,
    keep_embeddings: bool = False,
    settings: Settings | None = None,
) -> CanonicalConfig:
    """Write a canonical folder with the prediction head of a target.

    Args:
        name: the target's original checkpoint, a folder or a Hub id.
        destination: folder to make; it appears whole or not at all.
        steps: tokens that the head proposes a round; None for the checkpoint's number, or `STEPS`.
        keep_embeddings: whether to keep the head's copies of the target's embedding and head.
        settings: see `Settings`; None for its defaults.

    Returns:
        The canonical configuration that was written.

    Raises:
        InputError: the checkpoint has no head, or one that is not known; nothing was written.
    """
    head = open_head(name)
    check_apart(head.source.where, destination)
    named = canonical(head, head.read(), keep_embeddings)
    state = "normed"
    if head.form in LONE:
        # Without the target's norm only the state before it can be read.
        named.setdefault(FINAL_NORM, mx.ones((head.source.whole("hidden_size"),)))
        state = "raw"
    steps = next(count for count in (steps, head.steps, STEPS) if count is not None)
    config = _config(head, steps, state, named, hub_name(name) or head.source.where.name)
    return write_drafter(config, named, head.source.where, destination, settings or Settings())


def _config(
    head: Head, steps: int, state: str, named: Mapping[str, Tensor], target: str
) -> CanonicalConfig:
    """The canonical configuration.

    Raises:
        InputError: the target's config lacks a key, or contradicts itself.
    """
    source, text = head.source, head.source.config
    hidden, heads = source.whole("hidden_size"), source.whole("num_attention_heads")
    epsilon = next((k for k in ("rms_norm_eps", "layer_norm_epsilon", "norm_eps") if k in text), "")
    rope = text.get("rope_parameters") or text
    config = MTPConfig(
        hidden_size=hidden,
        intermediate_size=text.get("intermediate_size") or source.whole("moe_intermediate_size"),
        num_heads=heads,
        num_kv_heads=source.whole("num_key_value_heads"),
        head_dim=text.get("head_dim") or hidden // heads,
        rms_norm_eps=source.number(epsilon or "rms_norm_eps"),
        vocab_size=source.whole("vocab_size"),
        target_hidden_size=hidden,
        target_num_layers=head.depth,
        taps=(head.depth - 1,),
        rope_theta=source.number("rope_theta", rope, default=10000.0),
        owns_embedding="embed_tokens.weight" in named,
        owns_head="lm_head.weight" in named,
        target=target,
        family=head.family,
        arguments=head.arguments,
        steps=steps,
        state=state,
        feedback="normed",
        order=head.form.order,
    )
    return MTPConfig.from_dict(config.to_dict(), source.path)
