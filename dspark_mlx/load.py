"""Loads a target and its drafter into a Decoder.

Only this module chooses concrete classes and looks up the drafter of a target.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

from .caches import new_caches
from .checkpoint.base_config import CanonicalConfig
from .checkpoint.hub import find_config
from .checkpoint.linear import arrays_of
from .checkpoint.precision import apply_precision, choose_precision, held_dtype
from .decoder import Decoder
from .drafters.assemble import assemble
from .drafters.base import Drafter
from .drafters.vocabulary import Setting, parse_setting
from .engine.state import Engine
from .errors import InputError
from .numbers import check_whole
from .pairs import builtin
from .pairs.registry import find_pair, names_of
from .pairs.stored import StoredDrafter, read_drafter, target_folder
from .profiling.store import Pair, get_quick_profile, learned_path
from .progress import progress_bar
from .schedulers import Scheduler
from .schedulers.full import FullScheduler
from .schedulers.make import check_scheduler, make_scheduler, needs_profile
from .system.files import read_json
from .targets.compatibility import check_pair
from .targets.network import evaluate, first_logits, open_network, refusing
from .targets.self_check import check_rollback
from .targets.tap import Target, check_taps, probe_logits


def load(
    model: str | Path | None = None,
    drafter: str | Path | Literal[False] | None = None,
    scheduler: str | Scheduler = "auto",
    *,
    precision: str = "auto",
    draft_vocabulary: Setting = "auto",
    draft_window: int | None = None,
) -> Decoder:
    """Load a target with its drafter.

    Args:
        model: an MLX or Hugging Face folder, a GGUF file, or a Hub id; None for the built-in pair.
        drafter: a folder, a GGUF file or a Hub id, which is converted first where it needs it; None
            for the published drafter of the target; False to decode plainly.
        scheduler: "auto", "lagged" or "prefix" (which measure a quick speed profile where none is
            stored), "full", "threshold:VALUE", or an object like `schedulers.Scheduler`.
        precision: "auto" (float32 on the CPU backend, else as stored), "stored", "float32",
            "bfloat16" or "float16".
        draft_vocabulary: the tokens that drafts are chosen from: "full" for all, a number for so
            many of the most frequent tokens, or "auto" for a sixth or a quarter of a large
            vocabulary. A drafter without a list of frequent tokens uses the first ids instead. The
            tokens of the request are always added. The setting changes speed and accepted length,
            never the output.
        draft_window: how many of the newest positions the drafter attends to at most, which bounds
            its memory in a long context; None for the windows that it was made with, if any. It
            changes accepted length, never the output.

    Raises:
        InputError: a file, a pair or a setting cannot be used; raised before any generation.
    """
    check_scheduler(scheduler)
    if drafter is True:
        raise InputError("drafter", "True", "a folder, a Hub id, None or False")
    precision = choose_precision(precision)
    draft_vocabulary = parse_setting(draft_vocabulary)
    if draft_window is not None:
        check_whole("draft_window", draft_window, 1)
    # A missing or damaged drafter is found before a large target is downloaded and loaded.
    config = None if model is None else find_config(model)
    stored: StoredDrafter | None = None
    if drafter is None:
        stored = read_drafter(builtin.DRAFTER) if model is None else _published(model, config)
    elif drafter is not False:
        stored = read_drafter(drafter)
    if stored is not None and draft_window is not None:
        stored = replace(stored, config=stored.config.with_window(draft_window))
    opened = _open(model, precision)
    decoder = opened.decoder(_tapped(opened, stored.config.taps if stored else ()))
    if stored is not None:
        check_pair(stored.config, stored.folder, decoder.engine.target, opened.folder)
        decoder = _attached(decoder, stored, draft_vocabulary)
    return _scheduled(decoder, scheduler)


def add_drafter(
    decoder: Decoder,
    drafter: str | Path,
    scheduler: str | Scheduler = "auto",
    *,
    draft_vocabulary: Setting = "auto",
) -> Decoder:
    """Load another drafter for a decoder's target; both decoders share the target's weights.

    Args:
        decoder: a loaded decoder, which is not changed.
        drafter, scheduler, draft_vocabulary: see `load`.

    Raises:
        InputError: see `load`.
    """
    check_scheduler(scheduler)
    draft_vocabulary = parse_setting(draft_vocabulary)
    shared, folder = decoder.engine.target, decoder.target_folder
    stored = read_drafter(drafter)
    # A drafter for another target is called one, before its taps are not found in this target.
    check_pair(stored.config, stored.folder, shared, folder)
    with shared.turns:
        with shared.untapped():
            logits = probe_logits(shared.model)
        target = shared.sharing(stored.config.taps, folder)
        check_taps(shared.model, target, logits, folder)
        beside = decoder.with_engine(Engine(target, None, FullScheduler()), None)
        return _scheduled(_attached(beside, stored, draft_vocabulary), scheduler)


def load_unpaired(
    model: str | Path | None,
    drafter: str | Path,
    taps: Callable[[CanonicalConfig, int], Sequence[int]],
    precision: str = "auto",
) -> tuple[Decoder, CanonicalConfig, Callable[[CanonicalConfig], Drafter]]:
    """Load a target that decodes plainly, and a drafter to build with several configurations.

    Args:
        model, drafter, precision: see `load`.
        taps: function from the drafter's configuration and the target's number of layers to the
            layers to tap.

    Returns:
        The decoder; the drafter's configuration; and a function that builds a drafter of the stored
        tensors with a given configuration.

    Raises:
        InputError: see `load`.
    """
    precision = choose_precision(precision)
    if model is not None:
        find_config(model)
    # Its calibrations are of its own block, which another configuration may make shorter.
    stored = read_drafter(drafter, calibrated=False)
    opened = _open(model, precision)
    target = _tapped(opened, taps(stored.config, len(opened.network.layers)))
    check_pair(stored.config, stored.folder, target, opened.folder)
    with refusing(opened.folder):
        check_rollback(target, opened.folder)

    def build(changed: CanonicalConfig) -> Drafter:
        return _build(replace(stored, config=changed), target, precision, "full")

    return opened.decoder(target), stored.config, build


@dataclass(frozen=True)
class _OpenedTarget:
    """A target in memory, without taps.

    Attributes:
        folder: folder of the target.
        network: mlx-lm's model.
        config: content of its config.json.
        precision: the precision of its weights, as `choose_precision` returns it.
        logits: its logits for a few fixed tokens, see `probe_logits`.
    """

    folder: Path
    network: Any
    config: dict[str, Any]
    precision: str
    logits: mx.array

    def decoder(self, target: Target) -> Decoder:
        """A decoder without drafter for `target`, which is this target with taps."""
        engine = Engine(target, None, FullScheduler())
        return Decoder(engine, self.folder, self.config, None, self.precision)


def _open(model: str | Path | None, precision: str) -> _OpenedTarget:
    """Load a target, and check that its caches can roll back and its logits are finite."""
    folder = builtin.builtin_target() if model is None else target_folder(model)
    network, config = open_network(folder)
    apply_precision(network, held_dtype(precision))
    evaluate(network, folder)
    # Arrays that are not parameters, such as rope frequencies, are evaluated too: other threads
    # cannot use an array that is not.
    mx.eval(arrays_of(network))
    # A family may need what this machine lacks, as a Metal kernel, and say so in its first forward.
    with refusing(folder):
        new_caches(network, folder)
        logits = first_logits(network, folder)
    return _OpenedTarget(folder, network, config, precision, logits)


def _tapped(opened: _OpenedTarget, taps: Sequence[int]) -> Target:
    """The target with its layers tapped, and proof that this changes no bit of a logit."""
    with refusing(opened.folder):
        target = Target(opened.network, taps, opened.folder)
        check_taps(opened.network, target, opened.logits, opened.folder)
    return target


def _attached(decoder: Decoder, stored: StoredDrafter, draft_vocabulary: Setting) -> Decoder:
    """The decoder with the drafter added, which is for its target and whose taps that has."""
    target = decoder.engine.target
    with refusing(decoder.target_folder):
        check_rollback(target, decoder.target_folder)
    drafter = _build(stored, target, decoder.precision, draft_vocabulary)
    return decoder.with_engine(Engine(target, drafter, FullScheduler()), stored.folder)


def _scheduled(decoder: Decoder, scheduler: str | Scheduler) -> Decoder:
    """The decoder with a scheduler; a speed profile is found or measured where it needs one."""
    if not isinstance(scheduler, str):
        return decoder.with_scheduler(scheduler)
    drafter = decoder.engine.drafter
    if drafter is None:
        return decoder
    profile, memory = None, None
    if needs_profile(scheduler):
        pair = Pair.of(decoder)
        with progress_bar("Measuring speed, a few seconds", "pass", delay=1.0) as progress:
            obtained = get_quick_profile(pair, progress)
        if obtained.stale_reason:
            warnings.warn(f"{obtained.stale_reason} {obtained.message}", stacklevel=3)
        profile, memory = obtained.profile, learned_path(pair.key())
    has_confidence = drafter.config.has_confidence
    made = make_scheduler(scheduler, profile, drafter.calibrations, has_confidence, memory)
    return decoder.with_scheduler(made, profile)


def _published(model: str | Path, config: Path | None) -> StoredDrafter:
    """The published drafter of a target.

    Raises:
        InputError: no published drafter is known, or it cannot be downloaded or used.
    """
    pair = find_pair(names_of(model, read_json(config) if config else {}))
    hint = "Pass one (--drafter), or none (drafter=False, --no-drafter)."
    if pair is None:
        raise InputError(model, "no drafter", "a target whose drafter is known here", hint)
    try:
        return read_drafter(pair.drafter)
    except InputError as error:
        where = f"{error.where}, the drafter of {model}"
        raise InputError(where, error.found, error.expected, hint) from error


def open_target(model: str | Path | None) -> tuple[Target, Path]:
    """A target without taps, and its folder; its weights are as stored, and not read yet.

    Args:
        model: see `load`.

    Raises:
        InputError: see `load`.
    """
    folder = builtin.builtin_target() if model is None else target_folder(model)
    network, _ = open_network(folder)
    with refusing(folder):
        return Target(network, (), folder), folder


def _build(
    stored: StoredDrafter, target: Target, precision: str, draft_vocabulary: Setting
) -> Drafter:
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
    )
