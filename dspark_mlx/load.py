"""From names to a Decoder: the only place that picks concrete classes and resolves a drafter."""

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
from .pairs import builtin
from .pairs.registry import find_pair, names_of
from .pairs.stored import StoredDrafter, read_drafter, target_folder
from .profiling.measure import LIMIT
from .profiling.store import Pair, get_profile, has_profile
from .progress import progress_bar
from .schedulers import Scheduler
from .schedulers.full import FullScheduler
from .schedulers.make import check_scheduler, make_scheduler, needs_profile
from .system.files import read_json
from .targets.compatibility import check_pair
from .targets.network import evaluate, open_network, refusing
from .targets.self_check import check_rollback
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
    check_scheduler(scheduler)
    if drafter is True:
        raise InputError("drafter", "True", "a folder, a Hub id, None or False")
    precision = choose_precision(precision)
    draft_vocabulary = parse_setting(draft_vocabulary)
    # What is missing or damaged is found out before a large target is fetched and loaded.
    config = None if model is None else find_config(model)
    stored: StoredDrafter | None = None
    if drafter is None:
        stored = read_drafter(builtin.DRAFTER) if model is None else _published(model, config)
    elif drafter is not False:
        stored = read_drafter(drafter)
    opened = _open(model, precision)
    decoder = opened.decoder(_tapped(opened, stored.config.taps if stored else ()))
    if stored is not None:
        decoder = _attached(decoder, stored, draft_vocabulary)
    return _scheduled(decoder, scheduler)


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
    check_scheduler(scheduler)
    draft_vocabulary = parse_setting(draft_vocabulary)
    shared, folder = decoder.engine.target, decoder.target_folder
    stored = read_drafter(drafter)
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
    if model is not None:
        find_config(model)
    stored = read_drafter(drafter)
    opened = _open(model, precision)
    target = _tapped(opened, taps(stored.config, len(opened.network.layers)))
    check_pair(stored.config, stored.folder, target, opened.folder)
    with refusing(opened.folder):
        check_rollback(target, opened.folder)

    def build(changed: CanonicalConfig) -> Drafter:
        # Its calibrations are of its own block, which another configuration may make shorter.
        reading = replace(stored, config=changed, calibrations=None)
        return _build(reading, target, precision, "full")

    return opened.decoder(target), stored.config, build


@dataclass(frozen=True)
class _OpenedTarget:
    """A target in memory, not tapped yet.

    Attributes:
        folder: where it is. network: mlx-lm's model. config: its config.json.
        precision: what its weights are held in.
        logits: what it says of a few fixed tokens, see `probe_logits`.
    """

    folder: Path
    network: Any
    config: dict[str, Any]
    precision: str
    logits: mx.array

    def decoder(self, target: Target) -> Decoder:
        """Plain decoding by the target, which is this one tapped."""
        engine = Engine(target, None, FullScheduler())
        return Decoder(engine, self.folder, self.config, None, self.precision)


def _open(model: str | Path | None, precision: str) -> _OpenedTarget:
    """Load a target and prove that it can decode: its caches roll back, its logits are finite."""
    folder = builtin.builtin_target() if model is None else target_folder(model)
    network, config = open_network(folder)
    apply_precision(network, held_dtype(precision))
    evaluate(network, folder)
    # What a model keeps beside its parameters, as rope frequencies, is evaluated too: what is not
    # belongs to this thread.
    mx.eval(arrays_of(network))
    # A family may need what this machine lacks, as a Metal kernel, and say so in its first forward.
    with refusing(folder):
        new_caches(network, folder)
        logits = probe_logits(network)
        check_logits(logits, folder)
    return _OpenedTarget(folder, network, config, precision, logits)


def _tapped(opened: _OpenedTarget, taps: Sequence[int]) -> Target:
    """The target with its layers tapped, and proof that this changes no bit of a logit."""
    with refusing(opened.folder):
        target = Target(opened.network, taps, opened.folder)
        check_taps(opened.network, target, opened.logits, opened.folder)
    return target


def _attached(decoder: Decoder, stored: StoredDrafter, draft_vocabulary: Setting) -> Decoder:
    """The decoder, whose target is tapped for the drafter, with it."""
    target = decoder.engine.target
    check_pair(stored.config, stored.folder, target, decoder.target_folder)
    with refusing(decoder.target_folder):
        check_rollback(target, decoder.target_folder)
    drafter = _build(stored, target, decoder.precision, draft_vocabulary)
    return decoder.with_engine(Engine(target, drafter, FullScheduler()), stored.folder)


def _scheduled(decoder: Decoder, scheduler: str | Scheduler) -> Decoder:
    """The decoder under a scheduler; a speed profile is found or measured where it asks for one."""
    if not isinstance(scheduler, str):
        return decoder.with_scheduler(scheduler)
    drafter = decoder.engine.drafter
    if drafter is None:
        return decoder
    profile, pair = None, Pair.of(decoder)
    if needs_profile(scheduler) or (scheduler == "auto" and has_profile(pair.key())):
        label = f"Measuring speed, {LIMIT:.0f} s at most"
        with progress_bar(label, "pass", delay=1.0) as progress:
            obtained = get_profile(pair, progress=progress)
        if obtained.stale_reason or not obtained.kept:
            said = [obtained.stale_reason] if obtained.stale_reason else []
            warnings.warn(" ".join([*said, obtained.message]), stacklevel=3)
        profile = obtained.profile
    has_confidence = drafter.config.has_confidence
    made = make_scheduler(scheduler, profile, drafter.calibrations, has_confidence)
    return decoder.with_scheduler(made, profile)


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
