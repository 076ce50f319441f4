"""Pairs so small that every text of a few tokens can be enumerated, and how often each comes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from dspark_mlx.checkpoint.base_config import CanonicalConfig
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.drafters.heads import NO_HEAD
from dspark_mlx.drafters.methods import METHODS
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.lookup.lookup import Lookup
from dspark_mlx.sampling import Sampler
from dspark_mlx.targets.tap import Target
from helpers.tiny_models import tiny

HIDDEN = 32
TAPS = (-1, 0)
HORIZON = 3
PROMPT = (1, 5, 2)

VARIANTS: dict[str, dict[str, Any]] = {
    "gemma4_assistant, clustered": {"num_centroids": 3, "centroid_top_k": 2, "owns_head": True},
}
"""Fields of drafters of another kind than their method's example, by the method and a word."""
METHOD_CASES = (*METHODS, *VARIANTS)

Distribution = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
"""From the target's logits float64 `[vocabulary]` and all tokens before to probabilities."""


def toy_target(vocabulary: int, dtype: mx.Dtype = mx.float32, shift: float = 0.0) -> Target:
    """A random llama; `shift` is added to all logits, which changes no probability."""
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "vocab_size": vocabulary}
    model = tiny("llama", seed=3, intermediate_size=32, num_attention_heads=2, **sizes)
    head = model.lm_head.weight
    if shift:
        original = type(model)
        model.__class__ = type(
            "Shifted",
            (original,),
            {"__call__": lambda self, *a, **k: original.__call__(self, *a, **k) + shift},
        )
    model.lm_head.weight = 1.2 * head
    model.set_dtype(dtype)
    mx.eval(model.parameters())
    return Target(model, TAPS, "toy")


def example_config(target: Target, method: str, **own) -> CanonicalConfig:
    """A small drafter of a method, or of a variant of one, for a toy target.

    `own` replaces fields of its example.
    """
    kind = METHODS[method.partition(",")[0]].CONFIG
    own = VARIANTS.get(method, {}) | own
    shared: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "vocab_size": target.vocab_size,
        "target_hidden_size": HIDDEN,
        "target_num_layers": target.num_layers,
        "taps": TAPS,
        "rope_theta": 1e4,
        "owns_embedding": False,
        "owns_head": False,
        "target": "",
    }
    return kind(**(shared | kind.EXAMPLE | own))


def toy_config(target: Target, head: str, gamma: int) -> CanonicalConfig:
    """Of one layer; `head` is a sequential head's kind, or one of `METHOD_CASES`."""
    if head == "eagle3":
        return example_config(target, "eagle3", steps=gamma)
    if head in METHOD_CASES:
        return example_config(target, head)
    none = head == NO_HEAD
    return example_config(
        target,
        "dspark",
        block_size=gamma,
        head=head,
        head_rank=0 if none else 8,
        confidence="hidden" if none else "hidden+markov",
    )


def toy_pair(target: Target, scheduler, head: str = "vanilla", gamma: int = 4) -> Engine:
    """Any target, tapped at -1 and 0, with a random drafter of its width; see `toy_engine`."""
    config = replace(
        toy_config(target, head, gamma),
        hidden_size=target.hidden_size,
        target_hidden_size=target.hidden_size,
    )
    return engine_of(target, scheduler, config)


def toy_tensors(config: CanonicalConfig) -> dict[str, mx.array]:
    """Random tensors of a configuration, float32: a drafter of another opinion than the target."""
    rng = np.random.default_rng(7)
    shapes = {f"{name}.weight": shape for name, shape in config.matrix_shapes().items()}
    tensors = {
        name: mx.array((0.6 * rng.standard_normal(shape)).astype(np.float32))
        for name, shape in (shapes | dict(config.vector_shapes())).items()
    }
    for name, value in tensors.items():
        if "norm" in name:
            # Small final rows: a drafter less sure than the target, so that some drafts survive.
            tensors[name] = mx.ones_like(value) * (0.5 if name.startswith("norm") else 1.0)
    for name, (size,) in config.id_shapes().items():
        tensors[name] = mx.array(rng.permutation(config.vocab_size)[:size].astype(np.int32))
    return tensors


