"""Writes a checkpoint's tensors one by one, so that memory holds a shard and not the whole."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from ..checkpoint.tensor_writer import write_tensors
from ..system.files import write_json

SHARD_BYTES = 512 << 20
"""Bytes after which a shard is written; its last tensor may exceed this."""


class ShardWriter:
    """Writes `model.safetensors`, or numbered shards and their index where there are several.

    Args:
        folder: folder to write into.
        limit: bytes after which a shard is written.
    """

    def __init__(self, folder: Path, limit: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._limit = limit
        self._held: dict[str, mx.array] = {}
        self._shards: list[list[str]] = []
        self._total = 0

    def add(self, name: str, tensor: mx.array) -> None:
        """Add a tensor, which is computed here and freed when its shard is written."""
        mx.eval(tensor)
        mx.clear_cache()  # frees the arrays that it was computed from
        self._held[name] = tensor
        self._total += tensor.nbytes
        if sum(held.nbytes for held in self._held.values()) >= self._limit:
            self._flush()

    def close(self) -> None:
        """Write the last shard, and give all shards their final names."""
        if self._held or not self._shards:
            self._flush()
        count = len(self._shards)
        if count == 1:
            self._part(0).rename(self._folder / "model.safetensors")
            return
        names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        for i, name in enumerate(names):
            self._part(i).rename(self._folder / name)
        where = {key: names[i] for i, keys in enumerate(self._shards) for key in keys}
        index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(where.items()))}
        write_json(self._folder / "model.safetensors.index.json", index)

    def _flush(self) -> None:
        path = self._part(len(self._shards))
        write_tensors(path, self._held)
        self._shards.append(list(self._held))
        self._held = {}

    def _part(self, index: int) -> Path:
        return self._folder / f"part-{index}.safetensors"
