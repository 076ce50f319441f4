"""Recorded rounds: what the drafter proposes, and the target takes, at every position of a text.

A calibration is fitted on them, and because no position is left out, a schedule of any verify
lengths can be replayed on them without a model.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import wired_limit

from .cache import new_caches
from .compare import plain_run
from .drafter import Drafter
from .engine import Engine
from .errors import InputError
from .files import read_json_lines, write_text
from .sampling import greedy
from .targets.tap import Target
from .types import Draft

Progress = Callable[[int, int], None]
"""Called with prompts recorded and prompts in all."""


@dataclass(frozen=True)
class RecordedRound:
    """A round that verified its whole block.

    Attributes:
        request: index of the prompt.
        task: the prompt's group.
        position: the anchor's, that is the number of committed tokens before it.
        confidence_logits: raw log-odds of every slot of the block, gamma long.
        accepted: how many tokens of the block the target takes, 0..gamma.
    """

    request: int
    task: str
    position: int
    confidence_logits: tuple[float, ...]
    accepted: int


def record(
    engine: Engine,
    prompts: Sequence[tuple[str, Sequence[int]]],
    max_tokens: int,
    stop_tokens: Collection[int],
    progress: Progress | None = None,
) -> list[RecordedRound]:
    """Draft from every position of the target's own greedy texts.

    Args:
        engine: target and drafter; the scheduler is not asked.
        prompts: task and token ids of each.
        max_tokens: rounds per prompt at most; gamma more tokens are decoded, so that each of their
            blocks is judged whole. A text that a stop token ends gives gamma fewer than its tokens.
        stop_tokens: ids that end a text.
        progress: called after each prompt.

    Raises:
        InputError: no drafter, or one without a confidence head.
    """
    drafter = engine.drafter
    if drafter is None or not drafter.config.has_confidence:
        found = "no drafter" if drafter is None else "a drafter without a confidence head"
        raise InputError("recording", found, "a drafter with a confidence head")
    recorded: list[RecordedRound] = []
    with wired_limit(engine.target.model):
        for request, (task, prompt) in enumerate(prompts):
            length = max_tokens + drafter.config.gamma
            text = plain_run(engine.target, prompt, length, stop_tokens).tokens
            for i, (logits, accepted) in enumerate(_judge(engine, prompt, text)):
                position = len(prompt) + i
                recorded.append(RecordedRound(request, task, position, logits, accepted))
            if progress:
                progress(request + 1, len(prompts))
    return recorded


def _judge(
    engine: Engine, prompt: Sequence[int], text: Sequence[int]
) -> Iterator[tuple[tuple[float, ...], int]]:
    """Log-odds and accepted count of the block after each token of `text` that fits into it."""
    drafter = engine.drafter
    assert drafter is not None
    anchors = len(text) - drafter.config.gamma
    if anchors < 1:
        return
    taps = features(engine.target, [*prompt, *text[: anchors - 1]])
    for draft, accepted in judged_drafts(drafter, prompt, text, taps):
        yield tuple(np.array(draft.confidence_logits).tolist()), accepted


def judged_drafts(
    drafter: Drafter, prompt: Sequence[int], text: Sequence[int], taps: Sequence[mx.array]
) -> Iterator[tuple[Draft, int]]:
    """The greedy block after each token of a text that it fits into, and how much of it is right.

    Args:
        drafter: proposes.
        prompt, text: token ids, the text as the target wrote it after the prompt.
        taps: features of both, one `[tokens, hidden]` a tap; the last block's tokens need none.
    """
    gamma, start = drafter.config.gamma, len(prompt)
    context, tokens = drafter.new_context(prompt), mx.array([*prompt, *text], dtype=mx.int32)
    there = 0
    for i in range(len(text) - gamma):
        rows, there = slice(there, start + i), start + i
        drafter.extend(context, [tap[rows] for tap in taps], tokens[rows])
        context.commit([text[i]])
        draft = drafter.draft(context, mx.array([text[i]], dtype=mx.int32), greedy)
        mx.eval([a for a in (draft.tokens, draft.confidence_logits) if a is not None])
        equal = np.array(draft.tokens) == np.array(text[i + 1 : i + 1 + gamma])
        yield draft, int(np.cumprod(equal).sum())


def features(target: Target, tokens: Sequence[int], step: int = 2048) -> list[mx.array]:
    """Features of every token, one `[tokens, hidden]` a tap; no logits are computed."""
    caches = new_caches(target.model, "target")
    chunks: list[list[mx.array]] = []
    for start in range(0, len(tokens), step):
        _, taps = target(mx.array(list(tokens[start : start + step]), dtype=mx.int32), caches)
        mx.eval(taps)
        chunks.append(taps)
    return [mx.concatenate(list(parts)) for parts in zip(*chunks, strict=True)]


def arrays(rounds: Sequence[RecordedRound]) -> tuple[np.ndarray, np.ndarray]:
    """What `calibration.fit` takes: log-odds float64 `[n, gamma]`, accepted int64 `[n]`."""
    logits = np.array([done.confidence_logits for done in rounds], dtype=np.float64)
    return logits, np.array([done.accepted for done in rounds], dtype=np.int64)


def write_rounds(path: Path, rounds: Iterable[RecordedRound]) -> None:
    """Write JSON lines, one a round, atomically."""
    write_text(path, "".join(json.dumps(dataclasses.asdict(done)) + "\n" for done in rounds))


def read_rounds(path: Path) -> list[RecordedRound]:
    """Read what `write_rounds` wrote.

    Raises:
        InputError: no such file, no rounds in it, or a line (named by its number) that is not one
            round with as many slots as the first.
    """
    lines = read_json_lines(path, "recorded rounds", "round")
    rounds = [_read_round(where, data) for where, data in lines]
    gamma = len(rounds[0].confidence_logits)
    for number, done in enumerate(rounds, 1):
        if len(done.confidence_logits) != gamma:
            found = f"{len(done.confidence_logits)} confidence logits"
            raise InputError(f"{path}:{number}", found, f"{gamma}, as on the first line")
    return rounds


def _read_round(where: str, data: Any) -> RecordedRound:
    names = [field.name for field in dataclasses.fields(RecordedRound)]
    if not isinstance(data, dict) or sorted(data) != sorted(names):
        raise InputError(where, json.dumps(data)[:60], f"an object of {', '.join(names)}")
    logits = data["confidence_logits"]
    numbers = isinstance(logits, list) and all(type(z) in (int, float) for z in logits)
    if not numbers or not logits or not all(math.isfinite(z) for z in logits):
        raise InputError(where, f"confidence_logits {logits!r}", "finite numbers, one a slot")
    for name, most in (("request", None), ("position", None), ("accepted", len(logits))):
        value = data[name]
        if type(value) is not int or value < 0 or (most is not None and value > most):
            expected = "a whole number, 0 or more" if most is None else f"from 0 to {most}"
            raise InputError(where, f"{name} {value!r}", expected)
    if not isinstance(data["task"], str):
        raise InputError(where, f"task {data['task']!r}", "a string")
    return RecordedRound(**data | {"confidence_logits": tuple(float(z) for z in logits)})
