"""Packagings of drafter checkpoints, one file each, and the choice among them.

A packaging states whether a checkpoint is its own, translates its config to the canonical one, and
renames its tensors. Every convention is normalised there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from ...checkpoint.base_config import CanonicalConfig
from ...errors import InputError
from . import (
    canonical,
    deepspec_eagle3,
    deepspec_gemma4,
    deepspec_qwen3,
    dflash,
    lfm2,
    llama_cpp,
    qwen35,
    specforge,
    speculators,
)
from .refused import recognize
from .source import Shapes


class Packaging(Protocol):
    """What each module of this package provides."""

    NAME: str

    def matches(self, config: dict[str, Any], shapes: Shapes) -> bool:
        """True when config.json and the tensor list are of this packaging."""
        ...

    def to_drafter_config(
        self, config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
    ) -> CanonicalConfig:
        """The canonical configuration; InputError where the checkpoint contradicts itself."""
        ...

    def rename(self, config: CanonicalConfig, names: Sequence[str]) -> dict[str, str | None]:
        """Source tensor name to canonical name; None for one that is dropped on purpose."""
        ...

    def adapt(self, config: Mapping[str, Any], name: str, tensor: mx.array) -> mx.array:
        """A tensor by its canonical name, from the source's convention to the canonical one."""
        ...


PACKAGINGS: tuple[Packaging, ...] = (
    deepspec_qwen3,
    deepspec_gemma4,
    deepspec_eagle3,
    speculators,
    specforge,
    lfm2,
    dflash,
    qwen35,
    llama_cpp,
    canonical,
)


def refuse_unsupported(config: dict[str, Any], shapes: Shapes, where: Path) -> None:
    """Refuse a packaging that is recognised and not supported.

    Raises:
        InputError: it is one.
    """
    if unsupported := recognize(config, shapes):
        raise InputError(where, f"a checkpoint of {unsupported}", f"one of {_known()}")


def find_packaging(config: dict[str, Any], shapes: Shapes, where: Path) -> Packaging:
    """The one packaging that matches.

    Raises:
        InputError: none or several match; the message lists what was seen and what is known.
    """
    refuse_unsupported(config, shapes, where)
    matching = [p for p in PACKAGINGS if p.matches(config, shapes)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        several = ", ".join(p.NAME for p in matching)
        raise InputError(where, f"a checkpoint that fits {several}", "exactly one packaging")
    tops = sorted({name.split(".")[0] for name in shapes})
    named = config.get("architectures") or config.get("general.architecture")
    found = f"architectures {named}, keys {', '.join(sorted(config)[:12])}..., "
    found += f"tensors {', '.join(tops)}"
    raise InputError(where, found, f"a drafter in one of the packagings known here ({_known()})")


def _known() -> str:
    return ", ".join(p.NAME for p in PACKAGINGS)
