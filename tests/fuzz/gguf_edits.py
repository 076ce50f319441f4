"""Edits of a GGUF file (version 3): of its counts, its metadata, its tensors and its bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from random import Random
from typing import Any

from helpers.gguf_writer import ALIGNMENT, string

from . import byte_edits

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _LIST = 8, 9


@dataclass
class Parts:
    """A file taken apart.

    Attributes:
        metadata: key, and the type and value as bytes.
        tensors: name, dimensions, type and place. data: all that follows.
    """

    metadata: list[tuple[str, bytes]] = field(default_factory=list)
    tensors: list[tuple[str, list[int], int, int]] = field(default_factory=list)
    data: bytes = b""


def damage(rng: Random, content: bytes) -> tuple[bytes, str]:
    """The file with one edit, and the edit in words."""
    kind = rng.random()
    if kind < 0.2:
        return byte_edits.damage(rng, content)
    parts = take_apart(content)
    if kind < 0.65:
        words = _metadata(rng, parts)
    elif kind < 0.9:
        words = _tensor(rng, parts)
    else:
        counts = (0, 1, 2**31, 2**32, 2**63, 2**64 - 1, len(parts.tensors) + 1)
        place = rng.choice((4, 8, 16))
        wrong = rng.choice(counts)
        form = "<I" if place == 4 else "<Q"
        number = struct.pack(form, wrong & 0xFFFFFFFF if place == 4 else wrong)
        changed = content[:place] + number + content[place + len(number) :]
        return changed, f"{ {4: 'version', 8: 'tensors', 16: 'entries'}[place] } {wrong}"
    return put_together(parts), words


def take_apart(content: bytes) -> Parts:
    at = 8
    tensors, entries = struct.unpack_from("<QQ", content, at)
    at += 16
    parts = Parts()
    for _ in range(entries):
        key, at = _read_string(content, at)
        end = _end(content, at + 4, struct.unpack_from("<I", content, at)[0])
        parts.metadata.append((key, content[at:end]))
        at = end
    for _ in range(tensors):
        name, at = _read_string(content, at)
        (count,) = struct.unpack_from("<I", content, at)
        dims = list(struct.unpack_from(f"<{count}Q", content, at + 4))
        kind, place = struct.unpack_from("<IQ", content, at + 4 + 8 * count)
        parts.tensors.append((name, dims, kind, place))
        at += 16 + 8 * count
    parts.data = content[at + -at % ALIGNMENT :]
    return parts


def put_together(parts: Parts) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(parts.tensors), len(parts.metadata))
    for key, value in parts.metadata:
        head += string(key) + value
    for name, dims, kind, place in parts.tensors:
        wide = [n % 2**64 for n in dims]
        head += string(name) + struct.pack(f"<I{len(wide)}Q", len(wide), *wide)
        head += struct.pack("<IQ", kind % 2**32, place % 2**64)
    return head + b"\0" * (-len(head) % ALIGNMENT) + parts.data


def _read_string(content: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", content, at)
    return content[at + 8 : at + 8 + length].decode(), at + 8 + length


def _end(content: bytes, at: int, kind: int) -> int:
    """Where a value that begins at `at` ends."""
    if kind == _STRING:
        return at + 8 + struct.unpack_from("<Q", content, at)[0]
    if kind != _LIST:
        return at + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", content, at)
    at += 12
    for _ in range(count):
        at = _end(content, at, inner)
    return at


def _metadata(rng: Random, parts: Parts) -> str:
    at = rng.randrange(len(parts.metadata))
    key, old = parts.metadata[at]
    kind = rng.randrange(6)
    if kind == 0:
        del parts.metadata[at]
        return f"no {key}"
    if kind == 1:
        parts.metadata.insert(at, (key, old))
        return f"{key} twice"
    if kind == 2:
        other, value = rng.choice(parts.metadata)
        parts.metadata[at] = (key, value)
        return f"{key} has the value of {other}"
    if kind == 3:
        wrong = rng.choice((4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 99, 2**32 - 1))
        parts.metadata[at] = (key, struct.pack("<I", wrong) + old[4:])
        return f"{key} is said to be of type {wrong}"
    words, value = _value(rng)
    parts.metadata[at] = (key, value)
    return f"{key} = {words}"


def _value(rng: Random) -> tuple[str, bytes]:
    """A value in words and in bytes, its type first."""
    text = rng.choice(("", "gpt2", "llama", "\x00", "x" * 100_000, "{% for i in [] %}", "é\u2028"))
    number = rng.choice((0, 1, 2, 31, 2**31, 2**32 - 1))
    real = rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    big = rng.choice((-1, 2**62, -(2**63)))
    made: list[tuple[Any, bytes]] = [
        (text[:40], struct.pack("<I", _STRING) + string(text)),
        (number, struct.pack("<II", 4, number)),
        (real, struct.pack("<If", 6, real)),
        (big, struct.pack("<Iq", 11, big)),
        (True, struct.pack("<I?", 7, True)),
        ("bytes that are no text", struct.pack("<IQ", _STRING, 2) + b"\xff\xfe"),
        ("a string of 2^63 bytes", struct.pack("<IQ", _STRING, 2**63)),
        ("an empty list", struct.pack("<IIQ", _LIST, 4, 0)),
        ("a list of 3 numbers", struct.pack("<IIQ3I", _LIST, 4, 3, number, number, 1)),
        ("a list of 2^60 numbers", struct.pack("<IIQI", _LIST, 4, 2**60, 1)),
        ("lists in lists", struct.pack("<I", _LIST) + struct.pack("<IQ", _LIST, 1) * 3000),
        ("a list of a string", struct.pack("<IIQ", _LIST, _STRING, 1) + string(text)),
    ]
    words, value = rng.choice(made)
    return str(words), value


def _tensor(rng: Random, parts: Parts) -> str:
    at = rng.randrange(len(parts.tensors))
    name, dims, kind, place = parts.tensors[at]
    change = rng.randrange(7)
    if change == 0:
        del parts.tensors[at]
        return f"no tensor {name}"
    if change == 1:
        parts.tensors.insert(at, parts.tensors[at])
        return f"tensor {name} twice"
    if change == 2:
        parts.tensors[at] = (rng.choice(("", "extra.weight", f"{name}x")), dims, kind, place)
        return f"tensor {name} renamed to {parts.tensors[at][0]!r}"
    if change == 3:
        axis = rng.randrange(len(dims))
        dims = list(dims)
        dims[axis] = rng.choice((0, 1, dims[axis] + 1, dims[axis] // 2, 2**31, 2**63, 2**64 - 1))
        parts.tensors[at] = (name, dims, kind, place)
        return f"tensor {name} of {dims}"
    if change == 4:
        dims = rng.choice(([], dims[::-1], [*dims, 1], [1] * 5, [2**32, 2**32]))
        parts.tensors[at] = (name, dims, kind, place)
        return f"tensor {name} of {dims}"
    if change == 5:
        wrong = rng.choice((0, 1, 2, 3, 6, 8, 12, 14, 24, 27, 28, 30, 31, 40, 2**32 - 1))
        parts.tensors[at] = (name, dims, wrong, place)
        return f"tensor {name} of type {wrong}, was {kind}"
    wrong = rng.choice((0, place + 1, place + ALIGNMENT, len(parts.data), 2**40, 2**64 - 32))
    parts.tensors[at] = (name, dims, kind, wrong)
    return f"tensor {name} at {wrong}, was {place}"
