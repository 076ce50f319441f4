"""A request's random keys, made from its own seed and independent of other requests."""

from __future__ import annotations

import secrets

import mlx.core as mx
import numpy as np

_CHUNK = 256
_MIN_NOISE = -1e3


class Noise:
    """Makes keys for MLX's random functions, which are pure functions of their key.

    Args:
        seed: 0 or more; None takes one from the operating system.
        sample: number of the sample; the samples of one seed have different keys.
    """

    def __init__(self, seed: int | None, sample: int = 0) -> None:
        self._seed = secrets.randbits(64) if seed is None else seed
        self._sample = sample
        self._key = self._make(0)
        self._chunks: dict[int, mx.array] = {}

    @property
    def arrays(self) -> list[mx.array]:
        """See `Sampler.arrays`."""
        return [self._key, *self._chunks.values()]

    def fresh(self, count: int) -> list[mx.array]:
        """`count` keys that no call returned before, uint32 `[2]` each."""
        keys = mx.random.split(self._key, count + 1)
        self._key = keys[0]
        return [keys[i] for i in range(1, count + 1)]

    def at(self, position: int, rows: int) -> mx.array:
        """Keys of consecutive positions, uint32 `[rows, 2]`; a position's key never changes."""
        first, last = position // _CHUNK, (position + rows - 1) // _CHUNK
        for chunk in range(first, last + 1):
            if chunk not in self._chunks:
                self._chunks[chunk] = mx.random.split(self._make(1, chunk), _CHUNK)
        # Positions only increase, so earlier chunks are not needed again.
        self._chunks = {c: keys for c, keys in self._chunks.items() if c >= first}
        keys = mx.concatenate([self._chunks[chunk] for chunk in range(first, last + 1)])
        return keys[position - first * _CHUNK :][:rows]

    def _make(self, *path: int) -> mx.array:
        sequence = np.random.SeedSequence(self._seed, spawn_key=(self._sample, *path))
        return mx.random.key(int(sequence.generate_state(1, np.uint64)[0]))


def gumbel(keys: mx.array, size: int) -> mx.array:
    """Standard Gumbel noise, one row per key: uint32 `[rows, 2]` to float32 `[rows, size]`.

    The noise is finite, so that the only token left in a row is chosen whatever its noise.
    """
    noise = mx.vmap(lambda key: mx.random.gumbel((size,), key=key))(keys)
    return mx.maximum(noise, _MIN_NOISE)
