"""Straight-line float64 greedy draft of a Gemma 4 assistant, read from its source files.

Written from the specification of published checkpoints (section 19.4) alone. Keys and values are
computed from the target's weights and from what enters its layers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from helpers.numpy_rope import make_rope

Tensors = dict[str, np.ndarray]
EPS = 1e-6


def _rms(x: np.ndarray, weight: np.ndarray | float = 1.0) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPS) * weight


def key_values(
    weights: Tensors, layer: int, entering: np.ndarray, size: int, rope: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """A target layer's keys and values [rows, heads, size] of what enters it [rows, Ht]."""
    name = f"model.layers.{layer}"
    x = _rms(entering, weights[f"{name}.input_layernorm.weight"])
    keys = (x @ weights[f"{name}.self_attn.k_proj.weight"].T).reshape(len(x), -1, size)
    values = keys
    if f"{name}.self_attn.v_proj.weight" in weights:
        values = (x @ weights[f"{name}.self_attn.v_proj.weight"].T).reshape(len(x), -1, size)
    keys = _rms(keys, weights[f"{name}.self_attn.k_norm.weight"])
    return make_rope(rope, size)(keys, np.arange(len(x))), _rms(values)


def _attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One row's heads [heads, size] over all of keys and values [rows, kv heads, size]."""
    group = len(q) // keys.shape[1]
    out = []
    for head, query in enumerate(q):
        scores = keys[:, head // group] @ query
        weights = np.exp(scores - scores.max())
        out.append(weights / weights.sum() @ values[:, head // group])
    return np.concatenate(out)


def reference(
    folder: Path,
    kv: dict[str, tuple[np.ndarray, np.ndarray]],
    state: np.ndarray,
    anchor: int,
    embed: np.ndarray,
    steps: int,
) -> tuple[list[int], np.ndarray]:
    """Tokens and logits [steps, V] after p committed rows.

    `kv` has each kind's keys and values of rows 0..p-1, `state` [Ht] is the target's at row p-1 and
    `embed` [V, Ht] its table.
    """
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    stored = load_file(folder / "model.safetensors")
    t = {name: value.astype(np.float64) for name, value in stored.items()}
    tokens, logits, token = [], [], anchor
    for _ in range(steps):
        x = t["pre_projection.weight"] @ np.concatenate([embed[token] * len(state) ** 0.5, state])
        for i, kind in enumerate(text["layer_types"]):
            x = _layer(t, f"model.layers.{i}", x, kind, text, kv[kind])
        h = _rms(x, t["model.norm.weight"])
        logits.append(_logits(t, config, h))
        token = int(np.argmax(logits[-1]))
        tokens.append(token)
        state = t["post_projection.weight"] @ h
    return tokens, np.array(logits)


def _logits(t: Tensors, config: dict[str, Any], h: np.ndarray) -> np.ndarray:
    """Of all tokens; -inf outside the best clusters where embeddings are ordered."""
    logits = t["model.embed_tokens.weight"] @ h
    if not config["use_ordered_embeddings"]:
        return logits
    clusters, chosen = config["num_centroids"], config["centroid_intermediate_top_k"]
    ordering = t["masked_embedding.token_ordering"].astype(int)
    size = len(ordering) // clusters
    scores = t["masked_embedding.centroids.weight"] @ h
    allowed = np.full(len(logits), -np.inf)
    for cluster in np.argsort(scores)[clusters - chosen :]:
        allowed[ordering[cluster * size : (cluster + 1) * size]] = 0.0
    return logits + allowed


def _layer(
    t: Tensors,
    name: str,
    x: np.ndarray,
    kind: str,
    text: dict[str, Any],
    kv: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    sliding = kind == "sliding_attention"
    size = text["head_dim"] if sliding else text["global_head_dim"]
    keys, values = kv
    position = np.array([len(keys)])  # the anchor's, in every step
    if sliding:
        near = len(keys) - 1 - np.arange(len(keys)) <= text["sliding_window"]
        keys, values = keys[near], values[near]

    def norm(part: str, row: np.ndarray) -> np.ndarray:
        return _rms(row, t[f"{name}.{part}.weight"])

    q = t[f"{name}.self_attn.q_proj.weight"] @ norm("input_layernorm", x)
    q = norm("self_attn.q_norm", q.reshape(1, -1, size))
    q = make_rope(text["rope_parameters"][kind], size)(q, position)[0]
    attended = t[f"{name}.self_attn.o_proj.weight"] @ _attend(q, keys, values)
    x = x + norm("post_attention_layernorm", attended)
    row = norm("pre_feedforward_layernorm", x)
    gate = t[f"{name}.mlp.gate_proj.weight"] @ row
    active = 0.5 * gate * (1 + np.tanh((2 / np.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
    fed = t[f"{name}.mlp.down_proj.weight"] @ (active * (t[f"{name}.mlp.up_proj.weight"] @ row))
    return (x + norm("post_feedforward_layernorm", fed)) * t[f"{name}.layer_scalar"]
