"""Makes a drafter of a target's own prediction head, read from the target's original checkpoint.

Heads that were published by themselves, by mlx-vlm or in vLLM's speculators packaging, are read
too. Matrices that MLX packed stay as they are.

Only the files that hold the head are read, and of the Hub's downloaded. The family's own conversion
in mlx-lm joins experts and splits projections; it is applied to a model of the head's layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import MODEL_REMAPPING
from safetensors import safe_open

from ..checkpoint.base_config import CanonicalConfig
from ..checkpoint.hub import find_config, hub_name, resolve_some
from ..checkpoint.number_ranges import check_numbers
from ..checkpoint.safetensors import load_arrays, read_header
from ..drafters.mtp.block import REFUSALS, block_shapes, build_model
from ..drafters.mtp.config import BLOCK, MTPConfig
from ..errors import InputError
from ..system.files import check_apart, read_json
from .canonical_folder import Settings, write_drafter
from .heads import (
    COPIES,
    DROPPED,
    FORMATS,
    LONE,
    SIDECARS,
    SPECULATORS,
    TARGET_NORMS,
    HeadFormat,
    head_arguments,
)
from .mlx_quantized import MlxMatrix, grouped
from .packagings.source import Source, proposed
from .published import Tensor

STEPS = 3
"""Tokens a round that heads propose by default."""

_SPECULATORS = "speculators_model_type"
_FINAL = "target_norm.weight"
# Experts that are stored as one tensor, and the projections in it.
_FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_EXPERT = re.compile(r"(.*)\.experts\.(\d+)\.(\w+_proj\.weight)")


@dataclass(frozen=True)
class _Head:
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

    def wants(self, name: str) -> bool:
        return _wanted(self.form, self.depth)(name)

    @property
    def depth(self) -> int:
        return self.source.whole("num_hidden_layers")


def convert_mtp(
    name: str | Path,
    destination: Path,
    *,
    steps: int | None = None,
    keep_embeddings: bool = False,
    settings: Settings | None = None,
) -> CanonicalConfig:
    """Write a canonical folder with the prediction head of a target.

    Args:
        name: the target's original checkpoint, a folder or a Hub id.
        destination: folder to make; it appears whole or not at all.
        steps: tokens that the head proposes a round; None for the checkpoint's number, or `STEPS`.
        keep_embeddings: whether to keep the head's copies of the target's embedding and head.
        settings: see `Settings`; None for its defaults.

    Returns:
        The canonical configuration that was written.

    Raises:
        InputError: the checkpoint has no head, or one that is not known; nothing was written.
    """
    head = _open(name)
    check_apart(head.source.where, destination)
    tensors = _read(head)
    centered = head.form.zero_centered and not _is_mlx(head.files)
    named = _canonical(head, tensors, centered, keep_embeddings)
    state = "normed"
    if head.form in LONE:
        # Without the target's norm only the state before it can be read.
        named.setdefault(_FINAL, mx.ones((head.source.whole("hidden_size"),)))
        state = "raw"
    steps = next(count for count in (steps, head.steps, STEPS) if count is not None)
    config = _config(head, steps, state, named, hub_name(name) or head.source.where.name)
    return write_drafter(config, named, head.source.where, destination, settings or Settings())


def _open(name: str | Path) -> _Head:
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
    return _Head(source, family, form, None, resolve_some(name, _wanted(form, layers)))


def _open_speculators(raw: dict[str, Any], path: Path) -> _Head:
    """As `_open`, of vLLM's packaging: the target's keys are nested."""
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
    return _Head(source, family, form, proposed(outer), resolve_some(path.parent, wanted))


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


def _read(head: _Head) -> dict[str, mx.array | MlxMatrix]:
    """The head's tensors, loaded lazily.

    Raises:
        InputError: there are none; or see `read_header`.
    """
    found: dict[str, mx.array] = {}
    for path in head.files:
        names = [name for name in read_header(path) if head.wants(_module(name))]
        if names:
            arrays = load_arrays(path)
            found |= {name: arrays[name] for name in names}
    if all(name in TARGET_NORMS for name in found):
        hint = "Conversions by mlx-lm leave it out: name the original checkpoint."
        raise InputError(head.source.where, "no tensors of a prediction head", "some", hint)
    return grouped(read_json(head.source.path), found, head.source.where)


def _module(name: str) -> str:
    """A tensor's name, for a part of a packed matrix the matrix' own."""
    for part in (".scales", ".biases"):
        if name.endswith(part):
            return f"{name.removesuffix(part)}.weight"
    return name


def _is_mlx(files: list[Path]) -> bool:
    """Whether MLX wrote the files: mlx-lm stores norms as factors."""
    for path in files:
        with safe_open(str(path), framework="numpy") as file:
            if (file.metadata() or {}).get("format") == "mlx":
                return True
    return False


def _canonical(
    head: _Head, tensors: Mapping[str, mx.array | MlxMatrix], centered: bool, keep: bool
) -> dict[str, Tensor]:
    """The tensors by their canonical names, in the canonical convention.

    Raises:
        InputError: mlx-lm's conversion refuses them.
    """
    form = head.form
    named: dict[str, Tensor] = {}
    layers: dict[str, mx.array] = {}
    matrices = _matrices(head)
    for name, tensor in tensors.items():
        inner = name.removeprefix("language_model.")
        if name in TARGET_NORMS:
            named[_FINAL] = tensor
        elif inner in form.outer:
            named[form.outer[inner]] = tensor
        elif not name.endswith(DROPPED):
            layer, _, rest = inner.removeprefix(form.layers).partition(".")
            place = f"{int(layer) - head.depth if form.behind else layer}.{rest}"
            packed = isinstance(tensor, MlxMatrix)
            if packed and place.removesuffix(".weight") in matrices:
                # As the family's layers have it: it stays as MLX packed it.
                named[f"{BLOCK}.{place}"] = tensor
            else:
                layers[place] = tensor.values() if isinstance(tensor, MlxMatrix) else tensor
    # Norms stay apart: some families' conversions would add 1 to them, and some would not.
    norms = {name: layers.pop(name) for name in list(layers) if name.endswith("norm.weight")}
    for name, tensor in [*norms.items(), *_converted(head, layers).items()]:
        rest = name.partition(".")[2]
        if rest in form.inner:
            named[form.inner[rest]] = tensor
        elif rest in COPIES:
            if keep:
                named[COPIES[rest]] = tensor
        else:
            named[f"{BLOCK}.{name}"] = tensor
    for name, stored in named.items():
        if centered and isinstance(stored, mx.array) and name.endswith("norm.weight"):
            # As mlx-lm does, in the stored type.
            named[name] = stored + 1
    return named


def _matrices(head: _Head) -> Collection[str]:
    """Names of the matrices of the head's layers, without `.weight`."""
    with _refusing(head):
        return block_shapes(
            head.family, head_arguments(head.family, head.source.config, head.form)
        )[0]


