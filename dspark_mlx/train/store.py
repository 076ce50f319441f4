"""Conversations on disk: a folder of one header and numbered shards, only ever appended to.

`store.json` says what wrote them; `shard-00000.safetensors` and so on hold token ids, one bit a
token that says whether the target wrote it as an answer, and lengths. A shard appears whole or not
at all, so a run that was killed goes on at the next number.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import InputError
from ..files import read_json, write_json

FORMAT = "dspark_mlx.conversations"
VERSION = 1
KEYS = 9
"""Numbers a conversation is recognised by, see `duplicates`."""


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


@dataclass(frozen=True)
class Conversation:
    """One sequence to train on.

    Attributes:
        tokens: ids as the target's template writes them, `[length]`.
        answer: bool `[length]`, True where the target wrote the token as an answer.
        keys: uint64 `[KEYS]`, what duplicates of it would share; 0 matches nothing.
    """

    tokens: np.ndarray
    answer: np.ndarray
    keys: np.ndarray = field(default_factory=lambda: np.zeros(KEYS, dtype=np.uint64))


@dataclass(frozen=True)
class Corpus:
    """All conversations of a store in memory, flat.

    Attributes:
        tokens: uint16 or uint32 `[tokens]`, conversation after conversation.
        answer: bool `[tokens]`.
        offsets: int64 `[conversations + 1]`, where each begins, and the end of the last.
    """

    tokens: np.ndarray
    answer: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Conversation:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start, end = self.offsets[index % len(self) :][:2]
        return Conversation(self.tokens[start:end], self.answer[start:end])

    def __iter__(self) -> Iterator[Conversation]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each conversation, int64 `[conversations]`."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class _Shard:
    tokens: np.ndarray
    answer: np.ndarray
    lengths: np.ndarray
    keys: np.ndarray


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
        try:
            folder.mkdir(parents=True, exist_ok=True)
            content = {"format": FORMAT, "version": VERSION, **asdict(header)}
            write_json(folder / "store.json", content)
        except OSError as error:
            raise InputError(folder, f"no way to write there ({error})", "a folder") from error
        return cls(folder, header)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Read the header, and count what the shards say they hold.

        Raises:
            InputError: no store, one of another format or version, a damaged or missing shard.
        """
        store = cls(folder, _read_header(folder / "store.json"))
        for path in _shard_files(folder):
            store._count(_read_shard(path, store.header.vocab_size))
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
        for conversation in conversations:
            _check(conversation, self.header.vocab_size)
        shard = _Shard(
            _flat_array([c.tokens for c in conversations], _token_type(self.header.vocab_size)),
            _flat_array([c.answer for c in conversations], np.dtype(bool)),
            np.array([len(c.tokens) for c in conversations], dtype=np.int32),
            np.array([c.keys for c in conversations], dtype=np.uint64).reshape(-1, KEYS),
        )
        tensors = {
            "tokens": shard.tokens,
            "answer": np.packbits(shard.answer),
            "lengths": shard.lengths,
            "keys": shard.keys,
        }
        _write(self.folder / _shard_name(self.shards), save(tensors))
        self._count(shard)

    def load(self) -> Corpus:
        """Every conversation, in the order in which they were written.

        Raises:
            InputError: a damaged shard.
        """
        shards = [self._read(number) for number in range(self.shards)]
        lengths = np.concatenate([np.zeros(1, dtype=np.int64), *(s.lengths for s in shards)])
        return Corpus(
            _flat_array([s.tokens for s in shards], _token_type(self.header.vocab_size)),
            _flat_array([s.answer for s in shards], np.dtype(bool)),
            np.cumsum(lengths),
        )

    def keys(self) -> np.ndarray:
        """Of all conversations, uint64 `[conversations, KEYS]`."""
        empty = np.zeros((0, KEYS), dtype=np.uint64)
        return np.concatenate([empty, *(self._read(i).keys for i in range(self.shards))])

    def _read(self, number: int) -> _Shard:
        return _read_shard(self.folder / _shard_name(number), self.header.vocab_size)

    def _count(self, shard: _Shard) -> None:
        self.shards += 1
        self.conversations += len(shard.lengths)
        self.tokens += len(shard.tokens)
        self.answer_tokens += int(shard.answer.sum())


def _token_type(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _shard_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("shard-*.safetensors"))
    for number, path in enumerate(files):
        if path.name != _shard_name(number):
            raise InputError(folder, f"{path.name}", f"{_shard_name(number)} before it")
    return files


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


def _read_shard(path: Path, vocab_size: int) -> _Shard:
    try:
        with safe_open(str(path), framework="numpy") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        hint = "Delete it and all later ones to go on from there."
        raise InputError(path, f"no whole shard ({error})", "a safetensors file", hint) from error
    kinds = {name: f"{array.dtype} of rank {array.ndim}" for name, array in found.items()}
    expected = {
        "tokens": f"{_token_type(vocab_size)} of rank 1",
        "answer": "uint8 of rank 1",
        "lengths": "int32 of rank 1",
        "keys": "uint64 of rank 2",
    }
    if kinds != expected:
        raise InputError(path, f"tensors {kinds}", expected)
    tokens, lengths, keys = found["tokens"], found["lengths"], found["keys"]
    if (lengths < 1).any() or lengths.sum() != len(tokens):
        raise InputError(path, f"lengths of {lengths.sum()} tokens in all", f"{len(tokens)}")
    if len(found["answer"]) != -(-len(tokens) // 8):
        raise InputError(path, f"{len(found['answer'])} mask bytes", f"{-(-len(tokens) // 8)}")
    if keys.shape != (len(lengths), KEYS):
        raise InputError(path, f"keys {list(keys.shape)}", f"{[len(lengths), KEYS]}")
    if len(tokens) and tokens.max() >= vocab_size:
        raise InputError(path, f"token {tokens.max()}", f"tokens below {vocab_size}")
    answer = np.unpackbits(found["answer"], count=len(tokens)).astype(bool)
    return _Shard(tokens, answer, lengths, keys)


def _check(conversation: Conversation, vocab_size: int) -> None:
    tokens, answer = conversation.tokens, conversation.answer
    if not len(tokens) or len(tokens) != len(answer):
        found = f"{len(tokens)} tokens, a mask of {len(answer)}"
        raise InputError("conversation", found, "at least one token, and as many in the mask")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        found = f"tokens from {tokens.min()} to {tokens.max()}"
        raise InputError("conversation", found, f"tokens from 0 to {vocab_size - 1}")


def _write(path: Path, content: bytes) -> None:
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        staged.write_bytes(content)
        staged.replace(path)
    except OSError as error:
        found = f"no way to write {len(content)} bytes ({error.strerror})"
        raise InputError(path, found, "room on the disk", "Shards before it are whole.") from error
    finally:
        staged.unlink(missing_ok=True)


def _flat_array(parts: Sequence[np.ndarray], dtype: np.dtype) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=dtype), *(p.astype(dtype) for p in parts)])


def _flat(header: Header) -> dict[str, Any]:
    """A header's fields and settings under one level of names, as JSON reads them back."""
    data = json.loads(json.dumps(asdict(header)))
    settings = data.pop("settings")
    return data | settings
