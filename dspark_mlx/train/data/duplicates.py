"""Finds duplicate conversations, exact ones and near ones.

Exact duplicates have equal token ids. Near duplicates have first user turns that share most of
their runs of three words. Each user turn gets the minima of its runs under many hash functions
(MinHash; Broder, 1997). Two turns that share the fraction s of their runs agree in a minimum with
probability s, and in a band of four minima with probability s^4. Turns that agree in any of eight
bands count as near duplicates: 99 % of those that share 0.8, 40 % of those that share 0.5, 2 % of
those that share 0.2.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from .corpus import KEYS

_BANDS = KEYS - 1
_MINIMA = 4
_RUN = 3
_WORDS = re.compile(r"\w+")
_NUMBERS = re.compile(r"\d+")


class Seen:
    """The keys of all conversations so far.

    Args:
        keys: keys of the conversations in a store, uint64 `[conversations, KEYS]`.
    """

    def __init__(self, keys: np.ndarray) -> None:
        self._columns = [set(column.tolist()) - {0} for column in keys.T]

    def has(self, keys: np.ndarray) -> bool:
        """Whether a conversation with these keys has a duplicate among those so far."""
        return any(key in seen for seen, key in zip(self._columns, keys.tolist(), strict=True))

    def add(self, keys: np.ndarray) -> bool:
        """Add a conversation's keys; returns False, and adds nothing, where it has a duplicate."""
        if self.has(keys):
            return False
        for seen, key in zip(self._columns, keys.tolist(), strict=True):
            if key:
                seen.add(key)
        return True


def exact_keys(tokens: Sequence[int]) -> np.ndarray:
    """Keys that only the same token ids share, uint64 `[KEYS]`."""
    keys = np.zeros(KEYS, dtype=np.uint64)
    keys[0] = _hash(np.array(tokens, dtype=np.int64).tobytes())
    return keys


def near_keys(text: str) -> np.ndarray:
    """Keys of which texts with mostly the same words share one, uint64 `[KEYS]`; the first is 0.

    Case, punctuation and the values of numbers do not count.
    """
    words = _WORDS.findall(_NUMBERS.sub("0", text.lower()))
    runs = {" ".join(words[i : i + _RUN]) for i in range(max(len(words) - _RUN + 1, 1))}
    hashes = np.array([_hash(run.encode()) for run in runs], dtype=np.uint64)
    with np.errstate(over="ignore"):
        minima = (hashes[:, None] * _FACTORS + _TERMS).min(axis=0).reshape(_BANDS, _MINIMA)
    return np.array([0, *(_hash(band.tobytes()) for band in minima)], dtype=np.uint64)


def _hash(data: bytes) -> int:
    # The key 0 matches nothing, so a hash of 0 becomes 1.
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


_RANDOM = np.random.default_rng(0)
_FACTORS = _RANDOM.integers(0, 1 << 63, _BANDS * _MINIMA, dtype=np.uint64) * np.uint64(2) + 1
_TERMS = _RANDOM.integers(0, 1 << 63, _BANDS * _MINIMA, dtype=np.uint64)
