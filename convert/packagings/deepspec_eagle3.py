"""DeepSpec's native packaging of Eagle3 drafters (`Qwen3Eagle3Model`, `Gemma4Eagle3Model`).

The drafter has one layer, with the conventions of the family's DSpark drafters, whose attention
reads a token's embedding beside a feature. It has no sequential head and no confidence head, and
proposes from the whole vocabulary. A round proposes as many tokens as training unrolled
(`ttt_length`). The stored embedding and output matrix are frozen copies of the target's; they are
left out, and the target's are shared.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...drafters.eagle3.config import Eagle3Config
from . import deepspec_gemma4, deepspec_qwen3
from .names import adapt as adapt
from .names import rename as rename
from .source import Shapes, Source, is_named

NAME = "DeepSpec Eagle3"
FAMILIES: dict[str, Callable[[Source], dict[str, Any]]] = {
    "Qwen3Eagle3Model": deepspec_qwen3.conventions,
    "Gemma4Eagle3Model": deepspec_gemma4.conventions,
}
_TAPS = 5


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for the architecture of an Eagle3 drafter and a drafter's tensors."""
    return any(is_named(config, shapes, name) for name in FAMILIES)


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> Eagle3Config:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that DeepSpec Eagle3 drafters do not have.
    """
    source = Source(config, shapes, where, NAME)
    conventions = FAMILIES[config["architectures"][0]](source)
    if (layers := conventions.pop("num_layers")) != 1:
        source.refuse("num_hidden_layers", layers, "1")
    ids = source.need("target_layer_ids")
    # Unlike other drafters, Eagle3 drafters have no tap of the embedding output.
    if not isinstance(ids, list) or len(ids) != _TAPS or -1 in ids:
        source.refuse("target_layer_ids", ids, f"{_TAPS} layers")
    return source.finish_as(
        Eagle3Config,
        **conventions,
        **source.taps(ids),
        **source.copies(keep_embeddings),
        target_num_layers=source.need("num_target_layers"),
        steps=source.need("ttt_length"),
    )
