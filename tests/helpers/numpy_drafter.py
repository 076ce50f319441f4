"""Straight-line float64 greedy forward of a published drafter, read from its SOURCE files.

Written from `shared/checkpoint-formats.md` alone, without the project's converters or models. One
sequence, no cache, no sampling: every call recomputes the whole context.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from helpers.numpy_dflash2 import convolution, selected
from helpers.numpy_dspine import injected, read_again
from helpers.numpy_rope import Rope, rope_of
from helpers.numpy_xpress import refined

Config = dict[str, Any]
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Reference:
    """One greedy draft; row j is the proposal for position p + 1 + j."""

    tokens: list[int]  # [gamma] ids of the target's vocabulary
    logits: np.ndarray  # [gamma, V] corrected; -inf where the drafter has no such token
    hidden: np.ndarray  # [gamma, H] after the final norm
    confidence_logits: np.ndarray | None  # [gamma] raw: no temperature


@dataclass(frozen=True)
class _Plan:
    """What the source config means, packaging resolved."""

    taps: list[int]  # of out(i)
    block: int  # rows fed
    first: int  # first row that is read out: 0 anchor-first, 1 bonus-anchor
    mask_token: int
    causal: list[bool]  # per layer, inside the block
    reach: list[int | None]  # per layer, the context rows seen, None = all
    reach_per_row: bool  # reach is measured from each row, not from the anchor
    rope: Rope
    head_dim: int
    eps: float
    markov_type: str
    gemma: bool = False
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    softcap: float | None = None
    logit_scale: float = 1.0
    multiplier: float = 1.0  # of the logits, before the softcap
    top_k: int = 0  # candidates of DFlash 2's selector
    again: int = 0  # candidates that DSpine reads out again


def _plan(config: Config, tensors: Tensors) -> _Plan:
    """Sections 0.3 to 0.5: the packaging decides layout, tap shift, windows and causality."""
    architecture = config["architectures"][0]
    speculators = "speculators_model_type" in config or "speculators_config" in config
    dspark_heads = "markov_head.markov_w1.weight" in tensors
    second = "candidate_selector.hidden_projection.weight" in tensors
    zlab = (
        second
        or "injection.bias" in tensors
        or (architecture == "DFlashDraftModel" and not speculators and not dspark_heads)
    )
    gemma, ornith = architecture == "Gemma4DSparkModel", architecture == "Qwen35DSparkModel"
    backbone: Config = config["transformer_layer_config"] if speculators else config
    keys = config | config.get("dflash_config", {})

    if speculators:
        taps = [i - 1 for i in config["aux_hidden_state_layer_ids"]]  # input of layer i
        first = 0 if config.get("sample_from_anchor", False) else 1
    else:
        taps, first = (
            keys["target_layer_ids"],
            1 if zlab or config.get("dspark_bonus_anchor") else 0,
        )

    sliding = [kind == "sliding_attention" for kind in backbone["layer_types"]]
    window = backbone.get("sliding_window")
    if keys.get("use_swa"):  # Nemotron, section 8: all layers
        sliding, window = [True] * len(sliding), keys["swa_window_size"]
    if speculators:
        non_causal, reach = config.get("sliding_window_non_causal", second), window
        causal = [s and not non_causal for s in sliding]
    else:
        forced = config.get("is_causal")
        forced = keys.get("causal", keys.get("causal_head")) if forced is None else forced
        causal = sliding if forced is None else [forced] * len(sliding)
        reach = window and window - 1

    if second and config.get("is_causal") is not None:
        causal = [config["is_causal"]] * len(sliding)

    spine = "injection.bias" in tensors
    if spine:
        causal = [True] * len(sliding)

    head_dim = config["global_head_dim"] if gemma else backbone["head_dim"]
    partial: Any = 1.0
    if ornith:  # elsewhere the key is a leftover of the target
        rope_keys = config.get("rope_parameters") or config
        partial = rope_keys.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    entry = "sliding_attention" if speculators else "full_attention"
    rope = rope_of(backbone | config, head_dim, entry, partial)
    return _Plan(
        taps=taps,
        block=keys["block_size"],
        first=first,
        mask_token=keys["mask_token_id"],
        causal=causal,
        reach=[reach if s else None for s in sliding],
        reach_per_row=not speculators and (second or not zlab),
        rope=rope,
        head_dim=head_dim,
        eps=backbone["rms_norm_eps"],
        markov_type=keys.get("markov_head_type", "vanilla"),
        gemma=gemma,
        norm_offset=1.0 if ornith else 0.0,
        # Section 9.1: only Gemma targets have a softcap, and their embedding scale counts too.
        # DFlash 2 for Muse's targets has a multiplier too, and no such scale.
        embed_scale=keys.get("input_embedding_scale", 1.0)
        * (
            backbone["hidden_size"] ** 0.5
            if gemma
            or (zlab and keys.get("final_logit_softcapping") and "output_multiplier" not in keys)
            else 1.0
        ),
        softcap=keys.get("final_logit_softcapping") if gemma or zlab else None,
        multiplier=keys.get("output_multiplier", 1.0) if second else 1.0,
        top_k=keys.get("selector_top_k", 16) if second else 0,
        again=config.get("dspine_config", {}).get("top_k", 16) if spine else 0,
        logit_scale=config.get("logit_scale", 1.0),
    )


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _rms(x: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


def _visible(plan: _Plan, layer: int, context: int) -> np.ndarray:
    """[block, context + block], True where the row may look."""
    query = context + np.arange(plan.block)[:, None]
    key = np.arange(context + plan.block)[None, :]
    visible = np.ones((plan.block, context + plan.block), bool)
    if plan.causal[layer]:
        visible &= key <= query
    reach = plan.reach[layer]
    if reach is not None:
        visible &= key >= (query if plan.reach_per_row else context) - reach
    return visible


def _attention(
    plan: _Plan, t: Tensors, layer: int, x: np.ndarray, ctx: np.ndarray, queries: np.ndarray
) -> np.ndarray:
    """x [block, H] normed rows, ctx [context, H] as is; both give keys and values."""
    name, hd = f"layers.{layer}.self_attn", plan.head_dim

    def project(part: str, rows: np.ndarray) -> np.ndarray:
        return rows @ t[f"{name}.{part}.weight"].T

    def normed(part: str, rows: np.ndarray) -> np.ndarray:
        return _rms(rows, plan.eps) * (t[f"{name}.{part}.weight"] + plan.norm_offset)

    both = np.concatenate([ctx, x])
    heads = t[f"{name}.o_proj.weight"].shape[1] // hd
    q = project("q_proj", x).reshape(len(x), heads, -1)  # a gated head is [q | gate]
    q, gate = q[..., :hd], q[..., hd:]
    k = project("k_proj", both).reshape(len(both), -1, hd)
    # Without a v_proj (Gemma) the values are the raw projection, before k_norm and rotation.
    source = "v_proj" if f"{name}.v_proj.weight" in t else "k_proj"
    v = project(source, both).reshape(len(both), -1, hd)
    if plan.gemma:
        v = _rms(v, plan.eps)
    q = plan.rope(normed("q_norm", q), queries)
    k = plan.rope(normed("k_norm", k), np.arange(len(both)))
    group = heads // k.shape[1]
    k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) * (1.0 if plan.gemma else hd**-0.5)
    scores = np.where(_visible(plan, layer, len(ctx)), scores, -np.inf)
    weights = np.exp(scores)
    total = weights.sum(axis=-1, keepdims=True)
    if f"{name}.attention_sink_bias" in t:  # in the denominator alone
        total = total + np.exp(t[f"{name}.attention_sink_bias"])[:, None, None]
    weights /= total
    mixed = np.einsum("hqk,khd->qhd", weights, v)
    if gate.shape[-1]:
        mixed = mixed * _sigmoid(gate)
    return mixed.reshape(len(x), -1) @ t[f"{name}.o_proj.weight"].T


def _mlp(plan: _Plan, t: Tensors, layer: int, x: np.ndarray) -> np.ndarray:
    name = f"layers.{layer}.mlp"
    gate = x @ t[f"{name}.gate_proj.weight"].T
    if plan.gemma:
        active = 0.5 * gate * (1 + np.tanh((2 / np.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
    else:
        active = gate * _sigmoid(gate)
    return (active * (x @ t[f"{name}.up_proj.weight"].T)) @ t[f"{name}.down_proj.weight"].T


def _backbone(
    plan: _Plan, t: Tensors, x: np.ndarray, features: np.ndarray, anchor: int
) -> tuple[np.ndarray, np.ndarray]:
    """x [block, H] embeddings, features [context, T * Ht] -> rows [block, H] after the last layer,
    before and after its injection; without one both are the same."""

    def norm(name: str, rows: np.ndarray) -> np.ndarray:
        return _rms(rows, plan.eps) * (t[f"{name}.weight"] + plan.norm_offset)

    ctx = norm("hidden_norm", features @ t["fc.weight"].T)
    queries = len(ctx) + np.arange(plan.block)
    for i in range(len(plan.causal)):
        name = f"layers.{i}"
        rows = norm(f"{name}.input_layernorm", x)
        conv = f"{name}.attention_conv"
        attended = _attention(plan, t, i, convolution(t, conv, rows, rows, 0), ctx, queries)
        attended = convolution(t, conv, rows, attended, 1)
        if plan.gemma:
            x = x + norm(f"{name}.post_attention_layernorm", attended)
            fed = _mlp(plan, t, i, norm(f"{name}.pre_feedforward_layernorm", x))
            x = x + norm(f"{name}.post_feedforward_layernorm", fed)
            x = x * t[f"{name}.layer_scalar"]
        else:
            x = x + attended
            rows, conv = norm(f"{name}.post_attention_layernorm", x), f"{name}.mlp_conv"
            fed = _mlp(plan, t, i, convolution(t, conv, rows, rows, 0))
            x = x + convolution(t, conv, rows, fed, 1)
        last = x
        x = injected(t, i, x, anchor)
    return last, x


def _noise(t: Tensors, block: int) -> Any:
    """Section 11 (d): fc2(silu(fc1(feat))) of each row's level, 1000 first and then 0."""
    if "log_snr_fc1.weight" not in t:
        return 0.0
    rows = []
    for level in [1000.0] + [0.0] * (block - 1):
        angles = [level * 10000.0 ** (-i / 64) for i in range(64)]
        feat = np.array([np.sin(a) for a in angles] + [np.cos(a) for a in angles])
        inner = t["log_snr_fc1.weight"] @ feat + t["log_snr_fc1.bias"]
        rows.append(t["log_snr_fc2.weight"] @ (inner * _sigmoid(inner)) + t["log_snr_fc2.bias"])
    return np.array(rows)


