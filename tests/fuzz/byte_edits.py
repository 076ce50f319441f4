"""Edits that know nothing of a file's format: cut, flipped, repeated, another encoding, no file."""

from __future__ import annotations

from pathlib import Path
from random import Random

_STRANGERS = (b"", b"\x00" * 64, b"\x80\x04K\x01.", b"PK\x03\x04" + b"\0" * 60, b"GGUF", b"{}\n")


def damage(rng: Random, content: bytes) -> tuple[bytes, str]:
    """The content with one edit, and the edit in words."""
    at = rng.randrange(len(content) + 1)
    # Most of a format's structure stands at the beginning.
    if rng.random() < 0.5:
        at = min(at, rng.randrange(1, 4096))
    kind = rng.randrange(9)
    if kind == 0:
        return content[:at], f"cut after {at} of {len(content)} bytes"
    if kind == 1:
        changed = bytearray(content)
        places = [min(at + rng.randrange(64), len(content) - 1) for _ in range(rng.randrange(1, 9))]
        for place in places if content else ():
            changed[place] ^= 1 << rng.randrange(8)
        return bytes(changed), f"bits flipped near byte {at}"
    if kind == 2:
        length = rng.choice((1, 4, 64, 1000))
        return content[:at] + content[at + length :], f"{length} bytes left out at {at}"
    if kind == 3:
        added = rng.choice(
            (b"\0", b"\xff\xfe", b'"', b"}", b"\n", b"\xed\xa0\x80", rng.randbytes(9))
        )
        return content[:at] + added + content[at:], f"{added!r} put in at {at}"
    if kind == 4:
        return content * 2, "everything twice"
    if kind == 5:
        mark = rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"))
        return mark + content, f"begins with {mark!r}"
    if kind == 6:
        name = rng.choice(("utf-16", "utf-32", "utf-8-sig"))
        return content.decode("latin-1").encode(name), f"encoded in {name}"
    if kind == 7:
        stranger = rng.choice(_STRANGERS)
        return stranger, f"the file is {stranger[:8]!r}"
    run = rng.choice((8, 512))
    return content[:at] + rng.randbytes(run) + content[at + run :], f"{run} random bytes at {at}"


def misplace(rng: Random, path: Path) -> str:
    """Put something else in the place of a file; returns what, in words."""
    path.unlink()
    kind = rng.randrange(4)
    if kind == 0:
        return "the file is missing"
    if kind == 1:
        path.mkdir()
        return "a folder stands in the file's place"
    path.symlink_to(path if kind == 2 else path.with_name("gone"))
    return "a link to itself" if kind == 2 else "a link to nothing"
