"""Checkpoints of a training run: each a folder that appears whole; the newest is gone on with."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint import read_tensors, tensor_headers
from ..errors import InputError
from ..files import read_json, write_json
from ..staging import staged_folder
from ..tensor_writer import write_tensors

KEPT = 2
"""Newest checkpoints that are kept, beside the best."""
_WEIGHTS, _OPTIMISER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Progress:
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


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: holds one folder a checkpoint.
        identity: what a run is defined by, as JSON values; a checkpoint of another is refused.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder = folder
        self._identity = identity

    def save(
        self, progress: Progress, parameters: dict[str, mx.array], state: dict[str, mx.array]
    ) -> None:
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

    def load(self) -> tuple[Progress, dict[str, mx.array], dict[str, mx.array]] | None:
        """The newest checkpoint: progress, parameters and optimiser state; None without any.

        Raises:
            InputError: it is damaged, or of a run with other settings or data.
        """
        path = self._newest()
        if path is None:
            return None
        content = read_json(path / _STATE)
        if set(content) != {"identity", "progress"}:
            found = f"keys {', '.join(sorted(content))}"
            raise InputError(path / _STATE, found, "identity and progress")
        self._check_identity(path, content["identity"])
        try:
            progress = Progress(**content["progress"])
        except TypeError as error:
            raise InputError(path / _STATE, error, "a run's progress") from error
        return progress, read_tensors(path), read_tensors(path / "optimizer")

    def weights(self, step: int) -> dict[str, mx.array]:
        """The parameters of the checkpoint of a step."""
        return read_tensors(self._path(step))

    def _check_identity(self, path: Path, found: dict[str, Any]) -> None:
        there, wanted = _flat(found), _flat(self._identity)
        for name in sorted({*there, *wanted}):
            if there.get(name) != wanted.get(name):
                hint = "Go on with the settings it was begun with, or choose another folder."
                raise InputError(
                    path, f"{name} {there.get(name)!r}", f"{name} {wanted.get(name)!r}", hint
                )

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:07d}"

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob("step-*")) if self._folder.is_dir() else []

    def _newest(self) -> Path | None:
        return next(reversed(self._all()), None)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
