"""The table of published pairs: finds the drafter of a target in any quantisation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..system.files import DATA, read_json_list

PAIRS = DATA / "pairs.json"
DESCRIBED, REPORTED = "described", "reported"

# Suffixes that conversions add to a model's name: tool, type, bits, method of quantising.
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
        drafter: Hub id of the drafter, owner/name or owner/name@revision.
        packaging: packaging of the drafter, as `convert.packagings` names it.
        mask_token_id: id of the drafter's mask token; None where it is not recorded.
        certainty: "described" where its configuration and tensors are known from code that reads
            them, "reported" where others only name it. What is reported is never chosen or fetched
            without being named.
        licence: as its card states it; None where it is not known.
        accepted_length: tokens a round on gsm8k, as published by a third party for this drafter;
            None where nobody did.
    """

    targets: tuple[str, ...]
    drafter: str
    packaging: str
    mask_token_id: int | None
    certainty: str
    licence: str | None
    accepted_length: float | None


def published_pairs() -> list[PublishedPair]:
    """All pairs in the table."""
    entries = read_json_list(PAIRS)
    return [PublishedPair(**entry | {"targets": tuple(entry["targets"])}) for entry in entries]


def find_pair(names: Iterable[str]) -> PublishedPair | None:
    """The best described pair whose target has one of these names; None where no pair has.

    Only the owner and the marks of quantisation may differ: a fine-tune is another model. Of
    several, the one with the largest accepted length is taken, and of equal ones the first.
    """
    described = [pair for pair in find_pairs(names) if pair.certainty == DESCRIBED]
    return max(described, key=lambda pair: pair.accepted_length or 0.0, default=None)


def find_pairs(names: Iterable[str]) -> list[PublishedPair]:
    """Every pair whose target has one of these names, see `find_pair`."""
    wanted = {plain_name(name) for name in names if name}
    pairs = published_pairs()
    return [p for p in pairs if wanted & {plain_name(target) for target in p.targets}]


def names_of(model: str | Path, config: Mapping[str, Any]) -> list[str]:
    """The names of a target: the given one, the one in its config, its Hub cache folder's."""
    names = [str(model), str(config.get("_name_or_path") or "")]
    if found := _HUB_CACHE.search(str(model)):
        names.append(found["name"])
    return names


def plain_name(name: str) -> str:
    """A model's name without owner, revision, type or quantisation, in lower case."""
    last = name.rstrip("/").rsplit("/", 1)[-1].split("@")[0].lower()
    return _ADDED.sub("", last.removesuffix(".gguf"))
