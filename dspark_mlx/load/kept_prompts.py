"""Adds a store of prompts to a decoder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import mlx_lm

from ..checkpoint.fingerprint import weights_digest
from ..decoder import Decoder
from ..reuse.disk import Disk
from ..reuse.kept import KeptPrompts
from ..targets.given import network_digest
from ..targets.model_arrays import ModelArrays
from ..version import __version__


def keeping_prompts(decoder: Decoder, max_bytes: int, folder: Path | None) -> Decoder:
    """The decoder with a store of prompts, if it may take any bytes."""
    if not max_bytes:
        return decoder
    caches = decoder.engine.target.cache_settings
    start = caches.quantized_kv_start if caches.kv_bits else 0
    disk = None if folder is None else Disk(folder, _prompts_key(decoder))
    weights = ModelArrays(decoder.engine.target.model)
    kept = KeptPrompts(max_bytes, start, disk, weights)
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
        "exact": target.exact,
        "mlx_lm": mlx_lm.__version__,
        "dspark_mlx": __version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()
