"""A prediction head's tensors by their canonical names, in the canonical convention.

The family's own conversion in mlx-lm joins experts and splits projections; it is applied to a model
of the head's layers. Matrices that MLX packed stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import mlx.core as mx

from ..drafters.mtp.block import REFUSALS, block_shapes, build_model
from ..drafters.mtp.config import BLOCK, TARGET_NORM
from ..errors import InputError
from .head_checkpoint import Head
from .heads import COPIES, DROPPED, TARGET_NORMS
from .mlx_quantized import MlxMatrix
from .published import Tensor

FINAL_NORM = f"{TARGET_NORM}.weight"

# Experts that are stored as one tensor, and the projections in it.
_FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_EXPERT = re.compile(r"(.*)\.experts\.(\d+)\.(\w+_proj\.weight)")


def canonical(
    head: Head, tensors: Mapping[str, mx.array | MlxMatrix], keep: bool
) -> dict[str, Tensor]:
    """The tensors by their canonical names, in the canonical convention.

    Args:
        head: the checkpoint.
        tensors: as `Head.read` gives them.
        keep: whether to keep copies of the target's embedding and head.

    Raises:
        InputError: mlx-lm's conversion refuses them.
    """
    form = head.form
    centered = form.zero_centered and not head.is_mlx
    named: dict[str, Tensor] = {}
    layers: dict[str, mx.array] = {}
    matrices = _matrices(head)
    for name, tensor in tensors.items():
        inner = name.removeprefix("language_model.")
        if name in TARGET_NORMS:
            named[FINAL_NORM] = tensor
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


def _matrices(head: Head) -> Collection[str]:
    """Names of the matrices of the head's layers, without `.weight`."""
    with _refusing(head):
        matrices, _ = block_shapes(head.family, head.arguments)
    return matrices


def _converted(head: Head, layers: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """What mlx-lm's conversion of the family makes of the layers' tensors, by layer and name."""
    prefix = head.form.family_prefix
    weights = {f"{prefix}{name}": tensor for name, tensor in layers.items()}
    with _refusing(head):
        made: dict[str, mx.array] = build_model(head.family, head.arguments).sanitize(weights)
    return _stacked({name.partition(prefix)[2]: tensor for name, tensor in made.items()})


@contextmanager
def _refusing(head: Head) -> Iterator[None]:
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
