"""Straight-line float64 greedy forward of a published Eagle3 drafter, read from its SOURCE files.

Written from section 3 of the specification of published checkpoints alone, without the project's
converters or models. No cache: every step runs the layer over every row again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from helpers.numpy_rope import rope_of


@dataclass(frozen=True)
class Reference:
    """One greedy draft; row j is the proposal for position p + 1 + j."""

    tokens: list[int]  # [gamma]
    logits: np.ndarray  # [gamma, V]
    hidden: np.ndarray  # [gamma, H] after the final norm


def reference(
    folder: Path,
    taps: dict[int, np.ndarray],
    tokens: list[int],
    embed: np.ndarray | None = None,
    head: np.ndarray | None = None,
) -> Reference:
    """Greedy draft after p committed rows.

    `taps[i]` is out(i) of rows 0..p-1, [p, H]; `tokens` are those of positions 0..p, the anchor the
    last; `embed` and `head` [V, H] replace the stored ones.
    """
    config = json.loads((folder / "config.json").read_text())
    t = {name: a.astype(np.float64) for name, a in load_file(folder / "model.safetensors").items()}
    gemma, eps = config["architectures"] == ["Gemma4Eagle3Model"], config["rms_norm_eps"]
    head_dim = config["global_head_dim" if gemma else "head_dim"]
    rope = rope_of(config, head_dim, "full_attention", 1.0)
    embed = t["embed_tokens.weight"] if embed is None else embed
    head = t["lm_head.weight"] if head is None else head

    def norm(x: np.ndarray, name: str | None) -> np.ndarray:
        x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
        return x if name is None else x * t[f"{name}.weight"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ t[f"layers.0.{name}.weight"].T

    def layer(f: np.ndarray, after: list[int]) -> np.ndarray:
        """The outputs of all rows: features [n, H], each with the token after it."""
        e = embed[after] * (embed.shape[1] ** 0.5 if gemma else 1.0)
        x = np.concatenate(
            [norm(e, "layers.0.input_layernorm"), norm(f, "layers.0.hidden_norm")], axis=-1
        )
        n, positions = len(x), np.arange(len(x))
        q = linear(x, "self_attn.q_proj").reshape(n, -1, head_dim)
        k = linear(x, "self_attn.k_proj").reshape(n, -1, head_dim)
        v = norm(k, None) if gemma else linear(x, "self_attn.v_proj").reshape(n, -1, head_dim)
        q = rope(norm(q, "layers.0.self_attn.q_norm"), positions)
        k = rope(norm(k, "layers.0.self_attn.k_norm"), positions)
        k, v = (a.repeat(q.shape[1] // k.shape[1], axis=1) for a in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) * (1.0 if gemma else head_dim**-0.5)
        scores = np.where(positions[None, :] <= positions[:, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(n, -1)
        attended = linear(mixed, "self_attn.o_proj")
        if gemma:
            x = f + norm(attended, "layers.0.post_attention_layernorm")
            normed = norm(x, "layers.0.pre_feedforward_layernorm")
        else:
            x = f + attended
            normed = norm(x, "layers.0.post_attention_layernorm")
        gate = linear(normed, "mlp.gate_proj")
        if gemma:
            active = 0.5 * gate * (1 + np.tanh((2 / np.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
        else:
            active = gate / (1 + np.exp(-gate))
        fed = linear(active * linear(normed, "mlp.up_proj"), "mlp.down_proj")
        if gemma:
            fed = norm(fed, "layers.0.post_feedforward_layernorm")
        return (x + fed) * (t["layers.0.layer_scalar"] if gemma else 1.0)

    features = np.concatenate([taps[i] for i in config["target_layer_ids"]], axis=-1)
    features = features.astype(np.float64) @ t["fc.weight"].T
    after = list(tokens[1:])
    drawn: list[int] = []
    logits, hidden = [], []
    for _ in range(config["ttt_length"]):
        state = layer(features, after)[-1:]
        hidden.append(norm(state, "norm")[0])
        row = head @ hidden[-1]
        if cap := config.get("final_logit_softcapping"):
            row = cap * np.tanh(row / cap)
        logits.append(row)
        drawn.append(int(np.argmax(row)))
        # The drafter's own state stands for the feature that only the target could make.
        features, after = np.concatenate([features, state]), [*after, drawn[-1]]
    return Reference(drawn, np.stack(logits), np.stack(hidden))
