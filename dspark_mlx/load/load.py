"""Loads a target and its drafter into a Decoder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

from ..caches import CacheSettings
from ..caches.settings import CACHE_SETTINGS
from ..checkpoint.base_config import CanonicalConfig
from ..checkpoint.hub import find_config
from ..checkpoint.layout import Tensors
from ..checkpoint.precision import choose_precision
from ..decoder import Decoder
from ..drafters.base import Drafter
from ..drafters.vocabulary import Setting, parse_setting
from ..engine.state import Engine
from ..errors import InputError
from ..numbers import check_flag, check_whole, shown
from ..pairs.stored import read_drafter
from ..reuse.budget import budget
from ..sampling.setting_table import with_settings
from ..schedulers import Scheduler
from ..schedulers.copies import WIDEST
from ..schedulers.full import FullScheduler
from ..schedulers.make import check_scheduler
from ..schedulers.proposer import LOOKUP
from ..system.files import folder_of
from ..targets.adapter import read_adapter
from ..targets.compatibility import check_pair
from ..targets.deepseek_v4.machines import Machines
from ..targets.exact import make_exact
from ..targets.given import GivenTarget, given_target
from ..targets.network import refusing
from ..targets.self_check import check_rollback
from ..targets.tap_check import check_taps, probe_logits
from .compiled import compile_forwards
from .drafter import attached, built, chosen_drafter
from .kept_prompts import keeping_prompts
from .kernels import apply_kernels
from .scheduled import copying, scheduled
from .target import held_as_given, open_checked, tapped

BuildAs = Callable[[CanonicalConfig, Callable[[Tensors], dict[str, mx.array]]], Drafter]
"""Builds a drafter with another configuration, of the stored tensors after a change to them."""


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
    kernels: bool = False,
    machines: Machines | None = None,
    exact: bool = False,
    compiled: bool = True,
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
        kernels: whether this package's own kernels for products of few rows are used where they
            have won here, see `kernels.guard`; the first load of a pair on a GPU races them, which
            can take minutes. `Decoder.close` gives the network back as it was.
        machines: of a DeepSeek V4 target, the machines that its experts are spread over, of which
            this one leads and the others call `load.serve_experts`; None for this one alone.
        exact: whether greedy output has the bits of plain decoding. Verify forwards compute row by
            row what MLX computes otherwise for several rows, which costs about a plain step a row
            where no exact kernel stands in; requests run one at a time. Not beside `kernels`.
        compiled: whether verify forwards are compiled where that has won here, see
            `targets.compiled`; the first load of a target on a GPU races them, which takes seconds.

    Raises:
        InputError: a file, a pair or a setting cannot be used, or rows of an exact target have
            other bits than plain steps; raised before any generation.

    Warns:
        UserWarning: the target's family ignores `max_kv_size`, this device has no kernels, or a
            speed profile was not kept.
    """
    check_scheduler(scheduler)
    check_flag("kernels", kernels)
    check_flag("exact", exact)
    check_flag("compiled", compiled)
    if machines is not None and not isinstance(machines, Machines):
        raise InputError("machines", shown(machines), "Machines, made of a group")
    if exact and kernels:
        raise InputError("exact", "kernels too", "only one of the two: kernels round otherwise")
    if drafter is True:
        raise InputError("drafter", "True", "a folder, a Hub id, None or False")
    asked = given_target(model) if isinstance(model, tuple) else model
    if isinstance(asked, GivenTarget):
        precision = held_as_given(precision, adapter_path)
    precision = choose_precision(precision)
    draft_vocabulary = parse_setting(draft_vocabulary)
    if draft_window is not None:
        check_whole("draft_window", draft_window, 1)
    caches = CacheSettings(kv_bits, kv_group_size, quantized_kv_start, max_kv_size).checked()
    max_bytes = budget(prompt_cache_bytes) if prompt_cache_bytes is not None else None
    kept_in = None if prompt_cache_dir is None else folder_of("prompt_cache_dir", prompt_cache_dir)
    # A missing or damaged drafter is found before a large target is downloaded and loaded.
    adapter = None if adapter_path is None else read_adapter(adapter_path)
    copies = drafter == LOOKUP
    if copies and scheduler != "auto":
        raise InputError("scheduler", repr(scheduler), "'auto', which alone schedules copies")
    stored = chosen_drafter(asked, False if copies else drafter)
    if stored is not None and draft_window is not None:
        stored = replace(stored, config=stored.config.with_window(draft_window))
    beside = sum(array.nbytes for array in stored.tensors.values()) if stored else 0
    opened = open_checked(asked, precision, caches, adapter, beside, machines)
    if caches.ignored_by(opened.network):
        message = "max_kv_size does nothing: this family of models makes its own caches"
        warnings.warn(f"{opened.folder}: {message}", stacklevel=2)
    reads = (stored.config.taps, stored.config.READS_COPIES) if stored else ((), False)
    decoder = opened.decoder(tapped(opened, *reads))
    if stored is not None:
        check_pair(stored.config, stored.folder, decoder.engine.target, opened.folder)
        decoder = attached(decoder, stored, draft_vocabulary)
    gamma = stored.config.gamma if stored else 0
    if kernels and not apply_kernels(decoder.engine.target, gamma + 1 if gamma else WIDEST):
        message = "kernels do nothing on this device: all there are for GPUs"
        warnings.warn(message, stacklevel=2)
    if exact:
        with refusing(opened.folder):
            make_exact(decoder.engine.target, max(gamma + 1, WIDEST))
    if compiled:
        compile_forwards(decoder.engine.target, decoder.max_length)
    decoder = copying(decoder) if copies else scheduled(decoder, scheduler)
    return keeping_prompts(decoder, budget(None) if max_bytes is None else max_bytes, kept_in)


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
    if shared.exact and stored.config.gamma >= WIDEST:
        found = f"blocks of {stored.config.gamma} tokens beside an exact target"
        raise InputError(stored.folder, found, f"{WIDEST - 1} at most, or load(..., exact=True)")
    kept = decoder.engine.kept and decoder.engine.kept.fresh()
    with shared.turns:
        with shared.untapped():
            logits = probe_logits(shared.model)
        target = shared.sharing(stored.config.taps, folder, stored.config.READS_COPIES)
        check_taps(shared.model, target, logits, folder)
        beside = decoder.with_engine(Engine(target, None, FullScheduler(), kept=kept), None)
        return scheduled(attached(beside, stored, draft_vocabulary), scheduler)


