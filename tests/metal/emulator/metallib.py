"""The kernels of a metallib file: a table of names, and one LLVM bitcode module for each."""

from __future__ import annotations

import re
import struct
from functools import cache
from pathlib import Path

# Apple's wrapper around bitcode: five little-endian words (magic, version, offset, size, CPU).
WRAPPER = struct.pack("<I", 0x0B17C0DE)
BITCODE = b"BC\xc0\xde"


@cache
def kernels(path: Path) -> dict[str, bytes]:
    """Bitcode by name of the kernel.

    Raises:
        ValueError: the table and the modules do not match, so this is not the format known here.
    """
    data = path.read_bytes()
    names, modules = _names(data), _modules(data)
    if len(names) != len(modules) or not names:
        raise ValueError(f"{path}: {len(names)} names, {len(modules)} modules")
    return dict(zip(names, modules, strict=True))


def _modules(data: bytes) -> list[bytes]:
    found = []
    at = data.find(WRAPPER)
    while at >= 0:
        _, _, offset, size, _ = struct.unpack_from("<5I", data, at)
        module = data[at + offset : at + offset + size]
        # The magic may also turn up inside of something else.
        real = module[:4] == BITCODE
        if real:
            found.append(module)
        at = data.find(WRAPPER, at + offset + size if real else at + 4)
    return found


def _names(data: bytes) -> list[str]:
    """Names in the header's table, in the order of the modules: tag, length, text, zero."""
    found = []
    for tag in re.finditer(rb"NAME(..)", data, re.S):
        (length,) = struct.unpack("<H", tag.group(1))
        text = data[tag.end() : tag.end() + length]
        if text.endswith(b"\0") and re.fullmatch(rb"[\w.<>, ]+", text[:-1]):
            found.append(text[:-1].decode())
    return found
