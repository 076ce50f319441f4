"""Edits of a safetensors file: of its length field, its header and its numbers."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

from . import byte_edits, json_edits, odd

_DTYPES = ("F64", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I64", "I32", "I8", "U8", "BOOL")
_WORDS = {"nan": b"\x00\x00\xc0\x7f", "infinity": b"\x00\x00\x80\x7f", "3e38": b"\x99\x76\x61\x7f"}


def damage(rng: Random, content: bytes) -> tuple[bytes, str]:
    """The file with one edit, and the edit in words."""
    kind = rng.random()
    if kind < 0.2:
        return byte_edits.damage(rng, content)
    (length,) = struct.unpack_from("<Q", content)
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    if kind < 0.3:
        wrong = rng.choice((0, 1, length - 1, length + 1, len(content), 2**31, 2**63, 2**64 - 1))
        return struct.pack("<Q", wrong) + content[8:], f"header length {wrong}, is {length}"
    if kind < 0.5:
        head, words = json_edits.damage(rng, header)
        return _joined(head, data), f"header: {words}"
    name = rng.choice([name for name in header if name != "__metadata__"])
    if kind < 0.75:
        data, words = _numbers(rng, header[name], data)
    else:
        words = _entry(rng, header, name)
    return _joined(json.dumps(header).encode(), data), f"{name}: {words}"


def _joined(head: bytes, data: bytes) -> bytes:
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data


def _numbers(rng: Random, entry: dict[str, Any], data: bytes) -> tuple[bytes, str]:
    """Numbers that no weight has, in one place or in all."""
    begin, end = entry["data_offsets"]
    word = rng.choice(list(_WORDS))
    if rng.random() < 0.5:
        begin += 4 * rng.randrange(max((end - begin) // 4, 1))
        end = begin + 4
    count = (end - begin) // 4
    return data[:begin] + _WORDS[word] * count + data[end:], f"{count} numbers are {word}"


def _entry(rng: Random, header: dict[str, Any], name: str) -> str:
    """Another type, shape, place or name of one tensor."""
    entry, kind = header[name], rng.randrange(7)
    if kind == 0:
        entry["dtype"] = rng.choice(_DTYPES)
        return f"of type {entry['dtype']}"
    if kind == 1:
        entry["shape"] = odd.near(rng, entry["shape"])
        return f"of shape {entry['shape']}"
    if kind == 2:
        entry["shape"] = entry["shape"][::-1] if len(entry["shape"]) > 1 else [1, *entry["shape"]]
        return f"of shape {entry['shape']}"
    if kind == 3:
        del header[name]
        return "left out"
    if kind == 4:
        header[rng.choice((f"{name}.extra", "extra.weight", f"model.{name}"))] = header.pop(name)
        return "renamed"
    if kind == 5:
        header["extra.weight"] = dict(entry)
        return "there twice"
    other = rng.choice([name for name in header if name != "__metadata__"])
    entry["data_offsets"] = header[other]["data_offsets"]
    return f"stored where {other} is"
