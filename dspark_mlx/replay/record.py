"""Recorded rounds: what the drafter proposes, and the target takes, at every position of a text.

A calibration is fitted on them, and because no position is left out, a schedule of any verify
lengths can be replayed on them without a model. A sampled text's blocks are those that would have
led to it, see `sampling.hindsight`: nothing is verified, and the chance of each slot is known,
which varies far less than outcomes do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import mlx.core as mx
import numpy as np
from mlx_lm.generate import wired_limit

from ..benchmark.plain import plain_run
from ..drafters.base import Drafter
from ..engine.rounds import rounds
from ..engine.state import Engine
from ..errors import InputError
from ..progress import ProgressCallback
from ..sampling import Pick, finite_drafts, greedy
from ..sampling.chooser import Chooser
from ..sampling.hindsight import Hindsight, target_logprobs
from ..sampling.make import make_sampler
from ..sampling.noise import Noise
from ..sampling.settings import Sampling
from ..targets.tap import Target
from ..types import Draft
from .recorded import RecordedRound

P = TypeVar("P", bound=Pick)


def record(
    engine: Engine,
    prompts: Sequence[tuple[str, Sequence[int]]],
    max_tokens: int,
    stop_tokens: Collection[int],
    progress: ProgressCallback | None = None,
    sampling: Sampling | None = None,
) -> list[RecordedRound]:
    """Draft from every position of the target's own texts.

    Args:
        engine: target and drafter; the scheduler is not asked.
        prompts: task and token ids of each.
        max_tokens: rounds per prompt at most; gamma more tokens are decoded, so that each of their
            blocks is judged whole. A text that a stop token ends gives gamma fewer than its tokens.
        stop_tokens: ids that end a text.
        progress: called after each prompt.
        sampling: how texts and drafts are sampled, without logits processors; None is greedy.

    Raises:
        InputError: no drafter, or one without a confidence head.
    """
    drafter = engine.drafter
    if drafter is None or not drafter.config.has_confidence:
        found = "no drafter" if drafter is None else "a drafter without a confidence head"
        raise InputError("recording", found, "a drafter with a confidence head")
    sampling = sampling or Sampling()
    recorded: list[RecordedRound] = []
    with wired_limit(engine.target.model):
        for request, (task, prompt) in enumerate(prompts):
            length = max_tokens + drafter.config.gamma
            text = _text(engine, prompt, length, stop_tokens, sampling, request)
            if len(text) > drafter.config.gamma:
                judged = _judged(engine.target, drafter, prompt, text, sampling, request)
                recorded += [
                    RecordedRound(request, task, len(prompt) + i, *each)
                    for i, each in enumerate(judged)
                ]
            if progress:
                progress(request + 1, len(prompts))
    return recorded


def _text(
    engine: Engine,
    prompt: Sequence[int],
    length: int,
    stop_tokens: Collection[int],
    sampling: Sampling,
    sample: int,
) -> list[int]:
    """What the target writes; when sampling by a seed, the same in every run."""
    if sampling.temperature == 0:
        return plain_run(engine.target, prompt, length, stop_tokens).tokens
    sampler = make_sampler(
        dataclasses.replace(sampling, seed=0), engine.target.vocab_size, len(prompt), sample
    )
    plain = dataclasses.replace(engine, drafter=None)
    made = rounds(plain, prompt, max_tokens=length, stop_tokens=stop_tokens, sampler=sampler)
    return [token for done in made for token in done.tokens]


Judged: TypeAlias = tuple[tuple[float, ...], int, float, tuple[float, ...]]
"""Confidence logits, accepted count, temperature and chances of a `RecordedRound`."""


def _judged(
    target: Target,
    drafter: Drafter,
    prompt: Sequence[int],
    text: Sequence[int],
    sampling: Sampling,
    sample: int,
) -> Iterator[Judged]:
    """The block after each token of `text` that it fits into, as the text was made."""
    if sampling.temperature == 0:
        return _judged_greedy(target, drafter, prompt, text)
    return _judged_sampled(target, drafter, prompt, text, sampling, sample)


def _judged_greedy(
    target: Target, drafter: Drafter, prompt: Sequence[int], text: Sequence[int]
) -> Iterator[Judged]:
    """The greedy block after each token of `text` that it fits into."""
    anchors = len(text) - drafter.config.gamma
    taps = text_features(target, [*prompt, *text[: anchors - 1]])
    for draft, accepted in judged_drafts(drafter, prompt, text, taps):
        yield tuple(np.array(draft.confidence_logits).tolist()), accepted, 0.0, ()


def _judged_sampled(
    target: Target,
    drafter: Drafter,
    prompt: Sequence[int],
    text: Sequence[int],
    sampling: Sampling,
    sample: int,
) -> Iterator[Judged]:
    """The sampled block that led to what follows each token of `text`."""
    gamma, chooser = drafter.config.gamma, Chooser(sampling, [])
    taps, after = _features_and_logits(target, prompt, text[:-1])
    logprobs, tokens = target_logprobs(chooser, after), mx.array(list(text), dtype=mx.int32)
    mx.eval(taps, logprobs)
    # The text's own noise is of seed 0.
    keys = Noise(1, sample).at(0, len(text))
    rule = sampling.verification == "block"

    def pick_at(i: int) -> Hindsight:
        block = slice(i + 1, i + 1 + gamma)
        return Hindsight(chooser, tokens[block], logprobs[i : i + gamma], keys[i], rule)

    for draft, pick in _drafts(drafter, prompt, text, taps, pick_at):
        logits, (kept, chances) = np.array(draft.confidence_logits), np.array(pick.outcome)
        accepted = int(kept.sum())
        yield tuple(logits.tolist()), accepted, sampling.temperature, tuple(chances.tolist())


def judged_drafts(
    drafter: Drafter, prompt: Sequence[int], text: Sequence[int], taps: Sequence[mx.array]
) -> Iterator[tuple[Draft, int]]:
    """The greedy block after each token of a text that it fits into, and how much of it is right.

    Args:
        drafter: proposes.
        prompt, text: token ids, the text as the target wrote it after the prompt.
        taps: features of both, one `[tokens, hidden]` a tap; the last block's tokens need none.
    """
    gamma = drafter.config.gamma
    for i, (draft, _) in enumerate(_drafts(drafter, prompt, text, taps, lambda i: greedy)):
        finite = finite_drafts(draft, gamma)
        mx.eval([a for a in (draft.tokens, draft.confidence_logits, finite) if a is not None])
        equal = np.array(draft.tokens) == np.array(text[i + 1 : i + 1 + gamma])
        equal &= np.array(finite)
        yield draft, int(np.cumprod(equal).sum())


class Forced:
    """The `Pick` that follows a text, and sees how likely the drafter finds each of its tokens.

    Args:
        tokens: the text after the anchor, one token a slot.

    Attributes:
        logprobs: log-probability of each slot's token, float32 `[1]` each; -inf for a token that
            the drafter cannot propose. Slots after such a one follow the likeliest token instead.
        hits: whether it is the likeliest token, bool `[1]` each.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self.logprobs: list[mx.array] = []
        self.hits: list[mx.array] = []
        self._tokens = mx.array(list(tokens), dtype=mx.int32)

    def __call__(
        self, logits: mx.array, ids: mx.array | None, drawn: Sequence[mx.array]
    ) -> tuple[mx.array, None]:
        """See `sampling.Pick`."""
        token = self._tokens[len(drawn)]
        best = mx.argmax(logits, axis=-1).astype(mx.int32)
        found = mx.array(True) if ids is None else (ids == token).any()
        column = token[None] if ids is None else mx.argmax(ids == token, keepdims=True)
        column = mx.where(found, column, best).astype(mx.int32)
        logits = logits.astype(mx.float32)
        total = mx.logsumexp(logits, axis=-1)
        logprob = mx.take_along_axis(logits, column[:, None], axis=-1).squeeze(-1) - total
        self.logprobs.append(mx.where(found, logprob, -mx.inf))
        self.hits.append((best == column) & found & mx.isfinite(total))
        return column, None


