"""Decodes a prompt with mlx-lm's own loop, and finds where its tokens differ from other ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from time import perf_counter

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step

from ..errors import InputError
from ..sampling.settings import Sampling
from ..sampling.transform import make_processors, plain_sampler
from ..targets.tap import Target


@dataclass(frozen=True)
class PlainRun:
    """One run of mlx-lm's decoding.

    Attributes:
        tokens: generated ids, the stop token included where there is one.
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
    """Decode a prompt with `mlx_lm.generate.generate_step`, with taps switched off.

    Args:
        target: the target, whose model decodes.
        prompt, max_tokens, stop_tokens, prefill_step_size: see `rounds.rounds`.
        sampling: how tokens are sampled, with mlx-lm's own sampler and its process-wide random
            generator; None for greedy decoding.

    Raises:
        InputError: the prompt is empty, as a chat template may leave it.
    """
    if not prompt:
        raise InputError("prompt", "no tokens", "at least one token")
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
            **dataclasses.asdict(target.cache_settings),
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
    """The first difference between two greedy outputs.

    Attributes:
        index: its position among the generated tokens.
        tokens: the speculative and the plain token there; None where that side had ended.
        margin: the target's largest logit there minus its second largest. A forward over one row
            and one over several use different kernels, so a margin near 0 is a tie.
    """

    index: int
    tokens: tuple[int | None, int | None]
    margin: float


def first_difference(
    target: Target, prompt: Sequence[int], speculative: Sequence[int], plain: Sequence[int]
) -> Difference | None:
    """The first difference between two outputs, with the top-two logit margin; None if equal."""
    if list(speculative) == list(plain):
        return None
    pairs = zip(speculative, plain, strict=False)
    shorter = min(len(speculative), len(plain))
    index = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
    text = mx.array([*prompt, *plain[:index]], dtype=mx.int32)
    logits, _ = target(text, target.new_caches())
    second, first = np.sort(np.array(logits[-1].astype(mx.float32)))[-2:]
    here = tuple(side[index] if index < len(side) else None for side in (speculative, plain))
    return Difference(index, (here[0], here[1]), float(first - second))
