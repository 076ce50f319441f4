"""Conversations on disk: a folder of one header and numbered shards, only ever appended to.

`store.json` says what wrote them; `shard-00000.safetensors` and so on hold token ids, one bit a
token that says whether the target wrote it as an answer, and lengths. A shard appears whole or not
at all, so a run that was killed goes on at the next number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...system.files import read_json, write_json
from ...system.system_errors import writing
from .corpus import KEYS, Conversation, Corpus
from .duplicates import Seen
from .shards import Shard, flat_array, shard_files, shard_name, token_type

FORMAT = "dspark_mlx.conversations"
VERSION = 1


@dataclass(frozen=True)
class Header:
    """What a store was written for and by; a run goes on only with an equal one.

    Attributes:
        vocab_size: of the target.
        target: names the target.
        fingerprint: of its weights.
        seed: of the run.
        settings: everything else that the content depends on, as JSON values.
    """

    vocab_size: int
    target: str
    fingerprint: str
    seed: int
    settings: Mapping[str, Any]


class Store:
    """A folder of conversations; made by `create`, `open` or `obtain`.

    Attributes:
        folder: where it is. header: what it was written for.
        shards: how many there are, the number of the next one.
        conversations, tokens, answer_tokens: how many it holds.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        self.folder = folder
        self.header = header
        self.shards = self.conversations = self.tokens = self.answer_tokens = 0

    @classmethod
    def create(cls, folder: Path, header: Header) -> Store:
        """Begin a store in a folder that is empty or does not exist yet.

        Raises:
            InputError: the folder holds something, or cannot be written.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(folder, "an existing file or non-empty folder", "a path that is free")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "store.json", {"format": FORMAT, "version": VERSION, **asdict(header)})
        return cls(folder, header)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Read the header, and count what the shards say they hold.

        Raises:
            InputError: no store, one of another format or version, a damaged or missing shard.
        """
        store = cls(folder, _read_header(folder / "store.json"))
        for path in shard_files(folder):
            store._count(Shard.read(path, store.header.vocab_size))
        return store

    @classmethod
    def obtain(cls, folder: Path, header: Header) -> Store:
        """Open the store in `folder` to go on with it, or create one.

        Raises:
            InputError: see `create` and `open`; or the one there was written for another target or
                with other settings.
        """
        if not (folder / "store.json").exists():
            return cls.create(folder, header)
        store = cls.open(folder)
        there, wanted = _flat(store.header), _flat(header)
        for name in there.keys() | wanted.keys():
            if there.get(name) != wanted.get(name):
                found = f"conversations of {name} {there.get(name)!r}"
                hint = "Go on with the settings it was begun with, or choose another folder."
                raise InputError(folder, found, f"{name} {wanted.get(name)!r}", hint)
        return store

    def append(self, conversations: Sequence[Conversation]) -> None:
        """Write one shard, possibly of none; it is there whole when this returns.

        Raises:
            InputError: a conversation is empty, its mask has another length, a token is outside of
                the vocabulary; or the disk is full.
        """
        shard = Shard.of(conversations, self.header.vocab_size)
        shard.write(self.folder / shard_name(self.shards))
        self._count(shard)

    def keys(self) -> np.ndarray:
        """Of all conversations, uint64 `[conversations, KEYS]`."""
        empty = np.zeros((0, KEYS), dtype=np.uint64)
        return np.concatenate([empty, *(self.shard(i).keys for i in range(self.shards))])

    def shard(self, number: int) -> Shard:
        """One of the shards.

        Raises:
            InputError: it is damaged.
        """
        return Shard.read(self.folder / shard_name(number), self.header.vocab_size)

    def _count(self, shard: Shard) -> None:
        self.shards += 1
        self.conversations += len(shard.lengths)
        self.tokens += len(shard.tokens)
        self.answer_tokens += int(shard.answer.sum())


def load_all(store: Store, others: Sequence[Store] = ()) -> Corpus:
    """The conversations of a store in the order in which they were written, then those of others
    that none before them has.

    Raises:
        InputError: see `check_same_target`; or a shard is damaged.
    """
    check_same_target(store, others)
    seen, shards = Seen(np.zeros((0, KEYS), dtype=np.uint64)), []
    for one in (store, *others):
        for number in range(one.shards):
            shard = one.shard(number)
            new = np.array([seen.add(keys) for keys in shard.keys], dtype=bool)
            shards.append(shard.chosen(new))
    lengths = np.concatenate([np.zeros(1, dtype=np.int64), *(s.lengths for s in shards)])
    return Corpus(
        flat_array([s.tokens for s in shards], token_type(store.header.vocab_size)),
        flat_array([s.answer for s in shards], np.dtype(bool)),
        np.cumsum(lengths),
    )


def check_same_target(store: Store, others: Sequence[Store]) -> None:
    """Refuse to mix texts of several targets.

    Raises:
        InputError: another store was written by another target.
    """
    for other in others:
        if other.header.fingerprint != store.header.fingerprint:
            found = f"conversations of {other.header.target} {other.header.fingerprint}"
            expected = f"of {store.header.target} {store.header.fingerprint}"
            raise InputError(other.folder, found, expected)


def _read_header(path: Path) -> Header:
    data = read_json(path)
    if data.get("format") != FORMAT:
        raise InputError(path, f"format {data.get('format')!r}", repr(FORMAT))
    if data.get("version") != VERSION:
        raise InputError(path, f"version {data.get('version')!r}", f"version {VERSION}")
    kinds = {"vocab_size": int, "target": str, "fingerprint": str, "seed": int, "settings": dict}
    for name, kind in kinds.items():
        if type(data.get(name)) is not kind:
            raise InputError(path, f"{name} {data.get(name)!r}", f"{name} of type {kind.__name__}")
    return Header(**{name: data[name] for name in kinds})


def _flat(header: Header) -> dict[str, Any]:
    """A header's fields and settings under one level of names, as JSON reads them back."""
    data = json.loads(json.dumps(asdict(header)))
    settings = data.pop("settings")
    return data | settings
