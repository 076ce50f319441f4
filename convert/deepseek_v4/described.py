"""Refuses a release whose tensors are not those of its config.json: hours before `load` would.

What is compared is what would be written, so that a release of plain numbers passes too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...checkpoint.safetensors import TensorHeader
from ...deepseek_v4.release import released_tensors
from ...errors import InputError
from ..packagings import find_packaging
from .forms import Rules
from .plan import HEAD, Output, Source, planned_outputs

_Shapes = Mapping[str, tuple[int, ...]]


def check_described(
    folder: Path, config: Mapping[str, Any], outputs: Sequence[Output], head_only: bool
) -> None:
    """Compare the outputs of a conversion with its config.json, target and head.

    Args:
        folder: the release's, for errors.
        config: content of its config.json, whose sizes are checked.
        outputs: of the whole conversion.
        head_only: whether the target is left out.

    Raises:
        InputError: a tensor is missing, is none of the config's, or has another shape.
    """
    found = _shapes(outputs)
    head = {name: shape for name, shape in found.items() if name.startswith(HEAD)}
    if not head_only:
        described = _shapes(described_outputs(config, 0, Rules(), folder))
        target = {name: shape for name, shape in found.items() if name not in head}
        _compare(folder, target, described)
    if head:
        packaging = find_packaging(dict(config), head, folder)
        expected = packaging.to_drafter_config(
            dict(config), head, folder / "config.json", keep_embeddings=False
        )
        names = packaging.rename(expected, list(head))
        canonical = {new: head[old] for old, new in names.items() if new is not None}
        matrices = {f"{name}.weight": shape for name, shape in expected.matrix_shapes().items()}
        _compare(folder, canonical, {**matrices, **expected.vector_shapes()})


def described_outputs(
    config: Mapping[str, Any], stages: int, rules: Rules, where: Path
) -> list[Output]:
    """What a conversion of a release writes, by its config.json alone.

    Args:
        config: its content, whose sizes are checked.
        stages: of the head; 0 for none.
        rules: the forms.
        where: names the release in errors.
    """
    tensors = released_tensors(config, stages)
    headers = {n: TensorHeader(where, each.dtype, each.shape) for n, each in tensors.items()}
    source = Source(where, headers)
    return planned_outputs(source, rules, None, config["n_routed_experts"], head_only=False)


def _shapes(outputs: Sequence[Output]) -> dict[str, tuple[int, ...]]:
    """Shapes of the numbers of each output, by the names of plain ones."""
    found = {}
    for each in outputs:
        shape = next(iter(each.parts.values())).shape
        if each.columns:
            found[f"{each.name}.weight"] = (*shape[:-1], each.columns)
        else:
            found[each.name] = shape
    return found


def _compare(folder: Path, found: _Shapes, expected: _Shapes) -> None:
    if missing := sorted(expected.keys() - found.keys()):
        raise InputError(folder, f"no {_some(missing)}", "all tensors that its config.json has")
    if unknown := sorted(found.keys() - expected.keys()):
        raise InputError(folder, _some(unknown), "only tensors that its config.json has")
    for name, shape in found.items():
        if shape != expected[name]:
            wanted = f"{list(expected[name])}, as config.json has it"
            raise InputError(f"{folder}: {name}", f"shape {list(shape)}", wanted)


def _some(names: Sequence[str]) -> str:
    others = f" and {len(names) - 1} others" if len(names) > 1 else ""
    return f"{names[0]}{others}"