def forced_drafts(
    drafter: Drafter, prompt: Sequence[int], text: Sequence[int], taps: Sequence[mx.array]
) -> tuple[np.ndarray, np.ndarray]:
    """How likely the drafter finds a text, from each position that its block fits after.

    Arguments are those of `judged_drafts`. Each slot is drafted after the text's own tokens, so
    that every slot of every position counts, and not those alone whose slots before were right.

    Returns:
        Log-probabilities float32 `[positions, gamma]`, and whether each token is the likeliest one,
        bool of the same shape.
    """
    gamma = drafter.config.gamma
    logprobs, hits = [], []

    def following(i: int) -> Forced:
        return Forced(text[i + 1 : i + 1 + gamma])

    for _, pick in _drafts(drafter, prompt, text, taps, following):
        row, right = mx.concatenate(pick.logprobs), mx.concatenate(pick.hits)
        mx.async_eval(row, right)
        logprobs.append(row)
        hits.append(right)
    if not logprobs:
        return np.zeros((0, gamma), np.float32), np.zeros((0, gamma), bool)
    return np.array(mx.stack(logprobs)), np.array(mx.stack(hits))


def _drafts(
    drafter: Drafter,
    prompt: Sequence[int],
    text: Sequence[int],
    taps: Sequence[mx.array],
    pick_at: Callable[[int], P],
) -> Iterator[tuple[Draft, P]]:
    """The block after each token of `text` that it fits into, with what `pick_at` drew it by."""
    start = len(prompt)
    context, tokens = drafter.new_context(prompt), mx.array([*prompt, *text], dtype=mx.int32)
    there = 0
    for i in range(len(text) - drafter.config.gamma):
        rows, there = slice(there, start + i), start + i
        drafter.extend(context, [tap[rows] for tap in taps], tokens[rows])
        context.commit([text[i]])
        pick = pick_at(i)
        yield drafter.draft(context, mx.array([text[i]], dtype=mx.int32), pick), pick


def text_features(target: Target, tokens: Sequence[int]) -> list[mx.array]:
    """Features of every token, one `[tokens, hidden]` a tap; no logits are computed."""
    return _features(target, tokens, target.new_caches())


def _features(
    target: Target, tokens: Sequence[int], caches: list[Any], step: int = 2048
) -> list[mx.array]:
    chunks: list[list[mx.array]] = []
    for start in range(0, len(tokens), step):
        _, taps = target(mx.array(list(tokens[start : start + step]), dtype=mx.int32), caches)
        mx.eval(taps)
        chunks.append(taps)
    return [mx.concatenate(list(parts)) for parts in zip(*chunks, strict=True)]


def _features_and_logits(
    target: Target, prompt: Sequence[int], text: Sequence[int]
) -> tuple[list[mx.array], mx.array]:
    """Features of every token, and the logits after each token of the text, `[text, V]`."""
    caches = target.new_caches()
    before = _features(target, prompt, caches)
    logits, after = target(mx.array(list(text), dtype=mx.int32), caches)
    return [mx.concatenate(list(parts)) for parts in zip(before, after, strict=True)], logits
