"""The files of a store of conversations: one shard each, whole or not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ...errors import InputError
from ...system.files import write_bytes
from .corpus import KEYS, Conversation


@dataclass(frozen=True)
class Shard:
    """Conversations one after the other, as a file holds them.

    Attributes:
        tokens: uint16 or uint32 `[tokens]`. answer: bool `[tokens]`.
        lengths: of each conversation, int32 `[conversations]`.
        keys: of each, uint64 `[conversations, KEYS]`.
    """

    tokens: np.ndarray
    answer: np.ndarray
    lengths: np.ndarray
    keys: np.ndarray

    @classmethod
    def of(cls, conversations: Sequence[Conversation], vocab_size: int) -> Shard:
        """Of conversations.

        Raises:
            InputError: one is empty, its mask has another length, or a token is outside of the
                vocabulary.
        """
        for conversation in conversations:
            _check(conversation, vocab_size)
        return cls(
            flat_array([c.tokens for c in conversations], token_type(vocab_size)),
            flat_array([c.answer for c in conversations], np.dtype(bool)),
            np.array([len(c.tokens) for c in conversations], dtype=np.int32),
            np.array([c.keys for c in conversations], dtype=np.uint64).reshape(-1, KEYS),
        )

    def chosen(self, mask: np.ndarray) -> Shard:
        """Some of its conversations: bool `[conversations]`."""
        tokens = np.repeat(mask, self.lengths)
        return Shard(self.tokens[tokens], self.answer[tokens], self.lengths[mask], self.keys[mask])

    def write(self, path: Path) -> None:
        """Write it to a file that appears whole or not at all.

        Raises:
            InputError: the disk is full, or the folder cannot be written to.
        """
        tensors = {
            "tokens": self.tokens,
            "answer": np.packbits(self.answer),
            "lengths": self.lengths,
            "keys": self.keys,
        }
        _write(path, save(tensors))

    @classmethod
    def read(cls, path: Path, vocab_size: int) -> Shard:
        """Read a file.

        Raises:
            InputError: it is no whole shard of such a vocabulary.
        """
        found = _tensors(path, vocab_size)
        answer = np.unpackbits(found["answer"], count=len(found["tokens"])).astype(bool)
        return cls(found["tokens"], answer, found["lengths"], found["keys"])


def token_type(vocab_size: int) -> np.dtype:
    """What token ids are stored as."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def shard_name(number: int) -> str:
    """The file of a shard, counted from 0."""
    return f"shard-{number:05d}.safetensors"


def shard_files(folder: Path) -> list[Path]:
    """The shards of a folder in order.

    Raises:
        InputError: one is missing.
    """
    files = sorted(folder.glob("shard-*.safetensors"))
    for number, path in enumerate(files):
        if path.name != shard_name(number):
            raise InputError(folder, f"{path.name}", f"{shard_name(number)} before it")
    return files


def flat_array(parts: Sequence[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """Arrays one after the other, `[sum of lengths]`; there may be none."""
    return np.concatenate([np.zeros(0, dtype=dtype), *(p.astype(dtype) for p in parts)])


def _tensors(path: Path, vocab_size: int) -> dict[str, np.ndarray]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        hint = "Delete it and all later ones to go on from there."
        raise InputError(path, f"no whole shard ({error})", "a safetensors file", hint) from error
    kinds = {name: f"{array.dtype} of rank {array.ndim}" for name, array in found.items()}
    expected = {
        "tokens": f"{token_type(vocab_size)} of rank 1",
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
    return found


def _check(conversation: Conversation, vocab_size: int) -> None:
    tokens, answer = conversation.tokens, conversation.answer
    if not len(tokens) or len(tokens) != len(answer):
        found = f"{len(tokens)} tokens, a mask of {len(answer)}"
        raise InputError("conversation", found, "at least one token, and as many in the mask")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        found = f"tokens from {tokens.min()} to {tokens.max()}"
        raise InputError("conversation", found, f"tokens from 0 to {vocab_size - 1}")


def _write(path: Path, content: bytes) -> None:
    try:
        write_bytes(path, content)
    except InputError as error:
        hint = "Shards before it are whole."
        raise InputError(error.where, error.found, error.expected, hint) from error
