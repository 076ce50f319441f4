"""Cost of a rollback in per cent of a verify forward: `python tests/benchmark/rollback_cost.py`.

Random weights, float32, hidden size 1024. A forward of 8 rows is timed with its logits evaluated;
then the cut to 1, 4 or 7 rows with the states that the next round reads. All take turns; medians.
"""

from __future__ import annotations

import argparse
import importlib
from statistics import median
from time import perf_counter
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from dspark_mlx.targets.tap import Target

ROWS, KEPT = 8, (1, 4, 7, 8)
_COMMON: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 4096,
    "linear_num_value_heads": 16,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "tie_word_embeddings": True,
}
_OWN: dict[str, dict[str, Any]] = {
    "qwen3_5": {},
    "qwen3_next": {
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 512,
        "mlp_only_layers": [],
        "moe_intermediate_size": 512,
        "norm_topk_prob": True,
        "full_attention_interval": 4,
        "attention_bias": False,
    },
    "lfm2": {
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 1024,
        "block_ff_dim": 3072,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    },
    "nemotron_h": {
        "attention_bias": False,
        "mamba_num_heads": 32,
        "mamba_head_dim": 64,
        "mamba_proj_bias": False,
        "ssm_state_size": 128,
        "conv_kernel": 4,
        "n_groups": 8,
        "mlp_bias": False,
        "layer_norm_epsilon": 1e-5,
        "use_bias": False,
        "use_conv_bias": True,
    },
}


def model_of(name: str, layers: int) -> Any:
    """A random model of that many layers, a quarter of them attention where the family has any."""
    settings = _COMMON | _OWN[name] | {"model_type": name, "num_hidden_layers": layers}
    if name == "lfm2":
        settings["full_attn_idxs"] = list(range(2, layers, 4))
    if name == "nemotron_h":
        settings["hybrid_override_pattern"] = ("M-M*" * layers)[:layers]
    module = importlib.import_module(f"mlx_lm.models.{name}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(settings))
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model


def measure(name: str, layers: int, repeats: int) -> tuple[float, dict[int, float]]:
    """Median seconds of a forward of 8 rows, and of each cut."""
    target = Target(model_of(name, layers), (), name)
    caches = make_prompt_cache(target.model)
    logits, _ = target(mx.arange(64), caches)
    mx.eval(logits)
    forwards, cuts = [], {n: list[float]() for n in KEPT}
    for repeat in range(repeats + 1):
        for n in KEPT:
            started = perf_counter()
            logits, _, rollback = target.verify(mx.arange(ROWS) + repeat, caches)
            mx.eval(logits)
            verified = perf_counter()
            rollback.keep(n)
            mx.eval(rollback.states())
            done = perf_counter()
            if repeat:  # the first warms up
                forwards.append(verified - started)
                cuts[n].append(done - verified)
    target.close()
    return median(forwards), {n: median(times) for n, times in cuts.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("families", nargs="*", default=list(_OWN))
    arguments = parser.parse_args()
    for name in arguments.families:
        forward, cuts = measure(name, arguments.layers, arguments.repeats)
        shares = ", ".join(f"{n} kept {100 * cut / forward:.1f} %" for n, cut in cuts.items())
        print(f"{name}: forward of {ROWS} rows {1e3 * forward:.0f} ms; {shares}", flush=True)


if __name__ == "__main__":
    main()
