"""Straight-line float64 drafts of published Llama-type Eagle3 drafters, read from SOURCE files.

Written from the specification of published checkpoints (section 20), without the project's
converters. No cache: every step runs the layer over every row again.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from helpers.numpy_rope import make_rope


def reference(
    folder: Path, taps: dict[int, np.ndarray], tokens: list[int], embed: np.ndarray, steps: int
) -> tuple[list[int], np.ndarray]:
    """Greedy tokens and logits [steps, V], -inf where the drafter has no such token.

    `taps[i]` is out(i) of rows 0..p-1; `tokens` are those of positions 0..p, the anchor the last;
    `embed` [V, H] is used where the file stores none.
    """
    config = json.loads((folder / "config.json").read_text())
    old = {"aux_norm_low": "fc_norm.0", "aux_norm_mid": "fc_norm.1", "aux_norm_high": "fc_norm.2"}
    t = {}
    for name, array in load_file(folder / "model.safetensors").items():
        name = name.removesuffix(".weight").replace("midlayer.", "layers.0.")
        t[old.get(name, name)] = array
    llama = config.get("transformer_layer_config", config)
    heads, eps = llama["num_attention_heads"], llama["rms_norm_eps"]
    size = llama.get("head_dim") or llama["hidden_size"] // heads
    theta = {"rope_theta": llama["rope_theta"]}
    rope = make_rope(theta | (llama.get("rope_scaling") or {}), size)
    embed = t.get("embed_tokens", embed)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * t[name]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ t[f"layers.0.{name}"].T.astype(np.float64)

    def layer(f: np.ndarray, after: list[int]) -> np.ndarray:
        normed = norm(f, "layers.0.hidden_norm")
        x = np.concatenate([norm(embed[after], "layers.0.input_layernorm"), normed], axis=-1)
        n, places = len(x), np.arange(len(x))
        q, k, v = (linear(x, f"self_attn.{p}_proj").reshape(n, -1, size) for p in "qkv")
        if "layers.0.self_attn.q_norm" in t:
            q, k = norm(q, "layers.0.self_attn.q_norm"), norm(k, "layers.0.self_attn.k_norm")
        q, k = rope(q, places), rope(k, places)
        k, v = (a.repeat(heads // a.shape[1], axis=1) for a in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) * size**-0.5
        scores = np.where(places[None, :] <= places[:, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(n, -1)
        residual = normed if config.get("norm_before_residual") else f
        x = residual + linear(mixed, "self_attn.o_proj")
        inner = norm(x, "layers.0.post_attention_layernorm")
        gate = linear(inner, "mlp.gate_proj")
        active = gate / (1 + np.exp(-gate))
        return x + linear(active * linear(inner, "mlp.up_proj"), "mlp.down_proj")

    name = "eagle_aux_hidden_state_layer_ids"
    if name in config:
        ids = [i - 1 for i in config[name]]  # inputs of layers
    elif name in config.get("eagle_config", {}):
        ids = config["eagle_config"][name]  # outputs
    else:
        depth = config["num_target_layers"]
        ids = [1, depth // 2 - 1, depth - 4]
    rows = [taps[i] for i in ids]
    if "fc_norm.0" in t:
        rows = [norm(row, f"fc_norm.{i}") for i, row in enumerate(rows)]
    whole = np.concatenate(rows, axis=-1)
    f = (norm(whole, "input_norm") if "input_norm" in t else whole) @ t["fc"].T
    after, logits = list(tokens[1:]), []
    columns = np.arange(len(t["lm_head"])) + t["d2t"]
    for _ in range(steps):
        out = layer(f, after)[-1:]
        row = norm(out, "norm")
        full = np.full(len(embed), -np.inf)
        full[columns] = (row @ t["lm_head"].T)[0]
        logits.append(full)
        after.append(int(np.argmax(full)))
        f = np.concatenate([f, row if config.get("norm_output") else out])
    return after[len(tokens) - 1 :], np.stack(logits)
