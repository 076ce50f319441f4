"""Finds the drafter of a target, builds it, and adds it to a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..checkpoint.hub import find_config
from ..checkpoint.precision import held_dtype
from ..decoder import Decoder
from ..drafters.assemble import assemble
from ..drafters.base import Drafter
from ..drafters.vocabulary import Setting
from ..engine.state import Engine
from ..errors import InputError
from ..pairs import builtin
from ..pairs.registry import find_pair, find_pairs, names_of
from ..pairs.stored import StoredDrafter, holds_drafter, read_drafter
from ..schedulers.full import FullScheduler
from ..system.files import read_json
from ..targets.given import GivenTarget
from ..targets.network import refusing
from ..targets.self_check import check_rollback
from ..targets.tap import Target


def chosen_drafter(
    model: str | Path | GivenTarget | None, drafter: str | Path | Literal[False] | None
) -> StoredDrafter | None:
    """The drafter that is named, that the target holds, or that is published; None for False.

    Raises:
        InputError: the target has no configuration, or the drafter cannot be found or used.
    """
    config = None if model is None or isinstance(model, GivenTarget) else find_config(model)
    if drafter is False:
        return None
    if drafter is not None:
        return read_drafter(drafter)
    if model is None:
        return read_drafter(builtin.DRAFTER)
    if isinstance(model, GivenTarget):
        return _published(model.published or model.name, model.config)
    if config is None and Path(model).is_dir() and not any(Path(model).glob("*.gguf")):
        raise InputError(model, "no config.json", "a target's folder")
    content = read_json(config) if config else {}
    return read_drafter(model) if holds_drafter(content) else _published(model, content)


def attached(decoder: Decoder, stored: StoredDrafter, draft_vocabulary: Setting) -> Decoder:
    """The decoder with the drafter added, which is for its target and whose taps that has."""
    target = decoder.engine.target
    with refusing(decoder.target_folder):
        check_rollback(target, decoder.target_folder)
    drafter = built(stored, target, decoder.precision, draft_vocabulary)
    kept = decoder.engine.kept
    return decoder.with_engine(Engine(target, drafter, FullScheduler(), kept=kept), stored.folder)


def built(
    stored: StoredDrafter, target: Target, precision: str, draft_vocabulary: Setting
) -> Drafter:
    """The drafter of stored tensors, which drafts for `target`; arguments as for `load`."""
    dtype = held_dtype(precision)
    return assemble(
        stored.config,
        stored.tensors,
        target.embed,
        target.logits,
        dtype=dtype or target.dtype,
        dequantize=dtype is not None,
        output=target.head,
        draft_vocabulary=draft_vocabulary,
        calibrations=stored.calibrations,
        ranking=stored.ranking,
        target=target,
    )


def _published(model: str | Path, config: Mapping[str, Any]) -> StoredDrafter:
    """The published drafter of a target.

    Args:
        model: its name or folder.
        config: content of its config.json.

    Raises:
        InputError: no published drafter is known, or it cannot be downloaded or used.
    """
    pair = find_pair(names_of(model, config))
    hint = "Pass one (--drafter), or none (drafter=False, --no-drafter)."
    if pair is None:
        if reported := [one.drafter for one in find_pairs(names_of(model, config))]:
            hint = f"Others name {', '.join(reported)}. {hint}"
        raise InputError(model, "no drafter", "a target whose drafter is known here", hint)
    try:
        return read_drafter(pair.drafter)
    except InputError as error:
        where = f"{error.where}, the drafter of {model}"
        raise InputError(where, error.found, error.expected, hint) from error
