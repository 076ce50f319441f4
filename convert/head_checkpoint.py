"""Finds a prediction head in a checkpoint, and reads its tensors.

Only the files that hold the head are read, and of the Hub's downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import MODEL_REMAPPING
from safetensors import safe_open

from ..checkpoint.hub import find_config, resolve_some
from ..checkpoint.number_ranges import check_numbers
from ..checkpoint.safetensors import load_arrays, read_header
from ..errors import InputError
from ..system.files import read_json
from .heads import FORMATS, SIDECARS, SPECULATORS, TARGET_NORMS, HeadFormat, head_arguments
from .mlx_quantized import MlxMatrix, grouped
from .packagings.source import Source, proposed

_SPECULATORS = "speculators_model_type"


@dataclass(frozen=True)
class Head:
    """A target's checkpoint, of which the head is read.

    Attributes:
        source: its text config; without tensors.
        family: see `MTPConfig`.
        form: the family's format.
        steps: tokens a round that the checkpoint proposes; None where it does not say.
        files: the safetensors files that may hold parts of the head.
    """

    source: Source
    family: str
    form: HeadFormat
    steps: int | None
    files: list[Path]

    @property
    def depth(self) -> int:
        """Number of the target's layers."""
        return self.source.whole("num_hidden_layers")

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of a model of the head's layers alone."""
        return head_arguments(self.family, self.source.config, self.form)

    @property
    def is_mlx(self) -> bool:
        """Whether MLX wrote the files: mlx-lm stores norms as factors."""
        for path in self.files:
            with safe_open(str(path), framework="numpy") as file:
                if (file.metadata() or {}).get("format") == "mlx":
                    return True
        return False

    def read(self) -> dict[str, mx.array | MlxMatrix]:
        """Its tensors, loaded lazily.

        Raises:
            InputError: there are none; or see `read_header`.
        """
        found: dict[str, mx.array] = {}
        wanted = _wanted(self.form, self.depth)
        for path in self.files:
            names = [name for name in read_header(path) if wanted(_module(name))]
            if names:
                arrays = load_arrays(path)
                found |= {name: arrays[name] for name in names}
        if all(name in TARGET_NORMS for name in found):
            hint = "Conversions by mlx-lm leave it out: name the original checkpoint."
            raise InputError(self.source.where, "no tensors of a prediction head", "some", hint)
        return grouped(read_json(self.source.path), found, self.source.where)


def open_head(name: str | Path) -> Head:
    """The checkpoint's config and files.

    Raises:
        InputError: there is no config, or its family's head is not known.
    """
    path = find_config(name)
    if path is None:
        raise InputError(name, "no config.json", "a target's original checkpoint")
    raw = read_json(path)
    check_numbers(path, raw)
    if raw.get(_SPECULATORS) == "mtp":
        return _open_speculators(raw, path)
    kind = str(raw.get("model_type"))
    family = MODEL_REMAPPING.get(kind, kind).removesuffix("_text")
    if family not in FORMATS and kind not in SIDECARS:
        expected = f"a target of {', '.join(FORMATS)}, or a head of {', '.join(SIDECARS)}"
        raise InputError(path, f"model_type {kind!r}", expected)
    text = raw.get("text_config") or raw
    if not isinstance(text, dict):
        raise InputError(path, f"text_config {text!r:.40}", "an object")
    if kind in SIDECARS:
        family = "qwen3_5_moe" if text.get("num_experts") else "qwen3_5"
    source = _checked(text, path, family)
    if text.get("mtp_use_dedicated_embeddings"):
        source.refuse("mtp_use_dedicated_embeddings", True, "a head that shares the embedding")
    form = SIDECARS.get(kind) or FORMATS[family]
    layers = source.whole("num_hidden_layers")
    return Head(source, family, form, None, resolve_some(name, _wanted(form, layers)))


def _open_speculators(raw: dict[str, Any], path: Path) -> Head:
    """As `open_head`, of vLLM's packaging: the target's keys are nested."""
    outer = Source(raw, {}, path.parent, "vLLM speculators mtp")
    text = outer.nested("transformer_layer_config")
    family = str(text.get("model_type")).removesuffix("_text")
    if family not in SPECULATORS:
        expected = f"a head for {', '.join(SPECULATORS)}"
        raise InputError(path, f"model_type {text.get('model_type')!r}", expected)
    if (count := raw.get("num_nextn_predict_layers", 1)) != 1:
        outer.refuse("num_nextn_predict_layers", count, "1")
    form, source = SPECULATORS[family], _checked(text, path, family)
    wanted = _wanted(form, source.whole("num_hidden_layers"))
    return Head(source, family, form, proposed(outer), resolve_some(path.parent, wanted))


def _checked(text: dict[str, Any], path: Path, family: str) -> Source:
    """The text config, with the sizes that every head needs."""
    source = Source(text, {}, path.parent, f"{family} target's")
    for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size"):
        source.whole(key)
    return source


def is_lone_head(place: Path) -> bool:
    """Whether a folder holds a prediction head that was published by itself."""
    if not place.is_dir():
        return False
    config = read_json(place / "config.json")
    return config.get("model_type") in SIDECARS or config.get(_SPECULATORS) == "mtp"


def _wanted(form: HeadFormat, depth: int) -> Callable[[str], bool]:
    """Whether a tensor belongs to the head, or is the target's final norm."""
    prefix = f"{form.layers}{depth}." if form.behind else form.layers

    def wanted(name: str) -> bool:
        inner = name.removeprefix("language_model.")
        return inner.startswith(prefix) or inner in form.outer or name in TARGET_NORMS

    return wanted


def _module(name: str) -> str:
    """A tensor's name, for a part of a packed matrix the matrix' own."""
    for part in (".scales", ".biases"):
        if name.endswith(part):
            return f"{name.removesuffix(part)}.weight"
    return name
