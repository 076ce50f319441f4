"""What training takes from the target: features of whole texts, and logits of some rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from ...checkpoint.base_config import DRAFT_IDS, CanonicalConfig
from ...checkpoint.linear import Matrix
from ...drafters.assemble import capped
from ...errors import InputError
from ...targets.tap import Target
from ...targets.tap_check import PROBE, probe_logits
from .forward import Features
from .objective import TrainingReadout

_CLOSE = 2e-2


def target_features(target: Target, tokens: mx.array) -> Features:
    """The target's features of texts, without gradients; `tokens` is int32 `[batch, length]`."""
    taps, last = target.record(tokens)
    return Features([mx.stop_gradient(tap) for tap in taps], mx.stop_gradient(last))


def logit_cap(target: Target, config: Mapping[str, Any], where: object) -> float:
    """The softcap that the target applies to the logits of its output matrix; 0 for none.

    Training computes the logits of some rows with the output matrix and this cap. A family that
    does something else after the matrix, such as a scale or a bias, is refused.

    Args:
        target: the target.
        config: content of its config.json.
        where: names the target in errors.

    Raises:
        InputError: the target's logits are not those of its output matrix, with or without cap.
    """
    with target.untapped():
        logits = probe_logits(target.model).astype(mx.float32)
    _, last = target.record(PROBE)
    rows = target.logits(last).astype(mx.float32)
    text = config.get("text_config") or {}
    named = config.get("final_logit_softcapping") or text.get("final_logit_softcapping") or 0.0
    for cap in {0.0, float(named)}:
        difference = mx.abs(capped(rows, cap) - logits).max()
        if (difference <= _CLOSE * mx.maximum(mx.abs(logits).max(), 1)).item():
            return cap
    found = "logits that are not its output matrix's"
    raise InputError(where, found, "a family without a scale or bias behind that matrix")


def readout(
    config: CanonicalConfig, frozen: Mapping[str, mx.array], target: Target, cap: float
) -> TrainingReadout:
    """The functions from hidden states to logits, for a drafter in training and its target.

    Args:
        config: the drafter's configuration.
        frozen: the drafter's tensors that are not trained, by canonical name.
        target: the target.
        cap: softcap of the target's logits, see `logit_cap`.
    """
    own = Matrix(frozen["lm_head.weight"]) if config.owns_head else target.logits
    ids = columns = None
    if config.draft_vocab_size:
        ids = frozen[DRAFT_IDS]
        numbers = np.full(config.vocab_size, -1, dtype=np.int32)
        numbers[np.array(ids)] = np.arange(config.draft_vocab_size)
        columns = mx.array(numbers)
    return TrainingReadout(
        lambda rows: capped(own(rows), config.softcap),
        lambda rows: capped(target.logits(rows), cap),
        ids,
        columns,
    )


def spare_token(tokenizer: Any, target: Target) -> int:
    """A token that texts do not contain, for the masked rows of a block.

    It is the first row of the target's embedding after the tokenizer's vocabulary (DeepSpec's
    choice for Qwen3). Where there is none, it is the last added token that is not an end token and
    not part of the chat template.

    Raises:
        InputError: there is no such token.
    """
    used = set(tokenizer.get_vocab().values())
    behind = max(used, default=-1) + 1
    if behind < target.vocab_size:
        return int(behind)
    ends = {tokenizer.bos_token_id, tokenizer.pad_token_id, *tokenizer.eos_token_ids}
    template = str(tokenizer.chat_template or "")
    added = getattr(tokenizer, "added_tokens_decoder", {})
    spare = [i for i, token in added.items() if i not in ends and str(token) not in template]
    if not spare:
        hint = "Name one that your texts do not contain (--mask-token)."
        raise InputError("tokenizer", "no spare token", "one to mask blocks with", hint)
    return int(max(spare))
