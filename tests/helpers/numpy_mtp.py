"""Straight-line float64 drafts of a target's prediction head, read from its SOURCE files.

Written from the formulas of the families' attention, experts and heads, without the project's
converters or mlx-lm. No cache: every step runs the layer over every row again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from helpers.numpy_rope import make_rope

Tensors = dict[str, np.ndarray]
Config = dict[str, Any]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


class Layer:
    """One layer of a family by its on-disk names; `offset` is what norms are short of."""

    def __init__(self, family: str, config: Config, t: Tensors, offset: float) -> None:
        self.family, self.c, self.t, self.offset = family, config, t, offset
        self.eps = config.get("rms_norm_eps") or config["layer_norm_epsilon"]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return x * (self.t[f"{name}.weight"] + self.offset)

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.t[f"{name}.weight"].T + self.t.get(f"{name}.bias", 0.0)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.family == "nemotron_h":
            return self.nemotron(x)
        attend = self._latent if "kv_lora_rank" in self.c else self._heads
        x = x + attend(self.norm(x, "input_layernorm"))
        normed = self.norm(x, "post_attention_layernorm")
        return x + (self._experts(normed) if "mlp.gate.weight" in self.t else self._mlp(normed))

    def nemotron(self, x: np.ndarray) -> np.ndarray:
        """Attention without rotation, and then experts of squared ReLU in a latent space."""
        t = self.t
        self.t = {n.removeprefix("0."): a for n, a in t.items() if n.startswith("0.")}
        normed, n = self.norm(x, "norm"), len(x)
        size = self.c["head_dim"]
        q, k, v = (self.linear(normed, f"mixer.{part}_proj").reshape(n, -1, size) for part in "qkv")
        x = x + self.linear(self._mixed(q, k, v), "mixer.o_proj")
        self.t = {n.removeprefix("1."): a for n, a in t.items() if n.startswith("1.")}
        normed = self.norm(x, "norm")
        inner, out = (
            self.linear(normed, "mixer.fc1_latent_proj"),
            np.zeros((n, self.c["moe_latent_size"])),
        )
        scores = _sigmoid(self.linear(normed, "mixer.gate"))
        choice = scores + self.t["mixer.gate.e_score_correction_bias"]
        for row in range(n):
            chosen = np.argsort(-choice[row])[: self.c["num_experts_per_tok"]]
            weights = scores[row, chosen] / scores[row, chosen].sum()
            for weight, expert in zip(weights, chosen, strict=True):
                fed = self._squared(inner[row], f"mixer.experts.{expert}")
                out[row] += weight * self.c["routed_scaling_factor"] * fed
        shared = self._squared(normed, "mixer.shared_experts")
        x = x + self.linear(out, "mixer.fc2_latent_proj") + shared
        self.t = t
        return x

    def _squared(self, x: np.ndarray, name: str) -> np.ndarray:
        up = self.linear(x, f"{name}.up_proj")
        return self.linear(np.maximum(up, 0) ** 2, f"{name}.down_proj")

    def _mlp(self, x: np.ndarray, name: str = "mlp") -> np.ndarray:
        gate = self.linear(x, f"{name}.gate_proj")
        inner = gate * _sigmoid(gate) * self.linear(x, f"{name}.up_proj")
        return self.linear(inner, f"{name}.down_proj")

    def _mixed(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Causal attention of `[rows, heads, size]`, side by side."""
        k, v = (a.repeat(q.shape[1] // a.shape[1], axis=1) for a in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
        rows = np.arange(len(q))
        scores = np.where(rows[None, :] <= rows[:, None], scores, -np.inf)
        return np.einsum("hqk,khd->qhd", _softmax(scores), v).reshape(len(q), -1)

    def _heads(self, x: np.ndarray) -> np.ndarray:
        n, heads = len(x), self.c["num_attention_heads"]
        size = self.c.get("head_dim") or self.c["hidden_size"] // heads
        q = self.linear(x, "self_attn.q_proj").reshape(n, heads, -1)
        k = self.linear(x, "self_attn.k_proj").reshape(n, -1, size)
        v = self.linear(x, "self_attn.v_proj").reshape(n, -1, size)
        q, gate = q[..., :size], q[..., size:]
        if "self_attn.q_norm.weight" in self.t:
            q, k = self.norm(q, "self_attn.q_norm"), self.norm(k, "self_attn.k_norm")
        rope_keys = self.c.get("rope_parameters") or self.c
        part = rope_keys.get("partial_rotary_factor", 1.0)
        rope = make_rope({"rope_theta": rope_keys["rope_theta"]}, size, part)
        mixed = self._mixed(rope(q, np.arange(n)), rope(k, np.arange(n)), v)
        if gate.shape[-1]:
            mixed = mixed * _sigmoid(gate.reshape(n, -1))
        return self.linear(mixed, "self_attn.o_proj")

    def _latent(self, x: np.ndarray) -> np.ndarray:
        """DeepSeek's latent attention, as if keys and values were written out."""
        c, n, heads = self.c, len(x), self.c["num_attention_heads"]
        nope, rotated = c["qk_nope_head_dim"], c["qk_rope_head_dim"]
        low = self.norm(self.linear(x, "self_attn.q_a_proj"), "self_attn.q_a_layernorm")
        q = self.linear(low, "self_attn.q_b_proj").reshape(n, heads, nope + rotated)
        both = self.linear(x, "self_attn.kv_a_proj_with_mqa")
        latent = self.norm(both[:, : c["kv_lora_rank"]], "self_attn.kv_a_layernorm")
        kv = self.linear(latent, "self_attn.kv_b_proj").reshape(n, heads, nope + c["v_head_dim"])
        rope = make_rope({"rope_theta": c["rope_theta"]}, rotated, interleaved=True)
        places = np.arange(n)
        shared = rope(both[:, None, c["kv_lora_rank"] :], places).repeat(heads, axis=1)
        q = np.concatenate([q[..., :nope], rope(q[..., nope:], places)], axis=-1)
        k = np.concatenate([kv[..., :nope], shared], axis=-1)
        return self.linear(self._mixed(q, k, kv[..., nope:]), "self_attn.o_proj")

    def _experts(self, x: np.ndarray) -> np.ndarray:
        c, out = self.c, np.zeros_like(x)
        logits, count = self.linear(x, "mlp.gate"), c["num_experts_per_tok"]
        softmax = self.family.startswith("qwen")
        scores = _softmax(logits) if softmax else _sigmoid(logits)
        choice = scores + self.t.get("mlp.gate.e_score_correction_bias", 0.0)
        for row in range(len(x)):
            chosen = np.argsort(-choice[row])[:count]
            weights = scores[row, chosen]
            if c["norm_topk_prob"]:
                weights = weights / weights.sum()
            weights = weights * c.get("routed_scaling_factor", 1.0)
            for weight, expert in zip(weights, chosen, strict=True):
                out[row] += weight * self._expert(x[row : row + 1], expert)[0]
        if softmax:
            gate = _sigmoid(self.linear(x, "mlp.shared_expert_gate"))
            return out + gate * self._mlp(x, "mlp.shared_expert")
        return out + self._mlp(x, "mlp.shared_experts")

    def _expert(self, x: np.ndarray, expert: int) -> np.ndarray:
        if "mlp.experts.gate_up_proj" not in self.t:
            return self._mlp(x, f"mlp.experts.{expert}")
        gate, up = np.split(x @ self.t["mlp.experts.gate_up_proj"][expert].T, 2, axis=-1)
        return (gate * _sigmoid(gate) * up) @ self.t["mlp.experts.down_proj"][expert].T


def reference(
    folder: Path,
    head: dict[str, str],
    prefix: str,
    states: np.ndarray,
    tokens: list[int],
    tables: tuple[np.ndarray, np.ndarray],
    steps: int,
    *,
    state: str = "normed",
    feedback: str = "normed",
    order: str = "embedding",
    offset: float = 0.0,
) -> tuple[list[int], np.ndarray]:
    """Greedy tokens and logits [steps, V] after p committed rows.

    `head` names fc, the norms and the target's norm on disk, `prefix` is that of the layer;
    `states` [p, H] are the target's before its final norm, `tokens` those of positions 0..p;
    `tables` are the target's embedding and head.
    """
    raw = json.loads((folder / "config.json").read_text())
    config = raw.get("text_config") or raw.get("transformer_layer_config") or raw
    t = {n: a.astype(np.float64) for n, a in load_file(folder / "model.safetensors").items()}
    own = {n.removeprefix(prefix): a for n, a in t.items() if n.startswith(prefix)}
    layer = Layer(raw.get("model_type", config["model_type"]), config, own, offset)
    embed, output = tables

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + layer.eps)
        return x * (t[head[name]] + offset)

    features = norm(states, "target_norm") if state == "normed" else states
    tokens, logits = list(tokens[1:]), []
    for _ in range(steps):
        halves = [norm(embed[tokens], "embedding_norm"), norm(features, "hidden_norm")]
        if order == "hidden":
            halves.reverse()
        out = layer(np.concatenate(halves, axis=-1) @ t[head["fc"]].T)[-1:]
        row = norm(out, "norm")
        logits.append((row @ output.T)[0])
        tokens.append(int(np.argmax(logits[-1])))
        features = np.concatenate([features, row if feedback == "normed" else out])
    return tokens[len(states) :], np.stack(logits)
