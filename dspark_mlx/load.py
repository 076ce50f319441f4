"""Loads a target and its drafter into a Decoder.

Only this module chooses concrete classes and looks up the drafter of a target.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx_lm

from .caches import CacheSettings, new_caches
from .caches.settings import CACHE_SETTINGS, DEFAULT_CACHES
from .checkpoint.base_config import CanonicalConfig
from .checkpoint.fingerprint import weights_digest
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
from .reuse.budget import budget
from .reuse.disk import Disk
from .reuse.kept import KeptPrompts
from .sampling.setting_table import with_settings
from .schedulers import Scheduler
from .schedulers.copies import CopyScheduler
from .schedulers.full import FullScheduler
from .schedulers.make import check_scheduler, make_scheduler, needs_profile
from .schedulers.proposer import LOOKUP
from .schedulers.speed_profile import SpeedProfile
from .system.files import read_json
from .targets.adapter import Adapter, read_adapter
from .targets.compatibility import check_pair
from .targets.given import GivenTarget, given_target, network_digest
from .targets.network import check_quantized, evaluate, first_logits, open_network, refusing
from .targets.self_check import check_rollback
from .targets.tap import Target, check_taps, probe_logits
from .text.tokenizer import Tokenizer
from .version import __version__


@with_settings("Caches", CACHE_SETTINGS.values())
def load(
    model: str | Path | tuple[Any, Any] | None = None,
    drafter: str | Path | Literal[False] | None = None,
    scheduler: str | Scheduler = "auto",
    *,
    adapter_path: str | Path | None = None,
    precision: str = "auto",
    draft_vocabulary: Setting = "auto",
    draft_window: int | None = None,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    quantized_kv_start: int = 5000,
    max_kv_size: int | None = None,
    prompt_cache_bytes: int | None = None,
    prompt_cache_dir: str | Path | None = None,
) -> Decoder:
    """Load a target with its drafter.

    Args:
        model: an MLX or Hugging Face folder, a GGUF file, or a Hub id; None for the built-in pair;
            or (network, tokenizer), which `mlx_lm.load` has loaded already. A network is checked as
            a folder's, and stays as it is; its arguments stand for its config.json.
        drafter: a folder, a GGUF file or a Hub id, which is converted first where it needs it; None
            for the published drafter of the target; "lookup" to draft by copies of earlier text
            alone, which every target can (scheduler "auto" only); False to decode plainly.
        scheduler: "auto", "lagged" or "prefix" (which measure a quick speed profile where none is
            stored), "full", "threshold:VALUE", or an object like `schedulers.Scheduler`.
        adapter_path: folder of an adapter for the target, as mlx-lm's `lora` command saves it.
        precision: "auto" (float32 on the CPU backend, else as stored), "stored", "float32",
            "bfloat16" or "float16". A network that was given is held as it is, which "auto" means
            there.
        draft_vocabulary: the tokens that drafts are chosen from: "full" for all, a number for so
            many of the most frequent tokens, or "auto" for a sixth or a quarter of a large
            vocabulary. A drafter without a list of frequent tokens uses the first ids instead. The
            tokens of the request are always added. The setting changes speed and accepted length,
            never the output.
        draft_window: how many of the newest positions the drafter attends to at most, which bounds
            its memory in a long context; None for the windows that it was made with, if any. It
            changes accepted length, never the output.
        kv_bits, kv_group_size, quantized_kv_start, max_kv_size: see Caches below.
        prompt_cache_bytes: bytes that prompts and answers are kept in at most, so that a request
            that begins as an earlier one need not read that part again; None for a quarter of the
            memory that is free, 0 to keep nothing.
        prompt_cache_dir: folder in which they outlive the process; None for memory alone.

    Raises:
        InputError: a file, a pair or a setting cannot be used; raised before any generation.

    Warns:
        UserWarning: the target's family ignores `max_kv_size`, or a speed profile was not kept.
    """
    check_scheduler(scheduler)
    if drafter is True:
        raise InputError("drafter", "True", "a folder, a Hub id, None or False")
    asked = given_target(model) if isinstance(model, tuple) else model
    if isinstance(asked, GivenTarget):
        precision = _held_as_given(precision, adapter_path)
    precision = choose_precision(precision)
    draft_vocabulary = parse_setting(draft_vocabulary)
    if draft_window is not None:
        check_whole("draft_window", draft_window, 1)
    caches = CacheSettings(kv_bits, kv_group_size, quantized_kv_start, max_kv_size).checked()
    max_bytes = budget(prompt_cache_bytes) if prompt_cache_bytes is not None else None
    # A missing or damaged drafter is found before a large target is downloaded and loaded.
    adapter = None if adapter_path is None else read_adapter(adapter_path)
    copies = drafter == LOOKUP
    if copies and scheduler != "auto":
        raise InputError("scheduler", repr(scheduler), "'auto', which alone schedules copies")
    stored = _chosen_drafter(asked, False if copies else drafter)
    if stored is not None and draft_window is not None:
        stored = replace(stored, config=stored.config.with_window(draft_window))
    opened = _open(asked, precision, caches, adapter)
    if caches.ignored_by(opened.network):
        message = "max_kv_size does nothing: this family of models makes its own caches"
        warnings.warn(f"{opened.folder}: {message}", stacklevel=2)
    decoder = opened.decoder(_tapped(opened, stored.config.taps if stored else ()))
    if stored is not None:
        check_pair(stored.config, stored.folder, decoder.engine.target, opened.folder)
        decoder = _attached(decoder, stored, draft_vocabulary)
    decoder = _copying(decoder) if copies else _scheduled(decoder, scheduler)
    return _keeping(decoder, budget(None) if max_bytes is None else max_bytes, prompt_cache_dir)


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
    kept = decoder.engine.kept and decoder.engine.kept.fresh()
    with shared.turns:
        with shared.untapped():
            logits = probe_logits(shared.model)
        target = shared.sharing(stored.config.taps, folder)
        check_taps(shared.model, target, logits, folder)
        beside = decoder.with_engine(Engine(target, None, FullScheduler(), kept=kept), None)
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
        caches: how its caches are made.
        adapter: folder of its adapter; None without one.
        tokenizer: the tokenizer that was given with it; None where the folder has one.
    """

    folder: Path
    network: Any
    config: dict[str, Any]
    precision: str
    logits: mx.array
    caches: CacheSettings
    adapter: Path | None = None
    tokenizer: Tokenizer | None = None

    def decoder(self, target: Target) -> Decoder:
        """A decoder without drafter for `target`, which is this target with taps."""
        engine = Engine(target, None, FullScheduler())
        about = self.precision, self.adapter, self.tokenizer
        return Decoder(engine, self.folder, self.config, None, *about)


