"""Reads the header of a GGUF file, its metadata and tensor table, and checks every length.

It reads no tensor data and knows no architecture; `blocks` reads tensors, one at a time.
Source: the GGUF specification (ggml/docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import itertools
import math
import mmap
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ...errors import InputError

# The types that can be read: ggml's number -> (name, weights per block, bytes per block).
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    30: ("BF16", 1, 2),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}
# Types that are not read, by name for messages: most need code books, or are for ternary targets.
_UNREAD = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    41: "Q1_0",
    42: "Q2_0",
}
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SPLIT_NAME = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_LONGEST_ARRAY = 1 << 24  # values; large vocabularies have a quarter of a million


@dataclass(frozen=True)
class TensorInfo:
    """One row of a GGUF file's tensor table."""

    name: str  # as "blk.0.attn_q.weight"
    shape: tuple[int, ...]  # outermost dimension first, as in MLX; the file has the reverse order
    type: str  # the ggml type's name
    start: int  # first byte of the data, from the start of the file
    size: int  # bytes of the data


@dataclass(frozen=True)
class Header:
    """A GGUF file's metadata (numbers, strings, lists) and its tensor table, both by name."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


Judge: TypeAlias = Callable[[dict[str, Any], dict[str, tuple[int, ...]]], None]
"""A function of a file's metadata and of its tensors' shapes; it raises an InputError to refuse
the file."""


class _Reader:
    """Little-endian values from a buffer; raises InputError instead of reading past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, count: int, what: str) -> bytes:
        self.need(self.at + count, what)
        self.at += count
        return self.data[self.at - count : self.at]

    def need(self, end: int, what: str) -> None:
        if end > len(self.data):
            found = f"{len(self.data)} bytes, ending inside {what}"
            hint = "The file is cut off or damaged: download it again."
            raise InputError(self.path, found, f"at least {end} bytes", hint)

    def scalar(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def string(self, what: str) -> str:
        raw = self.take(self.scalar("Q", what), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(self.path, f"bytes that are not UTF-8 in {what}", "text") from error

    def value(self, kind: int, what: str) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            item, count = self.scalar("I", what), self.scalar("Q", what)
            if count > _LONGEST_ARRAY:
                raise InputError(
                    self.path, f"{count} values in {what}", f"{_LONGEST_ARRAY} at most"
                )
            if item == _STRING:
                return [self.string(what) for _ in range(count)]
            if item in _SCALARS:
                form = np.dtype("<" + _SCALARS[item])
                return np.frombuffer(self.take(count * form.itemsize, what), form).tolist()
            kind = item
        known = f"one of {sorted([*_SCALARS, _STRING, _ARRAY])}"
        raise InputError(self.path, f"metadata type {kind} in {what}", known)


def read_header(path: Path, judge: Judge | None = None) -> Header:
    """Read and check the metadata and the tensor table of a GGUF file.

    Args:
        path: the file.
        judge: called before the tensors' types are checked, so that a file of a wrong architecture
            is refused for that, and not for a type in it.

    Raises:
        InputError: the file is not a whole GGUF file of version 2 or 3, is one part of a split
            file, or has a tensor with data outside the file or of a type that cannot be read.
    """
    part = _SPLIT_NAME.search(path.name)
    if part and int(part[2]) > 1:
        found = f"part {int(part[1])} of a GGUF split in {int(part[2])}"
        hint = "Join the parts with `llama-gguf-split --merge`."
        raise InputError(path, found, "one whole file", hint)
    try:
        if not path.stat().st_size:
            raise InputError(path, "an empty file", "a GGUF file")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Reader(path, data), judge)
    except OSError as error:
        raise InputError(path, f"no readable file ({error})", "a GGUF file") from error


def _parse(reader: _Reader, judge: Judge | None) -> Header:
    path = reader.path
    if (magic := reader.take(4, "the header")) != b"GGUF":
        raise InputError(path, f"a file that starts with {magic!r}", "a GGUF file (b'GGUF')")
    if (version := reader.scalar("I", "the header")) not in (2, 3):
        raise InputError(path, f"GGUF version {version}", "version 2 or 3, little-endian")
    tensor_count = reader.scalar("Q", "the header")
    metadata: dict[str, Any] = {}
    for _ in range(reader.scalar("Q", "the header")):
        key = reader.string("a metadata key")
        if key in metadata:
            raise InputError(path, f"two metadata entries {key}", "one entry")
        metadata[key] = reader.value(reader.scalar("I", key), key)
    rows = [_table_row(reader) for _ in range(tensor_count)]
    if judge is not None:
        judge(metadata, {name: shape for name, shape, _, _ in rows})
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
        raise InputError(path, f"general.alignment {alignment!r}", "a multiple of 8")
    base = -(-reader.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, offset in rows:
        type_name, size = _stored_as(path, name, shape, kind)
        reader.need(base + offset + size, name)
        if name in tensors:
            raise InputError(path, f"two tensors named {name}", "one tensor")
        tensors[name] = TensorInfo(name, shape, type_name, base + offset, size)
    in_order = sorted(tensors.values(), key=lambda row: row.start)
    for one, after in itertools.pairwise(in_order):
        if one.start + one.size > after.start:
            found = f"the data of {one.name} overlapping that of {after.name}"
            raise InputError(path, found, "tensors that do not overlap")
    return Header(path, metadata, tensors)


def _table_row(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.string("the tensor table")
    if not 1 <= (ndim := reader.scalar("I", name)) <= 4:
        raise InputError(reader.path, f"{ndim} dimensions for {name}", "1 to 4")
    shape = tuple(reader.scalar("Q", name) for _ in range(ndim))[::-1]
    return name, shape, reader.scalar("I", name), reader.scalar("Q", name)


def _stored_as(path: Path, name: str, shape: tuple[int, ...], kind: int) -> tuple[str, int]:
    """The name of a tensor's type, and the number of bytes of its data."""
    if kind not in TENSOR_TYPES:
        known = ", ".join(name for name, _, _ in TENSOR_TYPES.values())
        title = f"{kind} ({_UNREAD[kind]})" if kind in _UNREAD else kind
        raise InputError(path, f"ggml type {title} for {name}", f"one of {known}")
    type_name, per_block, block_bytes = TENSOR_TYPES[kind]
    if 0 in shape or shape[-1] % per_block:
        rows = f"non-empty rows of a multiple of {per_block}"
        raise InputError(path, f"shape {shape} for {name}", rows)
    return type_name, math.prod(shape) // per_block * block_bytes


def shortest(value: float) -> float:
    """A float32 as the shortest decimal that gives it: 1e-05, not 9.999999747e-06."""
    return float(str(np.float32(value)))
