"""Speculative against plain decoding: the same prompt through mlx-lm's own loop, token by token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from time import perf_counter

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step

from ..caches import new_caches
from ..sampling.settings import Sampling
from ..sampling.transform import make_processors, plain_sampler
from ..targets.tap import Target


@dataclass(frozen=True)
class PlainRun:
    """Decoding by mlx-lm.

    Attributes:
        tokens: committed ids, the stop token included where one came.
        seconds: wall-clock time after the first token.
    """

    tokens: list[int]
    seconds: float


def plain_run(
    target: Target,
    prompt: Sequence[int],
    max_tokens: int,
    stop_tokens: Collection[int],
    prefill_step_size: int = 2048,
    sampling: Sampling | None = None,
) -> PlainRun:
    """Decode with `mlx_lm.generate.generate_step`, taps off.

    Args:
        target: whose model decodes.
        prompt, max_tokens, stop_tokens, prefill_step_size: see `rounds.rounds`.
        sampling: None is greedy; otherwise mlx-lm's own sampler and its process-wide generator.
    """
    sampling = sampling or Sampling()
    tokens: list[int] = []
    started = finished = 0.0
    with target.untapped():
        steps = generate_step(
            mx.array(list(prompt)),
            target.model,
            max_tokens=max_tokens,
            prefill_step_size=prefill_step_size,
            sampler=plain_sampler(sampling, target.vocab_size),
            logits_processors=make_processors(sampling, len(prompt)),
        )
        for token, _ in steps:
            finished = perf_counter()
            started = started or finished
            tokens.append(int(token))
            if tokens[-1] in stop_tokens:
                break
        steps.close()
    return PlainRun(tokens, finished - started)


@dataclass(frozen=True)
class Difference:
    """Where two greedy outputs part.

    Attributes:
        index: position among the generated tokens.
        tokens: the speculative and the plain token there; None where that side had ended.
        margin: the target's largest logit less its second largest there. A forward over one row
            and one over several use different kernels, so a margin near 0 is a tie.
    """

    index: int
    tokens: tuple[int | None, int | None]
    margin: float


def first_difference(
    target: Target, prompt: Sequence[int], speculative: Sequence[int], plain: Sequence[int]
) -> Difference | None:
    """Where two outputs first differ, with the top-two logit margin there; None if equal."""
    if list(speculative) == list(plain):
        return None
    pairs = zip(speculative, plain, strict=False)
    shorter = min(len(speculative), len(plain))
    index = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
    logits, _ = target(
        mx.array([*prompt, *plain[:index]], dtype=mx.int32), new_caches(target.model, "target")
    )
    second, first = np.sort(np.array(logits[-1].astype(mx.float32)))[-2:]
    here = tuple(side[index] if index < len(side) else None for side in (speculative, plain))
    return Difference(index, (here[0], here[1]), float(first - second))
