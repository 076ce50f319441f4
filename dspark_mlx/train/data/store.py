"""Conversations on disk: a folder with a header and numbered shards, which only grows.

`store.json` names the target and the settings that the conversations were written with. The shards,
`shard-00000.safetensors` and so on, hold token ids, one bit for each token that says whether the
target wrote it as an answer, and lengths. A shard appears whole or not at all, so a run that was
killed goes on with the next number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...system.files import check_format, read_json, write_json
from ...system.system_errors import writing
from .corpus import KEYS, Conversation, Corpus
from .duplicates import Seen
from .shards import Shard, flat_array, shard_files, shard_name, token_type

FORMAT = "dspark_mlx.conversations"
VERSION = 1


@dataclass(frozen=True)
class Header:
    """The target and the settings of a store; a run goes on only if they are equal to its own.

    Attributes:
        vocab_size: size of the target's vocabulary.
        target: name of the target.
        fingerprint: digest of the target's weights, see `checkpoint.fingerprint`.
        seed: seed of the run.
        settings: all other settings that the content depends on, as JSON values.
    """

    vocab_size: int
    target: str
    fingerprint: str
    seed: int
    settings: Mapping[str, Any]


class Store:
    """A folder of conversations; `create`, `open` and `obtain` make one.

    Attributes:
        folder: path of the folder.
        header: its target and settings.
        shards: number of shards, which is also the number of the next one.
        conversations, tokens, answer_tokens: the numbers of these in all shards.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        self.folder = folder
        self.header = header
        self.shards = self.conversations = self.tokens = self.answer_tokens = 0

    @classmethod
    def create(cls, folder: Path, header: Header) -> Store:
        """Create a store in a folder that is empty or does not exist yet.

        Raises:
            InputError: the folder is not empty, or cannot be written.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(folder, "an existing file or non-empty folder", "a path that is free")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        kind = {"format": FORMAT, "format_version": VERSION}
        write_json(folder / "store.json", kind | asdict(header))
        return cls(folder, header)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open an existing store: read its header, and check and count all shards.

        Raises:
            InputError: there is no store, it has another format or version, or a shard is damaged
                or missing.
        """
        store = cls(folder, _read_header(folder / "store.json"))
        for path in shard_files(folder):
            store._count(Shard.read(path, store.header.vocab_size))
        return store

    @classmethod
    def obtain(cls, folder: Path, header: Header) -> Store:
        """Open the store in `folder` to go on with it, or create one where there is none.

        Raises:
            InputError: the store there has another target or other settings; or see `create` and
                `open`.
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
        """Write the conversations, which may be none, as one shard.

        Raises:
            InputError: a conversation is empty, its mask has another length, a token is outside the
                vocabulary, or the disk is full.
        """
        shard = Shard.of(conversations, self.header.vocab_size)
        shard.write(self.folder / shard_name(self.shards))
        self._count(shard)

    def keys(self) -> np.ndarray:
        """Duplicate keys of all conversations, uint64 `[conversations, KEYS]`."""
        empty = np.zeros((0, KEYS), dtype=np.uint64)
        return np.concatenate([empty, *(self.shard(i).keys for i in range(self.shards))])

    def shard(self, number: int) -> Shard:
        """Read one of the shards.

        Raises:
            InputError: the shard is damaged.
        """
        return Shard.read(self.folder / shard_name(number), self.header.vocab_size)

    def _count(self, shard: Shard) -> None:
        self.shards += 1
        self.conversations += len(shard.lengths)
        self.tokens += len(shard.tokens)
        self.answer_tokens += int(shard.answer.sum())


def load_all(store: Store, others: Sequence[Store] = ()) -> Corpus:
    """The conversations of a store and of others in memory, without duplicates.

    The store's come first, in the order in which they were written.

    Raises:
        InputError: a shard is damaged; or see `check_same_target`.
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
    """Refuse stores whose texts several targets wrote.

    Raises:
        InputError: another store was written by another target.
    """
    for other in others:
        if other.header.fingerprint != store.header.fingerprint:
            found = f"conversations of {other.header.target} {other.header.fingerprint}"
            expected = f"of {store.header.target} {store.header.fingerprint}"
            raise InputError(other.folder, found, expected)


def _read_header(path: Path) -> Header:
    data = check_format(path, read_json(path), FORMAT, VERSION)
    kinds = {"vocab_size": int, "target": str, "fingerprint": str, "seed": int, "settings": dict}
    for name, kind in kinds.items():
        if type(data.get(name)) is not kind:
            raise InputError(path, f"{name} {data.get(name)!r}", f"{name} of type {kind.__name__}")
    return Header(**{name: data[name] for name in kinds})


def _flat(header: Header) -> dict[str, Any]:
    """A header's fields and settings in one dict, as JSON reads them back."""
    data = json.loads(json.dumps(asdict(header)))
    settings = data.pop("settings")
    return data | settings