def _chosen_drafter(
    model: str | Path | GivenTarget | None, drafter: str | Path | Literal[False] | None
) -> StoredDrafter | None:
    """The drafter that is named, or the published one of a target; None for False.

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
    return _published(model, read_json(config) if config else {})


def _open(
    model: str | Path | GivenTarget | None,
    precision: str,
    caches: CacheSettings = DEFAULT_CACHES,
    adapter: Adapter | None = None,
) -> _OpenedTarget:
    """Load a target, and check that its caches can roll back and its logits are finite."""
    if isinstance(model, GivenTarget):
        logits = _checked_logits(model.network, model.name, caches)
        about = model.config, precision, logits, caches
        return _OpenedTarget(model.name, model.network, *about, tokenizer=model.tokenizer)
    folder = builtin.builtin_target() if model is None else target_folder(model)
    network, config = open_network(folder)
    if adapter is not None:
        adapter.apply(network)
    apply_precision(network, held_dtype(precision))
    logits = _checked_logits(network, folder, caches)
    place = adapter.folder if adapter else None
    return _OpenedTarget(folder, network, config, precision, logits, caches, place)


def _held_as_given(precision: str, adapter_path: str | Path | None) -> str:
    """The precision of a given network.

    Raises:
        InputError: it would have to be changed, which is its application's business.
    """
    if precision not in ("auto", "stored"):
        raise InputError("precision", repr(precision), "'auto': a given network stays as it is")
    if adapter_path is not None:
        hint = "Load it with mlx_lm.load(..., adapter_path=...)."
        raise InputError("adapter_path", adapter_path, "none for a given network", hint)
    return "stored"


def _checked_logits(network: Any, folder: Path, caches: CacheSettings) -> mx.array:
    """Logits of a few fixed tokens, from a network whose weights are read and checked here."""
    evaluate(network, folder)
    # Arrays that are not parameters, such as rope frequencies, are evaluated too: other threads
    # cannot use an array that is not.
    mx.eval(arrays_of(network))
    # A family may need what this machine lacks, as a Metal kernel, and say so in its first forward.
    with refusing(folder):
        new_caches(network, folder, caches)
        logits = first_logits(network, folder)
        check_quantized(network, folder, caches)
    return logits


def _tapped(opened: _OpenedTarget, taps: Sequence[int]) -> Target:
    """The target with its layers tapped, and proof that this changes no bit of a logit."""
    with refusing(opened.folder):
        target = Target(opened.network, taps, opened.folder, opened.caches)
        check_taps(opened.network, target, opened.logits, opened.folder)
    return target


def _attached(decoder: Decoder, stored: StoredDrafter, draft_vocabulary: Setting) -> Decoder:
    """The decoder with the drafter added, which is for its target and whose taps that has."""
    target = decoder.engine.target
    with refusing(decoder.target_folder):
        check_rollback(target, decoder.target_folder)
    drafter = _build(stored, target, decoder.precision, draft_vocabulary)
    kept = decoder.engine.kept
    return decoder.with_engine(Engine(target, drafter, FullScheduler(), kept=kept), stored.folder)


def _keeping(decoder: Decoder, max_bytes: int, folder: str | Path | None) -> Decoder:
    """The decoder with a store of prompts, if it may take any bytes."""
    if not max_bytes:
        return decoder
    caches = decoder.engine.target.cache_settings
    start = caches.quantized_kv_start if caches.kv_bits else 0
    disk = None if folder is None else Disk(Path(folder), _prompts_key(decoder))
    kept = KeptPrompts(max_bytes, start, disk)
    return decoder.with_engine(replace(decoder.engine, kept=kept), decoder.drafter_folder)


def _prompts_key(decoder: Decoder) -> str:
    """Digest of all that keys, values and features of a text depend on, hexadecimal."""
    target, drafter = decoder.engine.target, decoder.engine.drafter
    parts = {
        "target": network_digest(target.model)
        if decoder.is_given
        else weights_digest(decoder.target_folder),
        "config": decoder.config,
        "drafter": decoder.drafter_folder and weights_digest(decoder.drafter_folder),
        "drafter config": repr(drafter.config) if drafter else None,
        "adapter": decoder.adapter_folder and weights_digest(decoder.adapter_folder),
        "precision": decoder.precision,
        "caches": repr(target.cache_settings),
        "mlx_lm": mlx_lm.__version__,
        "dspark_mlx": __version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


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
        profile, memory = _profile(pair), learned_path(pair.key())
    has_confidence = drafter.config.has_confidence
    made = make_scheduler(scheduler, profile, drafter.calibrations, has_confidence, memory)
    return decoder.with_scheduler(made, profile)


def _copying(decoder: Decoder) -> Decoder:
    """The decoder of a target alone, drafting by copies of earlier text."""
    target = decoder.engine.target
    with refusing(decoder.target_folder):
        check_rollback(target, decoder.target_folder)
    profile = _profile(Pair.of(decoder, alone=True))
    return decoder.with_engine(Engine(target, None, CopyScheduler(profile), profile), None)


def _profile(pair: Pair) -> SpeedProfile:
    """The pair's speed profile, stored or measured quickly now."""
    with progress_bar("Measuring speed, a few seconds", "pass", delay=1.0) as progress:
        obtained = get_quick_profile(pair, progress)
    if obtained.stale_reason:
        warnings.warn(f"{obtained.stale_reason} {obtained.message}", stacklevel=4)
    return obtained.profile


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
