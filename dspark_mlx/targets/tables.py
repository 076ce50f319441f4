"""A target's embedding table, final norm and output matrix, by the names of mlx-lm's families."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.linear import Matrix
from ..errors import InputError

_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "tok_embeddings", "embeddings", "embedding",
    "word_embeddings", "token_embeddings", "embed")  # fmt: skip
_HEADS = ("lm_head", "embed_out", "output", "lm_head.linear")
_PLAIN = (nn.Embedding, nn.QuantizedEmbedding, nn.Linear, nn.QuantizedLinear)


class Tables:
    """A model's embedding table and output matrix, without scales or softcaps.

    Args:
        model: an mlx-lm model.
        where: names the model in errors.

    Attributes:
        embedding: the module that token ids are looked up in.
        vocab_size, hidden_size: its rows and columns.

    Raises:
        InputError: see `find_embedding`.
    """

    def __init__(self, model: nn.Module, where: object) -> None:
        self.embedding = find_embedding(model, where)
        self.vocab_size, self.hidden_size = embedding_shape(self.embedding)
        head = find_head(model, self.embedding)
        self._tied = head is None
        self._head = self.embedding if head is None else head

    def embed(self, tokens: mx.array) -> mx.array:
        """Rows of the embedding table: int `[n]` to `[n, hidden]`."""
        rows: mx.array = self.embedding(tokens)
        return rows

    def logits(self, hidden: mx.array) -> mx.array:
        """Products with the output matrix: `[n, hidden]` to `[n, vocabulary]`."""
        product: mx.array = self.embedding.as_linear(hidden) if self._tied else self._head(hidden)
        return product

    @property
    def head(self) -> Matrix | None:
        """The output matrix as stored; None when it has a bias or `Matrix` cannot hold it."""
        module = self._head
        if not is_plain_table(module) or "bias" in module:
            return None
        quantized = hasattr(module, "scales")
        if quantized and getattr(module, "mode", "affine") != "affine":
            return None
        if not quantized:
            return Matrix(module.weight)
        return Matrix(module.weight, module.scales, module.biases, module.bits, module.group_size)

    @contextlib.contextmanager
    def head_inputs(self) -> Iterator[list[mx.array]]:
        """What the output matrix is given in the block, call by call."""
        recorded: list[mx.array] = []
        module, original = self._head, type(self._head)
        module.__class__ = _recording_head(original, self._tied, recorded)
        try:
            yield recorded
        finally:
            module.__class__ = original


def _recording_head(original: Any, tied: bool, recorded: list[mx.array]) -> type:
    name = "as_linear" if tied else "__call__"
    call = getattr(original, name)

    def recording_call(self: nn.Module, x: mx.array) -> mx.array:
        recorded.append(x)
        return call(self, x)

    return type(original.__name__, (original,), {name: recording_call})


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


def final_norm(model: nn.Module) -> Any:
    """The model's final norm; None where it has no name that is known here."""
    return next((m for n, m in model.named_modules() if n.rpartition(".")[2] == "norm"), None)


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