def toy_engine(
    target: Target,
    scheduler,
    head: str = "vanilla",
    gamma: int = 4,
    change: Callable[[dict[str, mx.array]], None] = lambda tensors: None,
) -> Engine:
    """The target with a random drafter of another opinion; `change` is made to its tensors."""
    return engine_of(target, scheduler, toy_config(target, head, gamma), change)


def engine_of(
    target: Target,
    scheduler,
    config: CanonicalConfig,
    change: Callable[[dict[str, mx.array]], None] = lambda tensors: None,
) -> Engine:
    """The target with a random drafter of a configuration."""
    if config.taps != TAPS:
        target = target.sharing(config.taps, "toy")
    tensors = toy_tensors(config)
    change(tensors)
    drafter = assemble(
        config,
        {
            name: value if name in config.id_shapes() else value.astype(target.dtype)
            for name, value in tensors.items()
        },
        target.embed,
        target.logits,
        target.dtype,
        dequantize=False,
        target=target,
    )
    return Engine(target, drafter, scheduler)


def exact(target: Target, distribution: Distribution) -> np.ndarray:
    """The probability of every text of `HORIZON` tokens, `[vocabulary] * HORIZON`."""
    size = target.vocab_size
    joint = np.ones(())
    for length in range(HORIZON):
        texts = list(itertools.product(range(size), repeat=length))
        batch = mx.array([[*PROMPT, *text] for text in texts])
        with target.untapped():
            logits = target.model(batch)[:, -1].astype(mx.float32)
        rows = [
            distribution(row, (*PROMPT, *text))
            for row, text in zip(np.array(logits, dtype=np.float64), texts, strict=True)
        ]
        joint = joint[..., None] * np.stack(rows).reshape((size,) * (length + 1))
    return joint


def sampled(
    engine: Engine, samplers: Iterable[Sampler], gamma: int, reference: Sequence[int] = ()
) -> np.ndarray:
    """How often each text of `HORIZON` tokens came, `[vocabulary] * HORIZON`.

    Where there is a `reference`, policies that copy do so from it, from the prompt and the text.
    """
    counts = np.zeros((engine.target.vocab_size,) * HORIZON, dtype=np.int64)
    for sampler in samplers:
        tokens: list[int] = []
        # Longer than what is counted, so that no block is cut at the request's end.
        request = rounds(
            engine,
            PROMPT,
            max_tokens=HORIZON + gamma + 1,
            stop_tokens=(),
            sampler=sampler,
            lookup=Lookup([reference]) if reference else None,
        )
        for done in request:
            tokens.extend(done.tokens)
            if len(tokens) >= HORIZON:
                break
        request.close()
        counts[tuple(tokens[:HORIZON])] += 1
    return counts


def misfit(counts: np.ndarray, probabilities: np.ndarray, false_alarms: float = 1e-5) -> float:
    """Pearson's chi-square over its quantile: above 1 happens by chance once in 1e5.

    Texts expected less than five times are counted as one.
    """
    expected = (probabilities * counts.sum()).ravel()
    seen = counts.ravel()
    if (seen[expected == 0] > 0).any():
        return np.inf
    few = expected < 5
    expected = np.append(expected[~few], expected[few].sum())
    seen = np.append(seen[~few], seen[few].sum())
    if expected[-1] < 5:
        expected, seen = expected[:-1], seen[:-1]
    if len(expected) < 2:
        return 0.0
    degrees = len(expected) - 1
    # Wilson and Hilferty's approximation of the quantile.
    z = {1e-5: 4.265}[false_alarms]
    limit = degrees * (1 - 2 / (9 * degrees) + z * np.sqrt(2 / (9 * degrees))) ** 3
    return float(((seen - expected) ** 2 / expected).sum() / limit)
