"""The model card of a converted folder: README.md, with the front matter that the Hub reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData, metadata_load

from ..checkpoint.base_config import CanonicalConfig
from ..checkpoint.hub import checkpoint_place, hub_name
from ..drafters.dspark.config import DSparkConfig
from ..drafters.methods import read_config
from ..errors import InputError
from ..system.files import read_json, write_text
from .gguf.header import read_header

PROJECT = "dspark_mlx"
_INSTALL = "pip install dspark-mlx-lm"
_REPOSITORY = re.compile(r"(?:https://huggingface\.co/)?([\w.-]+/[\w.-]+)")


@dataclass(frozen=True)
class Origin:
    """Where a converted folder comes from.

    Attributes:
        name: the Hub id, or the last part of a path: what lies around it is nobody's business.
        licence: as the source states it, "" where it does not.
        base: Hub ids that the source is or comes from.
    """

    name: str
    licence: str
    base: tuple[str, ...]


def origin_of(source: str, place: Path) -> Origin:
    """What a source says of itself.

    Args:
        source: as it was asked for, a path or a Hub id.
        place: where it is on disk.

    Raises:
        InputError: neither a checkpoint nor a GGUF file.
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


def write_card(folder: Path, origin: Origin, name: str) -> None:
    """Write README.md into a converted folder.

    Args:
        folder: of a drafter or of a target.
        origin: of what it was made from.
        name: what it is to be called: a Hub id, or the last part of its path.
    """
    config = read_json(folder / "config.json")
    drafter = config.get("format") == PROJECT
    tags = ["mlx", "dspark", "speculative-decoding"] if drafter else ["mlx"]
    data = ModelCardData(
        license=origin.licence or None,
        base_model=list(origin.base) or None,
        library_name="mlx",
        pipeline_tag="text-generation",
        tags=tags,
    )
    text = _drafter_text(name, read_config(config, folder)) if drafter else _target_text(name)
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name.rsplit('/', 1)[-1]}",
        text,
        f"{_form(config)} Converted from {_linked(origin)} with {PROJECT}."
        + ("" if origin.licence else " Its licence was not stated there."),
    ]
    write_text(folder / "README.md", "\n\n".join(lines) + "\n")


def _drafter_text(name: str, config: CanonicalConfig) -> str:
    made_for = f"the target {config.target}" if config.target else "its target"
    models = f"--model {config.target or 'TARGET'} --drafter {name}"
    if isinstance(config, DSparkConfig):
        kind, method = f"A drafter of {config.num_layers} layers for DSpark", "blocks"
    else:
        kind, method = "An Eagle3 drafter of one layer for", "chains"
    return (
        f"{kind} speculative decoding on MLX. It was"
        f" trained for {made_for} and is of use with no other: it proposes {method} of up to "
        f"{config.gamma} tokens, which the target verifies, so the output is the target's own.\n\n"
        f"{_command(models)}"
    )


def _target_text(name: str) -> str:
    return (
        "A language model in MLX's format, for mlx-lm and, with a drafter that was trained for it, "
        f"for DSpark speculative decoding.\n\n{_command(f'--model {name}')}"
    )


def _command(models: str) -> str:
    return f'```\n{_INSTALL}\npython -m dspark_mlx.generate {models} --prompt "Hello"\n```'


def _form(config: dict[str, Any]) -> str:
    quantization = config.get("quantization")
    if not quantization:
        return "The weights are not quantised."
    bits, group = quantization["bits"], quantization["group_size"]
    return (
        f"The weights are quantised: {bits} bits in groups of {group}, where not stored otherwise."
    )


def _linked(origin: Origin) -> str:
    if origin.base[:1] == (origin.name,):
        return f"[{origin.name}](https://huggingface.co/{origin.name})"
    return f"`{origin.name}`"


def _of_folder(folder: Path) -> dict[str, Any]:
    """The front matter of the folder's own card."""
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
