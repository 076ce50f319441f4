"""Readings of a drafter's conventions: what its configuration and its tensors may be taken for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx

from ..checkpoint.base_config import DRAFT_IDS, CanonicalConfig
from ..checkpoint.layout import Tensors
from ..drafters.base import Drafter

SHIFTS = (-1, 0, 1)
TAPS, NORMS = "taps", "norms"

Conventions: TypeAlias = tuple[tuple[str, Any], ...]

_WORDS = {
    ("logits_start", 0): "anchor's row read out",
    ("logits_start", 1): "anchor's row not read out",
    ("rope_interleaved", True): "rotary pairs neighbouring",
    ("rope_interleaved", False): "rotary pairs half a head apart",
    ("state", "raw"): "state before the target's final norm",
    ("state", "normed"): "state after the target's final norm",
    ("feedback", "raw"): "head's output fed back before its norm",
    ("feedback", "normed"): "head's output fed back after its norm",
    ("residual", "raw"): "feature added as it is",
    ("residual", "normed"): "feature added normed",
    ("order", "embedding"): "embedding before state",
    ("order", "hidden"): "state before embedding",
    (NORMS, 1): "norms stored as w - 1",
    (NORMS, -1): "norms stored as w + 1",
    (DRAFT_IDS, 1): f"{DRAFT_IDS} stored as offsets",
    (DRAFT_IDS, -1): f"offsets added to {DRAFT_IDS} twice",
}


@dataclass(frozen=True)
class Reading:
    """One reading of a drafter's conventions.

    Attributes:
        shift: what is added to every tap.
        fields: the configuration's fields that are read so, with their values; see
            `CanonicalConfig.alternatives`.
        tensors: what is done to tensors, by what they are: `NORMS` are increased by the number, and
            the draft vocabulary's ids by so many times their own place.
    """

    shift: int
    fields: Conventions
    tensors: Conventions

    def __str__(self) -> str:
        words = [_WORDS[one] for one in (*self.fields, *self.tensors) if one in _WORDS]
        return ", ".join([f"taps {self.shift:+d}", *words])

    def unlike(self, other: Reading) -> list[str]:
        """The names of the conventions in which two readings differ."""
        names = [TAPS] if self.shift != other.shift else []
        pairs = zip(self.fields + self.tensors, other.fields + other.tensors, strict=True)
        return names + [name for (name, a), (_, b) in pairs if a != b]

    def of(self, config: CanonicalConfig) -> CanonicalConfig:
        """A configuration with the fields of this reading; its taps stay."""
        return dataclasses.replace(config, **dict(self.fields))

    def changed(self, tensors: Tensors) -> dict[str, mx.array]:
        """The tensors as this reading takes them."""
        changes, found = dict(self.tensors), dict(tensors)
        if offset := changes.get(NORMS):
            found |= {name: t + offset for name, t in found.items() if _is_norm(name, t)}
        if times := changes.get(DRAFT_IDS):
            ids = found[DRAFT_IDS]
            found[DRAFT_IDS] = ids + times * mx.arange(ids.size, dtype=ids.dtype)
        return found


Build: TypeAlias = Callable[[Reading], Drafter]
"""Makes the drafter under a reading of its conventions."""


def own_reading(config: CanonicalConfig) -> Reading:
    """The reading that a configuration states."""
    fields = tuple((name, getattr(config, name)) for name in config.alternatives())
    return Reading(0, fields, tuple((name, 0) for name in _tensor_axes(config)))


def neighbours(config: CanonicalConfig, reading: Reading, layers: int) -> Iterator[Reading]:
    """The readings that differ from one in a single convention.

    Args:
        config: the drafter's.
        reading: one of its readings.
        layers: of the target; taps that cannot be shifted are not.
    """
    for shift in SHIFTS:
        inside = any(-1 <= tap + shift < layers for tap in config.taps)
        if shift != reading.shift and inside:
            yield dataclasses.replace(reading, shift=shift)
    for name, values in config.alternatives().items():
        for value in values:
            if dict(reading.fields)[name] != value:
                yield dataclasses.replace(reading, fields=_with(reading.fields, name, value))
    for name in _tensor_axes(config):
        for value in (0, 1, -1):
            if dict(reading.tensors)[name] != value:
                yield dataclasses.replace(reading, tensors=_with(reading.tensors, name, value))


def longest_block(config: CanonicalConfig) -> int:
    """The length in tokens of the longest block that any reading drafts."""
    own = own_reading(config)
    found = [own.of(config).gamma]
    for name, values in config.alternatives().items():
        for value in values:
            changed = dataclasses.replace(own, fields=_with(own.fields, name, value))
            found.append(changed.of(config).gamma)
    return max(found)


def _tensor_axes(config: CanonicalConfig) -> list[str]:
    return [NORMS, DRAFT_IDS] if config.draft_vocab_size else [NORMS]


def _with(conventions: Conventions, name: str, value: object) -> Conventions:
    return tuple((key, value if key == name else old) for key, old in conventions)


def _is_norm(name: str, tensor: mx.array) -> bool:
    return tensor.ndim == 1 and name.endswith("norm.weight")
