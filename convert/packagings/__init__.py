"""Packagings of drafter checkpoints, one file each, and the choice of a checkpoint's packaging.

A packaging recognises its checkpoints, translates their config to the canonical one, and renames
and converts their tensors. All conventions are normalised in the packagings' files. To add one, add
a file beside this one and put it into `PACKAGINGS`.
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
    deepseek_v4,
    deepseek_v4_mtp,
    deepspec_eagle3,
    deepspec_gemma4,
    deepspec_qwen3,
    dflash,
    dflash2,
    ds4,
    dspine,
    eagle3,
    gemma4_assistant,
    gemma4_assistant_gguf,
    lfm2,
    llama_cpp,
    nemotron,
    prismml,
    qwen35,
    specforge,
    speculators,
)
from .refused import recognize
from .source import Shapes


class Packaging(Protocol):
    """The members of each packaging's module.

    Attributes:
        NAME: the packaging's name, for messages.
    """

    NAME: str

    def matches(self, config: dict[str, Any], shapes: Shapes) -> bool:
        """True when a config.json and a tensor list belong to this packaging."""
        ...

    def to_drafter_config(
        self, config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
    ) -> CanonicalConfig:
        """The canonical configuration of a checkpoint.

        Args:
            config: its config.json, or the metadata of a GGUF file.
            shapes: shape of each tensor by its name.
            where: the folder or file, for errors.
            keep_embeddings: True keeps the checkpoint's own embedding and output matrix where they
                are copies of the target's; False shares the target's.

        Raises:
            InputError: a key is missing, the checkpoint contradicts itself, or it asks for
                something that is not supported.
        """
        ...

    def rename(self, config: CanonicalConfig, names: Sequence[str]) -> dict[str, str | None]:
        """Maps each tensor name to its canonical name; None for a tensor that is not needed."""
        ...

    def adapt(self, config: Mapping[str, Any], name: str, tensor: mx.array) -> mx.array:
        """A tensor in the canonical convention; `name` is its canonical name."""
        ...


PACKAGINGS: tuple[Packaging, ...] = (
    deepspec_qwen3,
    deepspec_gemma4,
    deepspec_eagle3,
    eagle3,
    speculators,
    specforge,
    lfm2,
    dflash,
    dflash2,
    dspine,
    qwen35,
    deepseek_v4,
    deepseek_v4_mtp,
    ds4,
    gemma4_assistant,
    gemma4_assistant_gguf,
    llama_cpp,
    nemotron,
    prismml,
    canonical,
)


def refuse_unsupported(config: dict[str, Any], shapes: Shapes, where: Path) -> None:
    """Refuse a checkpoint of a packaging that is known but not supported.

    Raises:
        InputError: the checkpoint is of such a packaging.
    """
    if unsupported := recognize(config, shapes):
        raise InputError(where, f"a checkpoint of {unsupported}", f"one of {_known()}")


def find_packaging(config: dict[str, Any], shapes: Shapes, where: Path) -> Packaging:
    """The packaging of a checkpoint.

    Raises:
        InputError: no packaging matches, or several do; the message lists what the checkpoint has
            and which packagings are known.
    """
    refuse_unsupported(config, shapes, where)
    matching = [p for p in PACKAGINGS if p.matches(config, shapes)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        several = ", ".join(p.NAME for p in matching)
        raise InputError(where, f"a checkpoint that fits {several}", "one that fits one packaging")
    prefixes = sorted({name.split(".")[0] for name in shapes})
    named = config.get("architectures") or config.get("general.architecture")
    found = f"architectures {named}, keys {', '.join(sorted(config)[:12])}..., "
    found += f"tensors {', '.join(prefixes)}"
    raise InputError(where, found, f"a drafter in one of the packagings known here ({_known()})")


def _known() -> str:
    return ", ".join(p.NAME for p in PACKAGINGS)
