"""The canonical drafter folder: names and shapes of its tensors, and the check of a set of them.

Names are DeepSpec's, those of its Gemma4 drafters where norms are sandwiched. Nothing may be
missing, left over, of another shape, or not finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import numpy as np

from ..drafters.methods import DrafterConfig, Eagle3Config
from ..errors import InputError
from .base_config import CanonicalConfig
from .number_ranges import all_finite

Tensors = Mapping[str, mx.array]


class Shaped(Protocol):
    """A tensor that need not be read yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        ...

    @property
    def dtype(self) -> mx.Dtype:
        """Of the values."""
        ...


DRAFT_IDS = "d2t"
"""Token ids of a reduced draft vocabulary, int32 `[draft_vocab_size]`, the only integer tensor."""


@singledispatch
def matrix_shapes(config: CanonicalConfig) -> dict[str, tuple[int, int]]:
    """Name (without `.weight`) and `[out, in]` of every matrix of the folder."""
    raise NotImplementedError(type(config))


@singledispatch
def vector_shapes(config: CanonicalConfig) -> dict[str, tuple[int]]:
    """Name and length of every vector of the folder: norms and biases."""
    raise NotImplementedError(type(config))


@matrix_shapes.register
def _(config: DrafterConfig) -> dict[str, tuple[int, int]]:
    hidden, vocab, rank = config.hidden_size, config.vocab_size, config.head_rank
    shapes = _shared_matrices(config)
    for i in range(config.num_layers):
        shapes |= _layer_matrices(config, f"layers.{i}", hidden)
    if config.head != "none":
        shapes["markov_head.markov_w1"] = (vocab, rank)
        shapes["markov_head.markov_w2"] = (config.output_size, rank)
    if config.head == "gated":
        shapes["markov_head.gate_proj"] = (rank, hidden + rank)
    if config.head == "rnn":
        shapes["markov_head.joint_proj"] = (3 * rank, 2 * rank + hidden)
    if config.confidence != "none":
        width = hidden + (rank if config.confidence == "hidden+markov" else 0)
        shapes["confidence_head.proj"] = (1, width)
    return shapes


@vector_shapes.register
def _(config: DrafterConfig) -> dict[str, tuple[int]]:
    hidden, rank = config.hidden_size, config.head_rank
    shapes: dict[str, tuple[int]] = {"hidden_norm.weight": (hidden,), "norm.weight": (hidden,)}
    for i in range(config.num_layers):
        shapes |= _layer_vectors(config, f"layers.{i}")
    if config.head == "gated":
        shapes["markov_head.gate_proj.bias"] = (rank,)
    if config.head == "rnn":
        shapes["markov_head.joint_proj.bias"] = (3 * rank,)
    if config.confidence != "none":
        shapes["confidence_head.proj.bias"] = (1,)
    return shapes


@matrix_shapes.register
def _(config: Eagle3Config) -> dict[str, tuple[int, int]]:
    # The layer reads a token's embedding and a feature side by side.
    return _shared_matrices(config) | _layer_matrices(config, "layers.0", 2 * config.hidden_size)


@vector_shapes.register
def _(config: Eagle3Config) -> dict[str, tuple[int]]:
    hidden = (config.hidden_size,)
    norms = {"norm.weight": hidden, "layers.0.hidden_norm.weight": hidden}
    return norms | _layer_vectors(config, "layers.0")


def _shared_matrices(config: CanonicalConfig) -> dict[str, tuple[int, int]]:
    """What reads the taps and, where they are the drafter's own, the tables of the vocabulary."""
    hidden = config.hidden_size
    shapes = {"fc": (hidden, len(config.taps) * config.target_hidden_size)}
    if config.owns_embedding:
        shapes["embed_tokens"] = (config.vocab_size, hidden)
    if config.owns_head:
        shapes["lm_head"] = (config.output_size, hidden)
    return shapes


def _layer_matrices(
    config: CanonicalConfig, layer: str, columns: int
) -> dict[str, tuple[int, int]]:
    """Of one layer, whose attention reads rows of `columns` features."""
    hidden, inner = config.hidden_size, config.intermediate_size
    kv = config.num_kv_heads * config.head_dim
    shapes = {f"{layer}.self_attn.q_proj": (config.query_size, columns)}
    shapes[f"{layer}.self_attn.k_proj"] = (kv, columns)
    if config.values == "projected":
        shapes[f"{layer}.self_attn.v_proj"] = (kv, columns)
    shapes[f"{layer}.self_attn.o_proj"] = (hidden, config.num_heads * config.head_dim)
    shapes[f"{layer}.mlp.gate_proj"] = (inner, hidden)
    shapes[f"{layer}.mlp.up_proj"] = (inner, hidden)
    shapes[f"{layer}.mlp.down_proj"] = (hidden, inner)
    return shapes


