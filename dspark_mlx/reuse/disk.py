"""Kept prompts on disk: a file for each node of the trees, each whole or not there at all.

A file holds all tokens up to its node's last, the rows of the node's own, and its border. Its name
is a digest of them, in a folder of the pair and its settings. A process holds that folder's lock as
long as it uses it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoint.safetensors import read_header
from ..errors import InputError
from ..system.locks import take_turns
from ..system.staging import temporary
from ..system.system_errors import writing
from .outline import Outline, newest_within
from .packed import pack, unpack
from .parts import Border, Layout, Rows
from .tree import Node, Tokens, Tree

FORMAT = 3
_SUFFIX = ".safetensors"
# What a damaged file, or a disk, raises here.
_UNREADABLE = (InputError, OSError, RuntimeError, ValueError, KeyError, IndexError, TypeError)


@dataclass(frozen=True)
class Stored:
    """The content of one file.

    Attributes:
        layout: of the request that it was written for.
        tokens: all tokens up to the last.
        start: number of tokens before the first row.
        rows: of the tokens from `start` on.
        border: what belongs to all of the tokens; None where none is kept.
    """

    layout: Layout
    tokens: Tokens
    start: int
    rows: Rows
    border: Border | None


class Disk:
    """The files of one pair.

    Args:
        folder: where the files of all pairs are; made where there is none.
        key: tells the pair and its settings from others, hexadecimal.

    Raises:
        InputError: the folder cannot be written to, or another process uses it for this pair.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._key = key
        self._folder = folder / key[:32]
        self._said = False
        with writing(folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._held = contextlib.ExitStack()
            if not self._held.enter_context(take_turns(self._folder, wait=False)):
                found = "a folder that another process uses for this model"
                raise InputError(folder, found, "one of its own for each process")
            for leftover in self._folder.glob(".*.partial"):
                leftover.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process use the files."""
        self._held.close()

    def read(self, max_bytes: int) -> Iterator[tuple[Path, Stored]]:
        """Every file that is whole, those of fewer tokens first, one in memory at a time.

        Args:
            max_bytes: bytes of them at most. The oldest of more are removed.

        Warns:
            UserWarning: once, where some were damaged or were not written here.
        """
        outlines: dict[Path, Outline] = {}
        damaged = 0
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                outlines[path] = self._outline(path)
            except _UNREADABLE:
                damaged += 1
        taken = newest_within(max_bytes, outlines)
        self.remove(outlines.keys() - taken)
        # Nodes after those before them; of others the newest last, as the one that was used last.
        for path in sorted(taken, key=lambda each: (outlines[each].start, outlines[each].written)):
            try:
                stored = self._read(path)
            except _UNREADABLE:
                damaged += 1
                continue
            yield path, stored
        if damaged:
            self._warn(f"files that are damaged or foreign are ignored: {damaged}")

    def write(self, node: Node, layout: Layout) -> None:
        """Write a node's file; where the disk takes none, it is said once."""
        tokens = node.prefix()
        path = self._path(tokens, layout.kinds)
        staged = temporary(path)
        try:
            arrays, about = self._packed(node, tokens, layout)
            with staged.open("wb") as file:
                mx.save_safetensors(file, arrays, about)
            staged.replace(path)
            node.file = path
        except (OSError, RuntimeError, TypeError) as error:
            self._warn(f"prompts are kept in memory alone ({error})")
        finally:
            with contextlib.suppress(OSError):
                staged.unlink(missing_ok=True)

    def sync(self, tree: Tree) -> None:
        """Write what a tree has that the disk has not, and remove what it dropped."""
        alive = [node for node in tree.changed if node not in tree.dropped]
        for node in sorted(alive, key=lambda node: node.start):
            self.write(node, tree.layout)
        self.remove(node.file for node in tree.dropped if node.file is not None)
        tree.changed.clear()
        tree.dropped.clear()

    def remove(self, files: Iterable[Path]) -> None:
        """Remove files, those that are there."""
        for path in files:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._warn(f"a file cannot be removed ({error})")

    def _path(self, tokens: Tokens, kinds: Sequence[Sequence[object]]) -> Path:
        about = json.dumps([self._key, kinds]).encode()
        name = hashlib.sha256(about + tokens.tobytes()).hexdigest()
        return self._folder / f"{name}{_SUFFIX}"

    def _packed(
        self, node: Node, tokens: Tokens, layout: Layout
    ) -> tuple[dict[str, mx.array], dict[str, str]]:
        held: list[mx.array] = []
        border = node.border and {
            "caches": pack(node.border.caches, held),
            "pending": pack(node.border.pending, held),
        }
        about = {
            "layout": asdict(replace(layout, templates=()))
            | {"templates": pack(layout.templates, held)},
            "start": node.start,
            "border": border,
        }
        arrays = {"tokens": mx.array(tokens)}
        arrays |= {f"row.{i}": row for i, row in enumerate(node.rows)}
        arrays |= {f"held.{i}": array for i, array in enumerate(held)}
        text = json.dumps(about)
        stated = {"format": str(FORMAT), "key": self._key, "about": text}
        return arrays, stated | {"checksum": str(_checksum(arrays, text))}

    def _outline(self, path: Path) -> Outline:
        arrays, stated = self._opened(path)
        about = json.loads(stated["about"])
        start, tokens = int(about["start"]), np.array(arrays["tokens"])
        return Outline(
            start,
            self._path(tokens[:start], about["layout"]["kinds"]) if start else None,
            # The tokens before its own are in memory once, in other nodes.
            sum(array.nbytes for array in arrays.values()) - tokens[:start].nbytes,
            path.stat().st_mtime_ns,
        )

    def _opened(self, path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
        """The arrays of a file, which are not read yet, and what it states."""
        if not path.is_file():  # a pipe would be waited for
            raise InputError(path, "no file", "a file")
        read_header(path)
        loaded: Any = mx.load(str(path), return_metadata=True)
        arrays, stated = loaded
        if (stated["format"], stated["key"]) != (str(FORMAT), self._key):
            raise InputError(path, "another format or another pair", "this one's")
        return arrays, stated

    def _read(self, path: Path) -> Stored:
        arrays, stated = self._opened(path)
        mx.eval(arrays)
        if _checksum(arrays, stated["about"]) != int(stated["checksum"]):
            raise InputError(path, "content that was changed", "what was written")
        about = json.loads(stated["about"])
        held = [
            arrays[f"held.{i}"] for i in range(sum(name.startswith("held.") for name in arrays))
        ]
        rows = [arrays[f"row.{i}"] for i in range(sum(name.startswith("row.") for name in arrays))]
        layout, border = about["layout"], about["border"]
        return Stored(
            Layout(
                tuple((str(name), bool(is_rows)) for name, is_rows in layout["kinds"]),
                int(layout["quantized_from"]),
                unpack(layout["templates"], held),
            ),
            np.array(arrays["tokens"]),
            int(about["start"]),
            rows,
            border and Border(unpack(border["caches"], held), unpack(border["pending"], held)),
        )

    def _warn(self, message: str) -> None:
        if not self._said:
            self._said = True
            warnings.warn(f"{self._folder}: {message}", stacklevel=2)


def _checksum(arrays: dict[str, mx.array], text: str) -> int:
    """CRC-32 of a file's content."""
    total = zlib.crc32(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        about = f"{name} {array.dtype} {array.shape}".encode()
        total = zlib.crc32(about, total)
        if array.size:
            total = zlib.crc32(np.array(array.reshape(-1).view(mx.uint8)).data, total)
    return total
