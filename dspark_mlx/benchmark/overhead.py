"""Measures Python's cost of a round, on a pair so small that Python never waits for the device."""

from __future__ import annotations

import statistics

import mlx.core as mx
from mlx_lm.models.llama import Model, ModelArgs

from ..drafters.assemble import assemble
from ..drafters.dspark.config import DSparkConfig
from ..engine.rounds import rounds
from ..engine.state import Engine
from ..sampling.make import make_sampler
from ..sampling.settings import Sampling
from ..schedulers.full import FullScheduler
from ..targets.tap import Target


def round_overhead(layers: int, tokens: int = 200) -> float:
    """Median milliseconds per round that Python spends beyond the target's own forward.

    They cover draft, sequential head, accept, commit and context update of a random drafter with
    block 7, five taps and a vanilla head of rank 8. The widths are tiny; the operations are those
    of a full-size drafter.

    Args:
        layers: layers of the drafter.
        tokens: tokens to generate.
    """
    vocab, hidden, depth = 64, 32, 8
    args = ModelArgs(
        model_type="llama",
        hidden_size=hidden,
        num_hidden_layers=depth,
        intermediate_size=hidden,
        num_attention_heads=2,
        num_key_value_heads=1,
        rms_norm_eps=1e-6,
        vocab_size=vocab,
    )
    config = DSparkConfig(
        hidden_size=hidden,
        intermediate_size=hidden,
        num_layers=layers,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        rms_norm_eps=1e-6,
        vocab_size=vocab,
        target_hidden_size=hidden,
        target_num_layers=depth,
        taps=(0, 1, 3, 5, 6),
        block_size=7,
        logits_start=0,
        mask_token_id=0,
        rope_theta=1e4,
        head="vanilla",
        head_rank=8,
        confidence="hidden+markov",
        owns_embedding=False,
        owns_head=False,
        target="",
    )
    key = mx.random.key(0)
    shapes = {f"{name}.weight": shape for name, shape in config.matrix_shapes().items()}
    tensors = {
        name: mx.random.normal(shape, key=key)
        for name, shape in (shapes | dict(config.vector_shapes())).items()
    }
    target = Target(Model(args), config.taps, "overhead")
    drafter = assemble(config, tensors, target.embed, target.logits, mx.float32, dequantize=False)
    engine = Engine(target, drafter, FullScheduler())
    sampler = make_sampler(Sampling(), vocab)
    made = list(rounds(engine, [1, 2, 3], max_tokens=tokens, stop_tokens=(), sampler=sampler))
    return 1e3 * statistics.median(r.host_seconds for r in made if r.drafted)
