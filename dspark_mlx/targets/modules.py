"""The matrices, norms and attention of a target that others than its own forward read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.linear import Matrix
from ..errors import InputError
from .made_keys import made_keys
from .tables import Tables, final_norm
from .turns import Turns


class TargetModules:
    """What drafters and training read of a target's model, beside its forward.

    Args:
        model: an mlx-lm model.
        where: names the model in errors.

    Attributes:
        model, where: see above.
        turns: the lock to hold while the model runs or changes; all targets of a model share it.
        num_layers: number of the model's layers.
        hidden_size: width of a hidden state.
        vocab_size: rows of the embedding table.

    Raises:
        InputError: the model does not have exactly one embedding table.
    """

    def __init__(self, model: nn.Module, where: object) -> None:
        self.model = model
        self.where = where
        self.turns = Turns()
        self._layers: Sequence[nn.Module] = model.layers
        self._tables = Tables(model, where)
        self.num_layers = len(self._layers)
        self.vocab_size, self.hidden_size = self._tables.vocab_size, self._tables.hidden_size

    def embed(self, tokens: mx.array) -> mx.array:
        """Rows of the embedding table without the model's scale: int `[n]` to `[n, hidden]`."""
        return self._tables.embed(tokens)

    def logits(self, hidden: mx.array) -> mx.array:
        """The output matrix without scale or softcap: `[n, hidden]` to `[n, vocabulary]`."""
        return self._tables.logits(hidden)

    def makes_keys(self, layer: int) -> bool:
        """Whether a layer's attention makes keys and values of its own; nothing is evaluated."""
        row = mx.zeros((1, 1, self.hidden_size), self.dtype)
        return made_keys(self._layers[layer], row, 0) is not None

    def key_values(self, layer: int, hidden: mx.array, start: int) -> tuple[mx.array, mx.array]:
        """Keys and values that a layer's attention makes; no attention is evaluated.

        Args:
            layer: index of the layer.
            hidden: what enters it, `[rows, hidden]`.
            start: position of the first row.

        Returns:
            Keys and values as the layer's cache gets them, each `[1, heads, rows, size]`.

        Raises:
            InputError: the layer has no attention of its own keys and values.
        """
        made = made_keys(self._layers[layer], hidden[None].astype(self.dtype), start)
        if made is None:
            found = f"layer {layer} without keys and values of its own"
            raise InputError(self.where, found, "a layer of attention that makes them")
        return made

    def final_norm(self, hidden: mx.array) -> mx.array:
        """The last layer's output `[rows, hidden]` after the model's final norm.

        Raises:
            InputError: the norm has no name that is known here.
        """
        norm = final_norm(self.model)
        if norm is None:
            raise InputError(self.where, "a model without a module `norm`", "a final norm")
        normed: mx.array = norm(hidden)
        return normed

    @contextlib.contextmanager
    def head_inputs(self) -> Iterator[list[mx.array]]:
        """What the output matrix is given in the block, call by call; other threads wait for it."""
        with self.turns, self._tables.head_inputs() as recorded:
            yield recorded

    @property
    def head(self) -> Matrix | None:
        """The output matrix as stored; None when it has a bias or `Matrix` cannot hold it."""
        return self._tables.head

    @property
    def dtype(self) -> mx.Dtype:
        """The type of the model's hidden states."""
        return self.embed(mx.array([0])).dtype
