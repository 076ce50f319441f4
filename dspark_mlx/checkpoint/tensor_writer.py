"""Writes tensors to a safetensors file: whole ones, or piece by piece."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import mlx.core as mx
import numpy as np

from ..system.system_errors import writing

ITEM_BYTES = {"I64": 8, "F32": 4, "U32": 4, "I32": 4, "BF16": 2, "F16": 2}
ITEM_BYTES |= dict.fromkeys(("U8", "I8", "F8_E4M3", "F8_E8M0"), 1)
"""Bytes of a number, by the format's name of its type."""


def write_tensors(path: Path, tensors: Mapping[str, mx.array]) -> None:
    """Write a safetensors file into a folder of `system.staging`, which appears whole.

    Raises:
        InputError: the disk is full, or the file cannot be written.
    """
    # MLX writes to an open file, so that Python reports a full disk with its reason; given a name,
    # MLX only says "[write] Unable to write".
    with writing(path), path.open("wb") as file:
        mx.save_safetensors(file, dict(tensors), {"format": "mlx"})


@dataclass(frozen=True)
class Planned:
    """A tensor that is still to be written.

    Attributes:
        dtype: its type as the format names it, one of `ITEM_BYTES`.
        shape: its shape.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


class TensorFile:
    """A safetensors file whose tensors are written in pieces, in any order of the tensors.

    A stack of experts need not be in memory as a whole; the safetensors library and MLX write whole
    tensors only. Used in a `with` block, at whose end the file is on the disk.

    Args:
        path: the file.
        tensors: what will be written, by name.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Planned]) -> None:
        self._path = path
        header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
        self._next: dict[str, int] = {}
        self._end: dict[str, int] = {}
        place = 0
        # Larger numbers first, so that all of them are aligned.
        for name in sorted(tensors, key=lambda name: -ITEM_BYTES[tensors[name].dtype]):
            one, end = tensors[name], place + tensors[name].nbytes
            offsets = [place, end]
            header[name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": offsets}
            self._next[name], self._end[name], place = place, end, end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        with writing(path):
            self._file = path.open("wb")
            self._file.write(len(text).to_bytes(8, "little") + text)

    def __enter__(self) -> Self:
        return self

    def write(self, name: str, piece: mx.array) -> None:
        """Append numbers of a tensor, of its type, to those that were written before.

        Raises:
            InputError: the disk is full, or the file cannot be written.
        """
        content = np.array(mx.contiguous(piece).reshape(-1).view(mx.uint8), copy=False)
        place = self._next[name]
        assert place + content.nbytes <= self._end[name], name
        with writing(self._path):
            self._file.seek(self._start + place)
            self._file.write(content.data)
        self._next[name] += content.nbytes

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if error is None:
                assert self._next == self._end
                with writing(self._path):
                    self._file.flush()
                    os.fsync(self._file.fileno())
