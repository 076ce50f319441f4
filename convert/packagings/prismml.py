"""PrismML's GGUF packaging ("dspark") of DSpark drafters for Bonsai targets.

llama.cpp's keys under other prefixes, of which some are doubled. Tap ids are those of the layers
whose outputs are tapped, blocks are anchor-first, and each row's embedding has that of its noise
level added. The stored embedding and output matrix are copies of the target's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...checkpoint.base_config import CanonicalConfig
from ...drafters.dspark.config import BlockConfig
from . import llama_cpp
from .llama_cpp import adapt as adapt
from .llama_cpp import by_canonical, configured, read_taps, settings
from .source import Shapes, Source

NAME = "PrismML GGUF"
ARCHITECTURE = "dspark"
_PREFIX = "dspark."
_TENSORS = {
    "dspark.fc": "fc",
    "dspark.hidden_norm": "enc.output_norm",
    "dspark.markov_head_a": "markov_w1",
    "dspark.markov_head_b": "markov_w2",
    "dspark.confidence_head": "conf_proj",
    "dspark.log_snr_fc1": "log_snr_fc1",
    "dspark.log_snr_fc2": "log_snr_fc2",
}


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for the architecture's name in the GGUF metadata."""
    return config.get("general.architecture") == ARCHITECTURE


def canonical(name: str) -> str:
    """The canonical name of a tensor; an unknown name is unchanged, so that checks report it."""
    stem, _, part = name.rpartition(".")
    return llama_cpp.canonical(f"{_TENSORS[stem]}.{part}" if stem in _TENSORS else name)


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> BlockConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
    """
    values = settings(settings(config, _PREFIX), _PREFIX)
    source = Source(values, by_canonical(shapes, canonical), where, NAME)
    taps = read_taps(source, source.need("target_layers"), shift=0)
    return configured(source, keep_embeddings, taps)


def rename(config: CanonicalConfig, names: Sequence[str]) -> dict[str, str | None]:
    """Maps names to canonical names; copies of the target's tables to None unless kept."""
    return llama_cpp.renamed(config, names, canonical)
