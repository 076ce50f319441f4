"""What training asks of the target: features of whole texts, and logits of chosen rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from ...checkpoint.layout import DRAFT_IDS
from ...checkpoint.linear import Matrix
from ...drafters.assemble import capped
from ...drafters.dspark.config import DSparkConfig
from ...errors import InputError
from ...targets.tap import PROBE, Target, probe_logits
from .network import Features
from .objective import TrainingReadout

_CLOSE = 2e-2


def target_features(target: Target, tokens: mx.array) -> Features:
    """What the target says of texts: int32 `[batch, length]`."""
    taps, last = target.record(tokens)
    return Features([mx.stop_gradient(tap) for tap in taps], mx.stop_gradient(last))


def logit_cap(target: Target, config: Mapping[str, Any], where: object) -> float:
    """The cap of the target's logits behind its output matrix; 0 for none.

    Training builds the logits of few rows only, by the output matrix alone. A family that does
    something else behind it (a scale, a bias) is refused.

    Args:
        target: the model.
        config: its config.json.
        where: names it in errors.

    Raises:
        InputError: the model's logits are not those of its output matrix, capped or not.
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
    config: DSparkConfig, frozen: Mapping[str, mx.array], target: Target, cap: float
) -> TrainingReadout:
    """What a drafter in training and its target are read out by.

    Args:
        config: of the drafter.
        frozen: its tensors that are not learnt, by canonical name.
        target: the model.
        cap: of the target's logits, see `logit_cap`.
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
    """A token that texts do not contain, for a block's masked rows.

    The first row of the target's table behind its vocabulary (DeepSpec's choice for Qwen3); without
    one, the last added token that is no end token and not part of the chat template.

    Raises:
        InputError: there is neither.
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