def _normed(plan: _Plan, t: Tensors, x: np.ndarray) -> np.ndarray:
    return _rms(x, plan.eps) * (t["norm.weight"] + plan.norm_offset)


def _markov_bias(
    kind: str, t: Tensors, h: np.ndarray, e: np.ndarray, state: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bias [Vd] and next rnn state [r] for a row h [H] whose previous token embeds to e [r]."""
    w2 = t["markov_head.markov_w2.weight"]
    if kind == "vanilla":
        return w2 @ e, state
    part = "gate_proj" if kind == "gated" else "joint_proj"
    weight, bias = (t[f"markov_head.{part}.{s}"] for s in ("weight", "bias"))
    if kind == "gated":
        return w2 @ (_sigmoid(weight @ np.concatenate([h, e]) + bias) * e), state
    g, c, o = np.split(weight @ np.concatenate([state, e, h]) + bias, 3)
    state = _sigmoid(g) * state + (1 - _sigmoid(g)) * np.tanh(c)
    return w2 @ np.tanh(o), state


def load(folder: Path) -> tuple[Config, Tensors]:
    """The source config, and float tensors as float64 without `model.` / `logit_head.` prefixes."""
    tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        name = name.removeprefix("model.").removeprefix("logit_head.")
        name = "transfer_codes.weight" if name == "transfer_codes" else name
        tensors[name] = value.astype(np.float64) if value.dtype.kind == "f" else value
    return json.loads((folder / "config.json").read_text()), tensors


def reference(
    folder: Path,
    taps: dict[int, np.ndarray],
    anchor: int,
    embed: np.ndarray,
    head: np.ndarray,
    before: int = 0,
) -> Reference:
    """Greedy draft after p committed rows.

    `taps[i]` is out(i) of rows 0..p-1, [p, Ht]; `anchor` is the token at p and `before` the
    one at p-1; `embed` and `head` are the target's [V, H] matrices, used where none is stored.
    """
    config, t = load(folder)
    plan = _plan(config, t)
    vocab = len(embed)
    embed = t.get("embed_tokens.weight", embed).astype(np.float64)
    head = t.get("lm_head.weight", head).astype(np.float64)
    features = np.concatenate([taps[i] for i in plan.taps], axis=-1).astype(np.float64)

    inputs = [anchor] + [plan.mask_token] * (plan.block - 1)
    x = embed[inputs] * plan.embed_scale + _noise(t, plan.block)
    last, rows = _backbone(plan, t, x, features, anchor)
    hidden = _normed(plan, t, rows)
    base = hidden @ head.T * plan.multiplier
    if plan.softcap:
        base = plan.softcap * np.tanh(base / plan.softcap)

    ids = np.arange(len(head)) + t.get("d2t", 0)  # draft id -> target id
    base = refined(t, base, hidden, ids, plan.first, [before, anchor])
    last, hidden, base = last[plan.first :], hidden[plan.first :], base[plan.first :]
    w1 = t.get("markov_head.markov_w1.weight")
    logits = np.full((len(hidden), vocab), -np.inf)
    tokens: list[int] = []
    confidence: list[float] = []
    state = np.zeros(0 if w1 is None else w1.shape[1])
    previous = anchor
    for k, h in enumerate(hidden):
        corrected, e = base[k], np.zeros(0)
        if w1 is not None:
            e = w1[previous]
            bias, state = _markov_bias(plan.markov_type, t, h, e, state)
            corrected = corrected + bias
        if plan.again:
            corrected = read_again(
                t,
                len(plan.causal) - 1,
                corrected,
                last[k],
                previous,
                plan.again,
                lambda row: _normed(plan, t, row) @ head.T,
            )
        if plan.top_k:
            corrected = selected(t, corrected, h, previous, plan.top_k)
        logits[k, ids] = corrected * plan.logit_scale
        if "confidence_head.proj.weight" in t:
            weight = t["confidence_head.proj.weight"][0]  # [H] or [H + r]
            row = np.concatenate([h, e])[: len(weight)]
            confidence.append(float(weight @ row + t["confidence_head.proj.bias"][0]))
        previous = int(np.argmax(logits[k]))
        tokens.append(previous)
    return Reference(tokens, logits, hidden, np.array(confidence) if confidence else None)