def load_unpaired(
    model: str | Path | None,
    drafter: str | Path,
    taps: Callable[[CanonicalConfig, int], Sequence[int]],
    precision: str = "auto",
) -> tuple[Decoder, CanonicalConfig, BuildAs]:
    """Load a target that decodes plainly, and a drafter to build with several configurations.

    Args:
        model, drafter, precision: see `load`.
        taps: function from the drafter's configuration and the target's number of layers to the
            layers to tap.

    Returns:
        The decoder; the drafter's configuration; and a function that builds a drafter with another
        configuration, of the stored tensors after a change to them.

    Raises:
        InputError: see `load`.
    """
    precision = choose_precision(precision)
    if model is not None:
        find_config(model)
    # Its calibrations are of its own block, which another configuration may make shorter.
    stored = read_drafter(drafter, calibrated=False)
    opened = open_checked(model, precision)
    layers = taps(stored.config, len(opened.network.layers))
    target = tapped(opened, layers, stored.config.READS_COPIES)
    check_pair(stored.config, stored.folder, target, opened.folder)
    with refusing(opened.folder):
        check_rollback(target, opened.folder)

    def build(config: CanonicalConfig, change: Callable[[Tensors], dict[str, mx.array]]) -> Drafter:
        other = replace(stored, config=config, tensors=change(stored.tensors))
        return built(other, target, precision, "full")

    return opened.decoder(target), stored.config, build
