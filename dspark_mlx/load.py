"""From names to a Decoder: the only place that picks concrete classes and resolves a drafter."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import load_model

from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.convert.target import convert_target

from . import builtin
from .assemble import assemble
from .cache import new_caches
from .checkpoint import read_tensors, tensor_names
from .config import FORMAT, DrafterConfig
from .decoder import Decoder, make_engine
from .drafter import Drafter
from .errors import InputError
from .files import cache_folder, read_json
from .hub import resolve
from .layout import check_tensors
from .precision import apply_precision, choose_precision
from .schedulers import Scheduler, parse_scheduler
from .targets.tap import Target, check_taps, probe_logits
from .vocabulary import Setting, parse_setting


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
        drafter: a drafter folder (converted on the fly where it is not yet) or Hub id; None finds
            the drafter of that target; False decodes plainly.
        scheduler: "auto", "full", "threshold:VALUE", or an object with the same methods.
        precision: "auto" (float32 on the CPU backend, else as stored), "stored", "float32",
            "bfloat16" or "float16".
        draft_vocabulary: tokens that drafts are chosen from: "full", a number of first ids (those
            that the request shows come on top), or "auto", a quarter of a large vocabulary. It
            changes speed and accepted length, never the output.

    Raises:
        InputError: a file, a pair or a setting that cannot be used, before any generation.
    """
    if isinstance(scheduler, str):
        scheduler = parse_scheduler(scheduler)
    if not (hasattr(scheduler, "admit") and hasattr(scheduler, "reads_confidence")):
        raise InputError("scheduler", repr(scheduler), "a name, or an object with admit")
    if drafter is True:
        raise InputError("drafter", "True", "a folder, a Hub id, None or False")
    precision = choose_precision(precision)
    dtype = None if precision == "stored" else getattr(mx, precision)
    draft_vocabulary = parse_setting(draft_vocabulary)
    if model is None:
        folder = builtin.target_folder()
        drafter = builtin.DRAFTER if drafter is None else drafter
    else:
        if drafter is None:
            found = "no drafter"
            hint = "Pass one (--drafter), or none (drafter=False, --no-drafter)."
            raise InputError(model, found, "a target whose drafter is known here", hint)
        folder = _target_folder(model)
    source = None if drafter is False or drafter is None else _drafter_folder(drafter)
    # The drafter is read first: a damaged one fails before a large target is loaded.
    config, tensors = _read_drafter(source) if source else (None, {})
    network, target_config = _load_target(folder, dtype)
    new_caches(network, folder)
    if config is None:
        target, built = Target(network, (), folder), None
    else:
        untapped = probe_logits(network)
        target = Target(network, config.taps, folder)
        check_taps(network, target, untapped, folder)
        check_pair(config, source, target, folder)
        built = _build(config, tensors, target, dtype, draft_vocabulary)
    engine = make_engine(target, built, scheduler)
    return Decoder(engine, folder, target_config, source, precision)


def check_pair(config: DrafterConfig, drafter: object, target: Target, target_name: object) -> None:
    """Refuse a drafter that was made for another target.

    Raises:
        InputError: vocabulary, width or depth differ.
    """
    pairs = [
        ("vocabulary", config.vocab_size, target.vocab_size),
        ("hidden size", config.target_hidden_size, target.hidden_size),
        ("number of layers", config.target_num_layers, target.num_layers),
    ]
    for what, made_for, there in pairs:
        if made_for != there:
            found = f"a drafter for a target of {what} {made_for}"
            hint = f"The target is {target_name}."
            raise InputError(drafter, found, f"one for {what} {there}", hint)
    shared = not (config.owns_embedding and config.owns_head)
    if shared and config.hidden_size != target.hidden_size:
        found = f"hidden size {config.hidden_size} without an embedding and head of its own"
        raise InputError(drafter, found, f"the target's {target.hidden_size}, to share them")


def _load_target(folder: Path, dtype: mx.Dtype | None) -> tuple[nn.Module, dict[str, Any]]:
    config = read_json(folder / "config.json")
    if "model_file" in config:
        found = f"a model_file, {config['model_file']!r}"
        raise InputError(folder / "config.json", found, "no code in a checkpoint")
    tensor_names(folder)
    try:
        model, config = load_model(folder, lazy=True)
    except (ValueError, KeyError, TypeError) as error:
        # mlx-lm's own refusals: an unsupported type, missing or extra tensors, wrong shapes.
        raise InputError(folder, error, "a checkpoint that mlx-lm can load") from error
    apply_precision(model, dtype)
    return model, config


def _target_folder(model: str | Path) -> Path:
    path = resolve(model)
    if path.suffix == ".gguf":
        return _converted(path, "targets", lambda to: convert_target(path, to))
    return path


def _drafter_folder(drafter: str | Path) -> Path:
    path = resolve(drafter)
    if read_json(path / "config.json").get("format") == FORMAT:
        return path
    return _converted(path, "drafters", lambda to: convert_drafter(path, to))


def _converted(source: Path, kind: str, convert: Callable[[Path], object]) -> Path:
    """The converted form of `source` in the cache folder, made when it is not there yet."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    # A changed file is another key, so a stale conversion is never used.
    key = hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    folder = cache_folder() / kind / f"{source.stem}-{key}"
    if not folder.is_dir():
        convert(folder)
    return folder


def _read_drafter(folder: Path) -> tuple[DrafterConfig, dict[str, mx.array]]:
    config = DrafterConfig.from_dict(read_json(folder / "config.json"), folder / "config.json")
    tensors = read_tensors(folder)
    check_tensors(config, tensors, folder)
    return config, tensors


def _build(
    config: DrafterConfig,
    tensors: dict[str, mx.array],
    target: Target,
    dtype: mx.Dtype | None,
    draft_vocabulary: Setting,
) -> Drafter:
    return assemble(
        config,
        tensors,
        target.embed,
        target.logits,
        dtype=dtype or target.dtype,
        dequantise=dtype is not None,
        output=target.head,
        draft_vocabulary=draft_vocabulary,
    )
