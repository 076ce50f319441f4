"""How a target's caches are made: quantised keys and values, a limit of their number."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.nn as nn
from mlx_lm.models.cache import KVCache

from ..errors import InputError
from ..numbers import check_whole
from ..sampling.setting_table import setting, settings_of, with_settings

_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (32, 64, 128)


@dataclass(frozen=True)
class CacheSettings:
    """How the caches of every request of a target are made."""

    kv_bits: int | None = setting(
        None,
        "bits of the target's cached keys and values, 2 to 6 or 8; by default they are not "
        "quantized",
        flag="--kv-bits",
        mlx_lm="--kv-bits",
    )
    kv_group_size: int = setting(
        64,
        "number of cached values that share a scale where kv_bits is given: 32, 64 or 128",
        flag="--kv-group-size",
        mlx_lm="--kv-group-size",
    )
    quantized_kv_start: int = setting(
        5000,
        "number of cached tokens from which on the cache is quantized where kv_bits is given; a "
        "shorter one is not",
        flag="--quantized-kv-start",
        mlx_lm="--quantized-kv-start",
    )
    max_kv_size: int | None = setting(
        None,
        "number of tokens whose keys and values are kept at most, the first 4 among them; by "
        "default all are, and families with caches of their own ignore it",
        flag="--max-kv-size",
        mlx_lm="--max-kv-size",
    )

    def checked(self) -> CacheSettings:
        """The same settings as Python's numbers.

        Raises:
            InputError: a value means nothing; it names the setting, its value and the range.
        """
        return CacheSettings(
            None if self.kv_bits is None else _one_of("kv_bits", self.kv_bits, _BITS),
            _one_of("kv_group_size", self.kv_group_size, _GROUPS),
            check_whole("quantized_kv_start", self.quantized_kv_start, 0),
            None if self.max_kv_size is None else check_whole("max_kv_size", self.max_kv_size, 5),
        )

    def key(self) -> dict[str, int]:
        """What speed depends on, for a speed profile's key; empty where nothing is asked for."""
        if self.kv_bits is None and self.max_kv_size is None:
            return {}
        return dataclasses.asdict(self)

    def ignored_by(self, model: nn.Module) -> bool:
        """Whether `max_kv_size` does nothing, as in mlx-lm, since the model makes its caches."""
        return self.max_kv_size is not None and hasattr(model, "make_cache")

    def reads_by_chunk(self, model: nn.Module, length: int) -> bool:
        """Whether a prompt of this length reads other keys where it is cut into other chunks.

        Keys are quantized between two chunks, and under `max_kv_size` the first tokens are out of
        sight of a later chunk's rows only.
        """
        if self.kv_bits is not None:
            return length > self.quantized_kv_start
        limit = None if self.ignored_by(model) else self.max_kv_size
        return limit is not None and length > limit

    @property
    def quantized_at_once(self) -> CacheSettings:
        """The same settings, quantized behind the first forward."""
        return replace(self, quantized_kv_start=0)

    def rows_until_quantized(self, position: int, limit: int) -> int:
        """How many rows from a position on may run in one forward, at most `limit`.

        Plain decoding quantizes the cache between two rows. A forward over rows of both sides would
        read other keys in some of them than plain decoding does.

        Args:
            position: cached tokens before the forward.
            limit: at least 1.
        """
        if self.kv_bits is None or position >= self.quantized_kv_start:
            return limit
        return min(limit, self.quantized_kv_start - position)

    def quantize(self, caches: list[Any]) -> None:
        """Quantize the caches that are long enough, in place; called before every forward.

        mlx-lm does it behind every forward, which is the same: an empty cache is never quantized.
        Caches of other kinds than `KVCache` stay as they are, which mlx-lm does too.
        """
        if self.kv_bits is None:
            return
        for i, cache in enumerate(caches):
            if type(cache) is KVCache and cache.offset >= max(self.quantized_kv_start, 1):
                caches[i] = cache.to_quantized(self.kv_group_size, self.kv_bits)

    def refuse_unquantized(self, caches: Sequence[Any], where: object) -> None:
        """Refuse a model whose caches mlx-lm cannot quantize, or would leave all as they are.

        Raises:
            InputError: it names the kind of cache.
        """
        if self.kv_bits is None:
            return
        found = {type(cache) for cache in caches}
        refused = {kind for kind in found if hasattr(kind, "to_quantized")} - {KVCache}
        if refused or KVCache not in found:
            names = ", ".join(sorted(kind.__name__ for kind in refused or found))
            hint = "Load it without kv_bits (--kv-bits)."
            raise InputError(
                where, f"kv_bits with {names}", "caches that mlx-lm quantizes (KVCache)", hint
            )

    def refuse_head_sizes(self, caches: Sequence[Any], where: object) -> None:
        """Refuse a model whose heads have no whole number of groups.

        Args:
            caches: of the model, behind a forward and not quantized yet.
            where: the model, for errors.

        Raises:
            InputError: it names the head sizes and the group sizes that are possible.
        """
        for cache in caches:
            if self.kv_bits is None or type(cache) is not KVCache or cache.keys is None:
                continue
            sizes = sorted({cache.keys.shape[-1], cache.values.shape[-1]})
            if all(size % self.kv_group_size == 0 for size in sizes):
                continue
            heads = "heads of size " + " and ".join(map(str, sizes))
            possible = [each for each in _GROUPS if all(size % each == 0 for size in sizes)]
            if not possible:
                expected = f"heads whose size is a multiple of {_GROUPS[0]}, the smallest group"
                hint = "Load it without kv_bits (--kv-bits)."
                raise InputError(where, f"kv_bits {self.kv_bits} with {heads}", expected, hint)
            named = " or ".join(map(str, possible))
            hint = f"Load it with kv_group_size={possible[-1]} (--kv-group-size {possible[-1]})."
            found = f"kv_group_size {self.kv_group_size} with {heads}"
            raise InputError(where, found, f"a kv_group_size that divides it: {named}", hint)


def _one_of(name: str, value: int, known: tuple[int, ...]) -> int:
    number = check_whole(name, value, 1)
    if number not in known:
        raise InputError(name, number, f"one of {', '.join(map(str, known))}")
    return number


CACHE_SETTINGS = settings_of(CacheSettings)
"""Every setting of caches by name, of which flags, docstrings and docs/settings.md are made."""

DEFAULT_CACHES = CacheSettings()

with_settings("Attributes", CACHE_SETTINGS.values())(CacheSettings)
