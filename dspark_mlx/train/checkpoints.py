"""Checkpoints of a training run: each a folder that appears whole; the newest is gone on with."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx

from ..checkpoint.safetensors import read_tensors, tensor_headers
from ..checkpoint.tensor_writer import write_tensors
from ..errors import InputError
from ..system.files import read_json, write_json
from ..system.staging import staged_folder

Arrays: TypeAlias = dict[str, mx.array]

KEPT = 2
"""Newest checkpoints that are kept, beside the best."""
_STEPS = "settings.recipe.steps"
"""The one part of a run's identity that may change: it may grow."""
_WEIGHTS, _OPTIMISER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class TrainingProgress:
    """Where a run is.

    Attributes:
        step: steps done.
        best: the best evaluation's tokens a round, and bad: evaluations since. best_step: its step.
        seconds: of training so far.
    """

    step: int = 0
    best: float = 0.0
    best_step: int = 0
    bad: int = 0
    seconds: float = 0.0


class _OtherRunError(InputError):
    """A checkpoint that is whole, and of a run with other settings or data."""


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: holds one folder a checkpoint.
        identity: what a run is defined by, as JSON values; a checkpoint of another is refused.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder = folder
        self._identity = identity

    def save(self, progress: TrainingProgress, parameters: Arrays, state: Arrays) -> None:
        """Write a checkpoint, then remove those that are neither new nor the best.

        Raises:
            InputError: it cannot be written whole; those before it are kept.
        """
        final = self._path(progress.step)
        try:
            with staged_folder(final, overwrite=True) as folder:
                write_tensors(folder / _WEIGHTS, parameters)
                # Not beside the weights by name: what loads a folder must not find it.
                (folder / "optimizer").mkdir()
                write_tensors(folder / "optimizer" / _OPTIMISER, state)
                for written in (folder, folder / "optimizer"):
                    tensor_headers(written)
                content = {"identity": self._identity, "progress": asdict(progress)}
                write_json(folder / _STATE, content)
        except InputError as error:
            last = self._newest()
            kept = f"The last one is {last}." if last else "There is none before it."
            raise InputError(
                final, f"no way to write it ({error})", "room on disk", kept
            ) from error
        keep = {self._path(progress.best_step), *self._all()[-KEPT:]}
        for path in self._all():
            if path not in keep:
                shutil.rmtree(path)

    def load(
        self, parameters: Arrays, state: Arrays
    ) -> tuple[TrainingProgress, Arrays, Arrays] | None:
        """The newest checkpoint: progress, parameters and optimiser state; None without any.

        Args:
            parameters, state: what the run begins with: a checkpoint has arrays of these names and
                shapes.

        Raises:
            InputError: it is damaged, and an older one that is whole is named; or it is of a run
                with other settings or data (but for more steps than it was begun with).
        """
        newest = self._newest()
        if newest is None:
            return None
        try:
            return self._read(newest, parameters, state)
        except _OtherRunError:
            raise
        except InputError as error:
            hint = "No older one is whole: choose another folder to begin anew."
            for path in reversed(self._all()[:-1]):
                if self._is_whole(path, parameters, state):
                    hint = f"{path} is whole: remove {newest} to go on from there."
                    break
            raise InputError(error.where, error.found, error.expected, hint) from error

    def _read(
        self, path: Path, parameters: Arrays, state: Arrays
    ) -> tuple[TrainingProgress, Arrays, Arrays]:
        content = read_json(path / _STATE)
        if set(content) != {"identity", "progress"}:
            found = f"keys {', '.join(sorted(content))}"
            raise InputError(path / _STATE, found, "identity and progress")
        for name, value in content.items():
            if not isinstance(value, dict):
                raise InputError(path / _STATE, f"{name} {value!r}", "an object")
        self._check_identity(path, content["identity"])
        progress = _progress(content["progress"], path)
        return progress, _arrays(path, parameters), _arrays(path / "optimizer", state)

    def _is_whole(self, path: Path, parameters: Arrays, state: Arrays) -> bool:
        try:
            self._read(path, parameters, state)
        except InputError:
            return False
        return True

    def weights(self, step: int) -> Arrays:
        """The parameters of the checkpoint of a step."""
        return read_tensors(self._path(step))

    def _check_identity(self, path: Path, found: dict[str, Any]) -> None:
        there, wanted = _flat(found), _flat(self._identity)
        for name in sorted({*there, *wanted}):
            if name == _STEPS and name in there and _at_most(there[name], wanted[name]):
                continue
            if there.get(name) != wanted.get(name):
                hint = "Go on with the settings it was begun with, or choose another folder."
                raise _OtherRunError(
                    path, f"{name} {there.get(name)!r}", f"{name} {wanted.get(name)!r}", hint
                )

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:07d}"

    def _all(self) -> list[Path]:
        return checkpoints_in(self._folder)

    def _newest(self) -> Path | None:
        return next(reversed(self._all()), None)


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _at_most(steps: object, limit: int) -> bool:
    return type(steps) is int and steps <= limit


def _progress(values: dict[str, Any], path: Path) -> TrainingProgress:
    """Where the run of a checkpoint's folder is."""
    fields = {name: type(value) for name, value in asdict(TrainingProgress()).items()}
    if set(values) != set(fields):
        raise InputError(path / _STATE, f"progress of {', '.join(values)}", ", ".join(fields))
    for name, kind in fields.items():
        value = values[name]
        if type(value) not in (int, kind) or not 0 <= value < math.inf:
            raise InputError(path / _STATE, f"{name} {value!r}", f"{kind.__name__} of 0 or more")
    return TrainingProgress(**values)


def _arrays(folder: Path, like: Arrays) -> Arrays:
    """A folder's tensors, which have the names and shapes of others."""
    tensors = read_tensors(folder)
    shapes = {name: list(array.shape) for name, array in tensors.items()}
    for name in sorted({*tensors, *like}):
        expected = list(like[name].shape) if name in like else None
        if shapes.get(name) != expected:
            found = f"{name} {shapes.get(name, 'missing')}"
            raise InputError(folder, found, f"{name} {expected or 'left out'}")
    return tensors


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
