"""From names to a Decoder: the only place that picks concrete classes and resolves a drafter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from .caches import new_caches
from .checkpoint.base_config import CanonicalConfig
from .checkpoint.hub import find_config
from .checkpoint.linear import arrays_of
from .checkpoint.precision import apply_precision, choose_precision
from .decoder import Decoder
from .drafters.assemble import assemble
from .drafters.base import Drafter
from .drafters.vocabulary import Setting, parse_setting
from .engine.state import Engine
from .errors import InputError
from .pairs import builtin
from .pairs.registry import find_pair, names_of
from .pairs.stored import StoredDrafter, read_drafter, target_folder
from .profiling.measure import LIMIT
from .profiling.store import Pair, get_profile, has_profile
from .progress import progress_bar
from .schedulers import Scheduler
from .schedulers.full import FullScheduler
from .schedulers.make import make_scheduler, needs_profile
from .system.files import read_json
from .targets.compatibility import check_pair
from .targets.network import evaluate, open_network
from .targets.tap import Target, check_logits, check_taps, probe_logits


def load(
    model: str | Path | None = None,
    drafter: str | Path | Literal[False] | None = None,
    scheduler: str | Scheduler = "auto",
    *,
    precision: str = "auto",
    draft_vocabulary: Setting = "auto",
) -> Decoder:
    """Load a target with its drafter.

    Args:
        model: an MLX or Hugging Face folder, a GGUF file, or a Hub id; None is the built-in pair.
        drafter: a drafter folder or GGUF file (converted on the fly where it is not yet) or Hub id;
            None finds the drafter of that target; False decodes plainly.
        scheduler: "auto" ("expected" where this pair's speed profile was measured before, else
            "full"), "expected", "lagged" or "prefix" (which measure the profile when there is
            none), "full", "threshold:VALUE", or an object as `schedulers.Scheduler`.
        precision: "auto" (float32 on the CPU backend, else as stored), "stored", "float32",
            "bfloat16" or "float16".
        draft_vocabulary: tokens that drafts are chosen from: "full", a number of the most frequent
            ones, or of first ids where the drafter does not say which those are (what the request
            shows comes on top), or "auto", a sixth or a quarter of a large vocabulary. It changes
            speed and accepted length, never the output.

    Raises:
        InputError: a file, a pair or a setting that cannot be used, before any generation.
    """
    if isinstance(scheduler, str):
        needs_profile(scheduler)
    elif not (hasattr(scheduler, "start") and hasattr(scheduler, "needs_confidence")):
        raise InputError(
            "scheduler", repr(scheduler), "a name, or an object as schedulers.Scheduler"
        )
    if drafter is True:
        raise InputError("drafter", "True", "a folder, a Hub id, None or False")
    precision = choose_precision(precision)
    dtype = None if precision == "stored" else getattr(mx, precision)
    draft_vocabulary = parse_setting(draft_vocabulary)
    # What is missing or damaged is found out before a large target is fetched and loaded.
    config = None if model is None else find_config(model)
    stored: StoredDrafter | None = None
    if drafter is None:
        stored = read_drafter(builtin.DRAFTER) if model is None else _published(model, config)
    elif drafter is not False:
        stored = read_drafter(drafter)
    folder = builtin.builtin_target() if model is None else target_folder(model)
    source = stored.folder if stored else None
    network, target_config = _load_target(folder, dtype)
    new_caches(network, folder)
    untapped = probe_logits(network)
    check_logits(untapped, folder)
    if stored is None:
        target, built = Target(network, (), folder), None
    else:
        target = Target(network, stored.config.taps, folder)
        check_taps(network, target, untapped, folder)
        check_pair(stored.config, stored.folder, target, folder)
        built = _build(stored, target, dtype, draft_vocabulary)
    decoder = Decoder(
        Engine(target, built, FullScheduler()), folder, target_config, source, precision
    )
    if isinstance(scheduler, str):
        return _scheduled(decoder, scheduler)
    return decoder.with_scheduler(scheduler)


def add_drafter(
    decoder: Decoder,
    drafter: str | Path,
    scheduler: str | Scheduler = "auto",
    *,
    draft_vocabulary: Setting = "auto",
) -> Decoder:
    """Another drafter on the target of a decoder, whose weights are held once for both.

    Args:
        decoder: loaded; it decodes as before.
        drafter, scheduler, draft_vocabulary: see `load`.

    Raises:
        InputError: see `load`.
    """
    if isinstance(scheduler, str):
        needs_profile(scheduler)
    draft_vocabulary = parse_setting(draft_vocabulary)
    (folder, _), shared = decoder.sources, decoder.engine.target
    dtype = None if decoder.precision == "stored" else getattr(mx, decoder.precision)
    stored = read_drafter(drafter)
    check_pair(stored.config, stored.folder, shared, folder)
    with shared.turns:
        with shared.untapped():
            untapped = probe_logits(shared.model)
        target = shared.sharing(stored.config.taps, folder)
        check_taps(shared.model, target, untapped, folder)
        built = _build(stored, target, dtype, draft_vocabulary)
        beside = decoder.with_engine(Engine(target, built, FullScheduler()), stored.folder)
        if isinstance(scheduler, str):
            return _scheduled(beside, scheduler)
        return beside.with_scheduler(scheduler)


def load_unpaired(
    model: str | Path | None,
    drafter: str | Path,
    taps: Callable[[CanonicalConfig, int], Sequence[int]],
    precision: str = "auto",
) -> tuple[Decoder, CanonicalConfig, Callable[[CanonicalConfig], Drafter]]:
    """A target that decodes plainly, and a drafter to be built under other configurations.

    Args:
        model, drafter, precision: see `load`.
        taps: layers to tap, from the drafter's configuration and the target's depth.

    Returns:
        The decoder, the drafter's configuration, and what builds a drafter of its tensors.

    Raises:
        InputError: see `load`.
    """
    precision = choose_precision(precision)
    dtype = None if precision == "stored" else getattr(mx, precision)
    if model is not None:
        find_config(model)
    stored = read_drafter(drafter)
    folder = builtin.builtin_target() if model is None else target_folder(model)
    config = stored.config
    network, target_config = _load_target(folder, dtype)
    target = Target(network, taps(config, len(network.layers)), folder)
    check_pair(config, stored.folder, target, folder)

    def build(changed: CanonicalConfig) -> Drafter:
        # Its calibrations are of its own block, which another configuration may make shorter.
        return _build(replace(stored, config=changed, calibrations=None), target, dtype, "full")

    engine = Engine(target, None, FullScheduler())
    return Decoder(engine, folder, target_config, None, precision), config, build


def _scheduled(decoder: Decoder, name: str) -> Decoder:
    """The decoder under a scheduler by name; a speed profile is found or measured where it asks."""
    drafter = decoder.engine.drafter
    if drafter is None:
        return decoder
    profile, pair = None, Pair.of(decoder)
    if needs_profile(name) or (name == "auto" and has_profile(pair.key())):
        label = f"Measuring speed, {LIMIT:.0f} s at most"
        with progress_bar(label, "pass", delay=1.0) as progress:
            obtained = get_profile(pair, progress=progress)
        if obtained.rejected or not obtained.kept:
            said = [obtained.rejected] if obtained.rejected else []
            warnings.warn(" ".join([*said, obtained.story]), stacklevel=3)
        profile = obtained.profile
    has_confidence = drafter.config.has_confidence
    scheduler = make_scheduler(name, profile, drafter.calibrations, has_confidence)
    return decoder.with_scheduler(scheduler, profile)


def _published(model: str | Path, config: Path | None) -> StoredDrafter:
    """The drafter of a target that the registry knows.

    Raises:
        InputError: it does not, or the drafter cannot be had.
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
    """A target without taps whose weights are as stored and not read yet, and its folder.

    Args:
        model: see `load`.

    Raises:
        InputError: see `load`.
    """
    folder = builtin.builtin_target() if model is None else target_folder(model)
    network, _ = open_network(folder)
    return Target(network, (), folder), folder


def _load_target(folder: Path, dtype: mx.Dtype | None) -> tuple[nn.Module, dict[str, Any]]:
    model, config = open_network(folder)
    apply_precision(model, dtype)
    evaluate(model, folder)
    # What a model keeps beside its parameters, as rope frequencies, is evaluated too: what is not
    # belongs to this thread.
    mx.eval(arrays_of(model))
    return model, config


def _build(
    stored: StoredDrafter, target: Target, dtype: mx.Dtype | None, draft_vocabulary: Setting
) -> Drafter:
    return assemble(
        stored.config,
        stored.tensors,
        target.embed,
        target.logits,
        dtype=dtype or target.dtype,
        dequantise=dtype is not None,
        output=target.head,
        draft_vocabulary=draft_vocabulary,
        calibrations=stored.calibrations,
        ranking=stored.ranking,
    )
