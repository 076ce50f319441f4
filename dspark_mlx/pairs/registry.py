"""Published pairs: which drafter was trained for a target, however the target is quantised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..system.files import DATA, read_json_list

PAIRS = DATA / "pairs.json"

# What conversions add to a model's name: the tool, the type, the bits, a way of quantising.
_ADDED = re.compile(
    r"([-_.](mlx|gguf|\d+[-_]?bits?|mixed[\w.]*|bf16|fp16|fp32|fp8|f16|f32|int[48]|nvfp4|mxfp[48]"
    r"|dwq|awq|gptq|q\d[\w]*|gs\d+|dynamic|block))+$"
)
_HUB_CACHE = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)")


@dataclass(frozen=True)
class PublishedPair:
    """A target and the drafter that was trained for it.

    Attributes:
        targets: names of the target without owner, type or quantisation.
        drafter: Hub id, owner/name or owner/name@revision.
        packaging: the drafter's, as `convert.packagings` names it.
        mask_token_id: the drafter's, None where it is not recorded here.
    """

    targets: tuple[str, ...]
    drafter: str
    packaging: str
    mask_token_id: int | None


def published_pairs() -> list[PublishedPair]:
    """All pairs known here."""
    entries = read_json_list(PAIRS)
    return [PublishedPair(**entry | {"targets": tuple(entry["targets"])}) for entry in entries]


def find_pair(names: Iterable[str]) -> PublishedPair | None:
    """The pair of a target that goes by any of these names; None for an unknown one.

    A fine-tune is another model: apart from quantisation a name must be the target's own.
    """
    wanted = {plain_name(name) for name in names if name}
    for pair in published_pairs():
        if wanted & {plain_name(target) for target in pair.targets}:
            return pair
    return None


def names_of(model: str | Path, config: Mapping[str, Any]) -> list[str]:
    """Names that a target may go by: as it was asked for, its folder's, and its config's own."""
    names = [str(model), str(config.get("_name_or_path") or "")]
    if found := _HUB_CACHE.search(str(model)):
        names.append(found["name"])
    return names


def plain_name(name: str) -> str:
    """A model's name without owner, revision, type or quantisation, in lower case."""
    last = name.rstrip("/").rsplit("/", 1)[-1].split("@")[0].lower()
    return _ADDED.sub("", last.removesuffix(".gguf"))
