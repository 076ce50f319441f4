"""Straight-line float64 drafts of published P-EAGLE drafters, read from SOURCE files.

Written from `shared/checkpoint-formats-2.md`, 20.3, without the project's converters: one forward
over the committed pairs and the masked rows of a block, without any cache.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from helpers.numpy_rope import make_rope


def reference(
    folder: Path, taps: dict[int, np.ndarray], tokens: list[int]
) -> tuple[list[int], np.ndarray]:
    """Greedy tokens and logits [steps, V], -inf where the drafter has no such token.

    `taps[i]` is out(i) of rows 0..p-1; `tokens` are those of positions 0..p, the anchor the last.
    """
    config = json.loads((folder / "config.json").read_text())
    loaded = load_file(folder / "model.safetensors")
    t = {name.removesuffix(".weight"): array for name, array in loaded.items()}
    llama = config["transformer_layer_config"]
    eps, size, heads = llama["rms_norm_eps"], llama["head_dim"], llama["num_attention_heads"]
    rope = make_rope({"rope_theta": llama["rope_theta"]}, size)
    steps = config["speculators_config"]["proposal_methods"][0]["speculative_tokens"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * t[name]

    def attended(x: np.ndarray, name: str) -> np.ndarray:
        n, places = len(x), np.arange(len(x))
        q, k, v = (
            (x @ t[f"{name}.{p}_proj"].T.astype(np.float64)).reshape(n, -1, size) for p in "qkv"
        )
        q, k = rope(q, places), rope(k, places)
        k, v = (a.repeat(heads // a.shape[1], axis=1) for a in (k, v))
        out = np.zeros((n, heads, size))
        for row in places:  # all rows before it: committed pairs, then its own block's
            for h in range(heads):
                scores = k[: row + 1, h] @ q[row, h] * size**-0.5
                weights = np.exp(scores - scores.max())
                out[row, h] = weights / weights.sum() @ v[: row + 1, h]
        return out.reshape(n, -1) @ t[f"{name}.o_proj"].T

    rows = [taps[i - 1] for i in config["eagle_aux_hidden_state_layer_ids"]]  # inputs of layers
    whole = np.concatenate(rows, axis=-1)
    masks = np.repeat(t["mask_hidden"].reshape(1, -1), steps - 1, axis=0)
    whole = np.concatenate([whole, masks])
    if "fc_norm.0" in t:
        parts = np.split(whole, 3, axis=-1)
        whole = np.concatenate([norm(p, f"fc_norm.{i}") for i, p in enumerate(parts)], axis=-1)
    f = whole @ t["fc"].T
    after = [*tokens[1:], *[config["mask_token_id"]] * (steps - 1)]
    for i in range(llama["num_hidden_layers"]):
        layer = f"layers.{i}"
        if i == 0:
            normed = norm(f, f"{layer}.hidden_norm")
            x = np.concatenate(
                [norm(t["embed_tokens"][after], f"{layer}.input_layernorm"), normed], -1
            )
            f = normed if config.get("norm_before_residual") else f
        else:
            x = norm(f, f"{layer}.input_layernorm")
        f = f + attended(x, f"{layer}.self_attn")
        inner = norm(f, f"{layer}.post_attention_layernorm")
        gate = inner @ t[f"{layer}.mlp.gate_proj"].T
        active = gate / (1 + np.exp(-gate)) * (inner @ t[f"{layer}.mlp.up_proj"].T)
        f = f + active @ t[f"{layer}.mlp.down_proj"].T
    logits = np.full((steps, len(t["embed_tokens"])), -np.inf)
    columns = np.arange(len(t["lm_head"])) + t["d2t"]
    logits[:, columns] = norm(f[-steps:], "norm") @ t["lm_head"].T
    return logits.argmax(-1).tolist(), logits