def _layer_vectors(config: CanonicalConfig, layer: str) -> dict[str, tuple[int]]:
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config.sandwich_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    shapes = {f"{layer}.{name}.weight": (config.hidden_size,) for name in norms}
    if config.layer_scalars:
        shapes[f"{layer}.layer_scalar"] = (1,)
    shapes[f"{layer}.self_attn.q_norm.weight"] = (config.head_dim,)
    shapes[f"{layer}.self_attn.k_norm.weight"] = (config.head_dim,)
    return shapes


def stored_shapes(config: CanonicalConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor as stored, quantised ones as weight, scales and biases."""
    shapes: dict[str, tuple[int, ...]] = dict(vector_shapes(config))
    if config.draft_vocab_size:
        shapes[DRAFT_IDS] = (config.draft_vocab_size,)
    for name, (rows, columns) in matrix_shapes(config).items():
        quantised = config.quantization.of(name) if config.quantization else None
        if quantised is None:
            shapes[f"{name}.weight"] = (rows, columns)
            continue
        bits, group_size = quantised
        shapes[f"{name}.weight"] = (rows, columns * bits // 32)
        shapes[f"{name}.scales"] = shapes[f"{name}.biases"] = (rows, columns // group_size)
    return shapes


def check_tensors(config: CanonicalConfig, tensors: Tensors, where: Path | str) -> None:
    """Refuse a set of tensors that is not exactly the folder's.

    Raises:
        InputError: a tensor is missing, left over, of another shape or type, or not finite.
    """
    check_headers(config, tensors, where)
    for name, tensor in tensors.items():
        check_values(config, name, tensor, where)


def check_headers(
    config: CanonicalConfig, tensors: Mapping[str, Shaped], where: Path | str
) -> None:
    """What `check_tensors` refuses, but for values: no tensor is read.

    Raises:
        InputError: a tensor is missing, left over, or of another shape or type.
    """
    if isinstance(config, DrafterConfig) and config.num_layers > len(tensors):
        # Before the names of so many are made.
        raise InputError(where, f"{len(tensors)} tensors", f"those of {config.num_layers} layers")
    expected = stored_shapes(config)
    if missing := sorted(set(expected) - set(tensors)):
        raise InputError(where, f"no tensor {', '.join(missing)}", "every tensor of the drafter")
    if extra := sorted(set(tensors) - set(expected)):
        raise InputError(where, f"unknown tensors {', '.join(extra)}", "the drafter's tensors only")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise InputError(f"{where}: {name}", f"shape {list(tensor.shape)}", f"{list(shape)}")
        packed = f"{name.removesuffix('.weight')}.scales" in expected and name.endswith(".weight")
        wanted = mx.int32 if name == DRAFT_IDS else mx.uint32 if packed else None
        if wanted is not None and tensor.dtype != wanted:
            raise InputError(f"{where}: {name}", f"type {tensor.dtype}", f"{wanted}")
        if wanted is None and not mx.issubdtype(tensor.dtype, mx.floating):
            raise InputError(f"{where}: {name}", f"type {tensor.dtype}", "a floating type")


def check_values(config: CanonicalConfig, name: str, tensor: mx.array, where: Path | str) -> None:
    """Refuse a tensor whose values cannot be the drafter's; packed integers are not looked at.

    Raises:
        InputError: NaN or infinite values, or ids that are not different ones of the vocabulary.
    """
    if name == DRAFT_IDS:
        _check_ids(tensor, config.vocab_size, f"{where}: {name}")
    elif not all_finite(tensor):
        raise InputError(f"{where}: {name}", "NaN or infinite values", "finite values")


def _check_ids(ids: mx.array, vocab_size: int, where: str) -> None:
    values = np.unique(np.array(ids))
    if values.size != ids.size or values[0] < 0 or values[-1] >= vocab_size:
        found = f"{values.size} ids from {values[0]} to {values[-1]}"
        raise InputError(where, found, f"{ids.size} different ids from 0 to {vocab_size - 1}")
