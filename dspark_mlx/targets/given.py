"""A network that an application has loaded itself, with `mlx_lm.load`, as a target."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..errors import InputError
from ..numbers import shown
from ..text.tokenizer import Tokenizer

_EXPECTED = "(network, tokenizer) as mlx_lm.load returns them"
_SAMPLES = 64


@dataclasses.dataclass(frozen=True)
class GivenTarget:
    """A network and a tokenizer that were checked.

    Attributes:
        network: mlx-lm's model.
        tokenizer: its tokenizer.
        name: what errors and messages call it; no folder has this name.
        config: the network's arguments, which stand for its config.json.
        published: the name or the folder that the tokenizer was loaded from; "" where it has none.
    """

    network: nn.Module
    tokenizer: Tokenizer
    name: Path
    config: dict[str, Any]
    published: str


def given_target(model: tuple[Any, ...]) -> GivenTarget:
    """The network and tokenizer of `load`'s `model`.

    Raises:
        InputError: they are something else, or the network is in training mode.
    """
    if len(model) != 2:
        raise InputError("model", f"a tuple of {len(model)}", _EXPECTED)
    network, tokenizer = model
    if not isinstance(network, nn.Module) or not hasattr(network, "layers"):
        raise InputError("model[0]", shown(type(network)), "a model of mlx-lm")
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = TokenizerWrapper(tokenizer)
    if not isinstance(tokenizer, TokenizerWrapper):
        found = shown(type(tokenizer))
        raise InputError("model[1]", found, "a tokenizer of mlx-lm or transformers")
    if network.training:
        raise InputError("model[0]", "training mode", "evaluation mode: network.eval()")
    args: Any = getattr(network, "args", None)
    has_fields = dataclasses.is_dataclass(args) and not isinstance(args, type)
    config = dataclasses.asdict(args) if has_fields else {}
    kind = config.get("model_type") or type(network).__module__.rpartition(".")[2]
    name = Path(f"given {kind}")
    published = str(getattr(tokenizer, "name_or_path", "") or "")
    return GivenTarget(network, Tokenizer(name, tokenizer), name, config, published)


def network_digest(network: nn.Module) -> str:
    """SHA-256 of a network's parameters, in hexadecimal: names, types, shapes, sampled numbers.

    It stands for the weight files of a target that has none.
    """
    digest = hashlib.sha256()
    for name, array in sorted(tree_flatten(network.parameters())):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        flat = array.reshape(-1)
        sampled = flat[:: max(flat.size // _SAMPLES, 1)]
        digest.update(np.array(sampled.astype(mx.float32)).tobytes())
    return digest.hexdigest()
