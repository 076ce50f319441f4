"""A target's embedding table and output matrix, by the names that mlx-lm's families give them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError

_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "tok_embeddings", "embeddings", "embedding",
    "word_embeddings", "token_embeddings", "embed")  # fmt: skip
_HEADS = ("lm_head", "embed_out", "output", "lm_head.linear")
_PLAIN = (nn.Embedding, nn.QuantizedEmbedding, nn.Linear, nn.QuantizedLinear)


class BareMatrix:
    """An output matrix that a model keeps as an array, without a layer.

    Args:
        weight: `[vocabulary, hidden]`.
    """

    def __init__(self, weight: mx.array) -> None:
        self.weight = weight

    def __call__(self, hidden: mx.array) -> mx.array:
        """Hidden rows `[n, hidden]` to `[n, vocabulary]`."""
        return hidden @ self.weight.T

    def __contains__(self, name: str) -> bool:
        return name == "weight"


def find_embedding(model: nn.Module, where: object) -> Any:
    """The module that token ids are looked up in.

    Raises:
        InputError: no or several modules have a name of one.
    """
    tables = [(n, m) for n, m in model.named_modules() if _is_table(m)]
    named = [(n, m) for n, m in tables if n.rsplit(".", 1)[-1] in _EMBEDDINGS]
    if len(named) != 1:
        found = ", ".join(name for name, _ in tables) or "none"
        raise InputError(where, f"embedding tables {found}", f"one of {_EMBEDDINGS}")
    return named[0][1]


def find_head(model: nn.Module, embedding: Any) -> Any:
    """The output matrix's own module; None where it is the embedding table."""
    rows, _ = embedding_shape(embedding)
    for name, module in model.named_modules():
        if any(f".{name}".endswith(f".{head}") for head in _HEADS):
            weight = getattr(module, "weight", None)
            if isinstance(weight, mx.array) and weight.ndim == 2 and weight.shape[0] == rows:
                return module
        bare = module.get("lm_head")
        if isinstance(bare, mx.array) and bare.shape[0] == rows:
            return BareMatrix(bare)
    return None


def embedding_shape(embedding: Any) -> tuple[int, int]:
    """Rows and columns of a table, which may be quantised."""
    rows, columns = embedding.weight.shape
    bits = getattr(embedding, "bits", None)
    return rows, columns * 32 // bits if bits else columns


def is_plain_table(module: Any) -> bool:
    """Whether the module multiplies by the matrix that it stores, and does nothing else."""
    return isinstance(module, (*_PLAIN, BareMatrix))


def _is_table(module: nn.Module) -> bool:
    quantized = hasattr(module, "as_linear") and "scales" in module
    return isinstance(module, nn.Embedding | nn.QuantizedEmbedding) or quantized