def _converted(head: _Head, layers: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """What mlx-lm's conversion of the family makes of the layers' tensors, by layer and name."""
    prefix = head.form.family_prefix
    arguments = head_arguments(head.family, head.source.config, head.form)
    weights = {f"{prefix}{name}": tensor for name, tensor in layers.items()}
    with _refusing(head):
        made: dict[str, mx.array] = build_model(head.family, arguments).sanitize(weights)
    return _stacked({name.partition(prefix)[2]: tensor for name, tensor in made.items()})


@contextmanager
def _refusing(head: _Head) -> Iterator[None]:
    """Turn what mlx-lm raises for a head that contradicts itself into an `InputError`."""
    try:
        yield
    except REFUSALS as error:
        found = f"a head that mlx-lm cannot convert ({type(error).__name__}: {error})"
        raise InputError(head.source.where, found, f"one of a {head.family} target") from error


def _stacked(tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    """Each projection of all experts as one tensor, where the family's conversion joins none."""
    experts: dict[str, dict[int, mx.array]] = {}
    for name in list(tensors):
        place, _, part = name.rpartition(".experts.")
        if part in _FUSED:
            halves = mx.split(tensors.pop(name), len(_FUSED[part]), axis=-2)
            for own, half in zip(_FUSED[part], halves, strict=True):
                tensors[f"{place}.switch_mlp.{own}.weight"] = half
        elif match := _EXPERT.fullmatch(name):
            joined = f"{match[1]}.switch_mlp.{match[3]}"
            experts.setdefault(joined, {})[int(match[2])] = tensors.pop(name)
    stacks = {name: mx.stack([parts[i] for i in sorted(parts)]) for name, parts in experts.items()}
    return tensors | stacks


def _config(
    head: _Head, steps: int, state: str, named: Mapping[str, Tensor], target: str
) -> CanonicalConfig:
    """The canonical configuration.

    Raises:
        InputError: the target's config lacks a key, or contradicts itself.
    """
    source, text = head.source, head.source.config
    hidden, heads = source.whole("hidden_size"), source.whole("num_attention_heads")
    epsilon = next((k for k in ("rms_norm_eps", "layer_norm_epsilon", "norm_eps") if k in text), "")
    rope = text.get("rope_parameters") or text
    config = MTPConfig(
        hidden_size=hidden,
        intermediate_size=text.get("intermediate_size") or source.whole("moe_intermediate_size"),
        num_heads=heads,
        num_kv_heads=source.whole("num_key_value_heads"),
        head_dim=text.get("head_dim") or hidden // heads,
        rms_norm_eps=source.number(epsilon or "rms_norm_eps"),
        vocab_size=source.whole("vocab_size"),
        target_hidden_size=hidden,
        target_num_layers=head.depth,
        taps=(head.depth - 1,),
        rope_theta=source.number("rope_theta", rope, default=10000.0),
        owns_embedding="embed_tokens.weight" in named,
        owns_head="lm_head.weight" in named,
        target=target,
        family=head.family,
        arguments=head_arguments(head.family, text, head.form),
        steps=steps,
        state=state,
        feedback="normed",
        order=head.form.order,
    )
    return MTPConfig.from_dict(config.to_dict(), source.path)
