"""Reads and writes the files of a conversation store, one for each shard.

A file appears whole or not at all.
"""

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
    """The conversations of one shard, one after the other in flat arrays.

    Attributes:
        tokens: token ids, uint16 or uint32 `[tokens]`.
        answer: True where the target wrote the token as an answer, bool `[tokens]`.
        lengths: number of tokens of each conversation, int32 `[conversations]`.
        keys: duplicate keys of each conversation, uint64 `[conversations, KEYS]`.
    """

    tokens: np.ndarray
    answer: np.ndarray
    lengths: np.ndarray
    keys: np.ndarray

    @classmethod
    def of(cls, conversations: Sequence[Conversation], vocab_size: int) -> Shard:
        """A shard of the given conversations.

        Raises:
            InputError: a conversation is empty, its mask has another length, or a token is outside
                the vocabulary.
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
        """A shard of the conversations where `mask`, bool `[conversations]`, is True."""
        tokens = np.repeat(mask, self.lengths)
        return Shard(self.tokens[tokens], self.answer[tokens], self.lengths[mask], self.keys[mask])

    def write(self, path: Path) -> None:
        """Write the shard to a file that appears whole or not at all.

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
        """The shard in a file.

        Raises:
            InputError: the file is not a whole shard for a vocabulary of this size.
        """
        found = _tensors(path, vocab_size)
        answer = np.unpackbits(found["answer"], count=len(found["tokens"])).astype(bool)
        return cls(found["tokens"], answer, found["lengths"], found["keys"])


def token_type(vocab_size: int) -> np.dtype:
    """The type that token ids are stored in."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def shard_name(number: int) -> str:
    """The file name of a shard; shards are counted from 0."""
    return f"shard-{number:05d}.safetensors"


def shard_files(folder: Path) -> list[Path]:
    """The files of a folder's shards, in order.

    Raises:
        InputError: a shard is missing.
    """
    files = sorted(folder.glob("shard-*.safetensors"))
    for number, path in enumerate(files):
        if path.name != shard_name(number):
            raise InputError(folder, f"{path.name}", f"{shard_name(number)} before it")
    return files


def flat_array(parts: Sequence[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """The given arrays one after the other, `[sum of lengths]`; empty where there are none."""
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
