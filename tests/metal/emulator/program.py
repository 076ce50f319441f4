"""A compiled kernel that can be run: arrays by the names of its buffers, a grid, a threadgroup."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .toolchain import source_line

# Metal's names of what a kernel takes by value.
SCALARS = {
    "bool": np.bool_,
    "int": np.int32,
    "uint": np.uint32,
    "long": np.int64,
    "ulong": np.uint64,
    "size_t": np.uint64,
    "int32_t": np.int32,
    "int64_t": np.int64,
    "uint32_t": np.uint32,
    "float": np.float32,
    "short": np.int16,
}
Grid = tuple[int, int, int]
UNUSED = np.zeros(64, np.uint8)
UNUSED.flags.writeable = False


class EmulationError(Exception):
    """What a kernel must not do: races, accesses out of bounds, barriers that lanes miss."""


@dataclass(frozen=True)
class Buffer:
    """One argument of a kernel: its name, the type of its elements, whether it is written."""

    name: str
    type: str
    write: bool


@dataclass(frozen=True)
class Order:
    """What Apple does not publish, or does not promise; tests try all of it.

    simd: in which order a SIMD reduction adds, 0 to 4. matrix: in which order the eight products
    of a matrix element are added, 0 to 3. seed: in which order lanes run, 0 by index.
    """

    simd: int = 0
    matrix: int = 0
    seed: int = 0


BY_INDEX = Order()


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("writable", ctypes.c_int),
        ("preset", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("offset", ctypes.c_size_t),
    )


class _Config(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("group", ctypes.c_uint32 * 3),
        ("simd_order", ctypes.c_int),
        ("matrix_order", ctypes.c_int),
        ("checked", ctypes.c_int),
        ("seed", ctypes.c_uint64),
    )


@dataclass
class Program:
    """A kernel as a shared library, and its buffers in order."""

    path: Path
    buffers: list[Buffer]
    runtime: Path
    checked: bool
    read: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        self._library = ctypes.CDLL(str(self.path))
        self._run = ctypes.CDLL(str(self.runtime)).emulator_run

    def __call__(
        self,
        arrays: Mapping[str, object],
        grid: Grid,
        group: Grid,
        order: Order = BY_INDEX,
        offsets: Mapping[str, int] | None = None,
    ) -> None:
        """Run the kernel and fill its outputs in place.

        Args:
            arrays: by buffer name, arrays (outputs C-contiguous), or numbers and lists of numbers
                for what is taken by value. Names that the kernel does not have are left out;
                buffers that are not named hold zeros: what a kernel does not use in this mode.
            grid: threads in all, as `dispatch_threads` takes them.
            group: threads in a threadgroup.
            offsets: bytes by which a buffer lies off a page, by name.

        Raises:
            EmulationError: a check fails. `read` has the bytes read of each buffer otherwise.
        """
        held = [self._host(buffer, arrays.get(buffer.name, UNUSED)) for buffer in self.buffers]
        table = (_Buffer * len(held))()
        for i, (array, buffer) in enumerate(zip(held, self.buffers, strict=True)):
            offset = (offsets or {}).get(buffer.name, 0)
            name = buffer.name.encode()
            table[i] = _Buffer(
                array.ctypes.data,
                array.nbytes,
                int(buffer.write),
                int(not buffer.write),
                name,
                offset,
            )
        config = _Config(grid, group, order.simd, order.matrix, int(self.checked), order.seed)
        read = (ctypes.c_uint64 * len(held))()
        message = ctypes.create_string_buffer(2048)
        lane, init = self._library.emulator_entry, self._library.emulator_initialise
        size = ctypes.c_size_t(2048)
        if self._run(lane, init, ctypes.byref(config), table, len(held), read, message, size):
            raise EmulationError(self._placed(message.value.decode()))
        self.read = {buffer.name: read[i] for i, buffer in enumerate(self.buffers)}

    def _host(self, buffer: Buffer, value: object) -> np.ndarray:
        if buffer.write and value is UNUSED:
            raise ValueError(f"{buffer.name} is written: it needs an array")
        if not isinstance(value, np.ndarray):
            return np.array(value, SCALARS[buffer.type]).reshape(-1)
        if buffer.write and not value.flags.c_contiguous:
            raise ValueError(f"{buffer.name} is written and not contiguous")
        return np.ascontiguousarray(value).reshape(-1)

    def _placed(self, message: str) -> str:
        """The message with a line of the source in place of an address."""
        at = re.search(r" at \+0x([0-9a-f]+)\)", message)
        if at is None:
            return message
        # A return address: the call ends one byte before it.
        line = source_line(self.path, int(at.group(1), 16) - 1)
        return message[: at.start()] + (f", {line})" if line else ")")
