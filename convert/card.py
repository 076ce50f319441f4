"""A converted folder's model card: what it was made from, and under what licence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from ..checkpoint.base_config import FORMAT
from ..checkpoint.hub import checkpoint_place, hub_name
from ..checkpoint.model_card import drafter_text, target_text, weights_text, write_card
from ..drafters.methods import read_config
from ..errors import InputError
from ..system.files import read_json
from .gguf.header import read_header

_REPOSITORY = re.compile(r"(?:https://huggingface\.co/)?([\w.-]+/[\w.-]+)")


@dataclass(frozen=True)
class Origin:
    """Where a converted folder comes from.

    Attributes:
        name: the Hub id, or the last part of a path; the rest of a path tells of the user's disk.
        licence: as the source states it, "" where it states none.
        base: Hub ids of the source itself, or of the models that it says it was made from.
    """

    name: str
    licence: str
    base: tuple[str, ...]


def origin_of(source: str, place: Path) -> Origin:
    """The name, licence and base models of a source, as its own card or GGUF header states them.

    Args:
        source: what the user asked for, a path or a Hub id.
        place: where it is on disk.

    Raises:
        InputError: it is neither a checkpoint nor a GGUF file, or its card cannot be read.
    """
    place = checkpoint_place(place)
    stated = _of_gguf(place) if place.is_file() else _of_folder(place)
    base = stated.get("base_model") or []
    base = [base] if isinstance(base, str) else base
    hub_id = hub_name(source)
    licence = stated.get("license")
    return Origin(
        name=hub_id or place.name,
        licence=licence if isinstance(licence, str) else "",
        base=(hub_id,) if hub_id else tuple(id_ for id_ in base if isinstance(id_, str)),
    )


def write_converted_card(folder: Path, origin: Origin, name: str) -> None:
    """Write README.md into a converted folder.

    Args:
        folder: a drafter's or a target's.
        origin: what it was made from.
        name: what it is to be called: a Hub id, or the last part of its path.
    """
    config = read_json(folder / "config.json")
    is_drafter = config.get("format") == FORMAT
    text = drafter_text(read_config(config, folder), name) if is_drafter else target_text(name)
    quantization = config.get("quantization") or {"bits": 0, "group_size": 0}
    weights = weights_text(quantization["bits"], quantization["group_size"])
    source = f"{weights} Converted from {_linked(origin)} with dspark_mlx."
    if not origin.licence:
        source += " Its licence was not stated there."
    write_card(
        folder,
        name.rsplit("/", 1)[-1],
        [text, source],
        drafter=is_drafter,
        licence=origin.licence,
        base=origin.base,
    )


def _linked(origin: Origin) -> str:
    if origin.base[:1] == (origin.name,):
        return f"[{origin.name}](https://huggingface.co/{origin.name})"
    return f"`{origin.name}`"


def _of_folder(folder: Path) -> dict[str, Any]:
    """The front matter of the card in a folder; empty where there is none."""
    card = folder / "README.md"
    if not card.exists():
        return {}
    try:
        return metadata_load(card) or {}
    except (yaml.YAMLError, ValueError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            card, f"front matter that is no YAML ({reason})", "a model card"
        ) from error


def _of_gguf(file: Path) -> dict[str, Any]:
    metadata = read_header(file).metadata
    urls = [metadata.get(f"general.base_model.{i}.repo_url") for i in range(9)]
    matches = [_REPOSITORY.fullmatch(url) for url in urls if isinstance(url, str)]
    base = [match[1] for match in matches if match]
    return {"license": metadata.get("general.license"), "base_model": base}
