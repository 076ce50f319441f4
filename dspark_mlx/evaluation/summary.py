"""Computes the scores of an evaluation from its answers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..benchmark.comparison import Row, speedups
from ..calibration.metrics import bin_counts
from ..calibration.report import SlotReport
from ..calibration.report import slot_reports as slot_report
from ..calibration.sts import Calibration
from ..decoder import Decoder
from ..types import Round
from .answers import Answer, EvaluationSettings, LeftOut, count_turns
from .counts import count
from .records import AVERAGE, Bin, Evaluation, Score, Speed
from .sweep import Block, SweepPoint, sweep, visited
from .tasks import Task

# Confidences are float32; they are kept this far from 0 and 1, so that their logits are finite.
_EDGE = 1e-7


def summarise(
    decoders: Mapping[str, Decoder],
    tasks: Sequence[Task],
    settings: EvaluationSettings,
    found: Iterable[Answer | LeftOut],
) -> Evaluation:
    """The evaluation of answers, all of them or the first ones.

    Args:
        decoders, tasks, settings: the arguments of `answers`.
        found: what `answers` yielded so far.
    """
    parts = list(found)
    answered = [part for part in parts if isinstance(part, Answer)]
    left_out = tuple(part for part in parts if isinstance(part, LeftOut))
    names = tuple(task.name for task in tasks if any(a.task == task.name for a in answered))
    scores: list[Score] = []
    for task in names:
        of_task = [answer for answer in answered if answer.task == task]
        scores += [_score(name, each, task, of_task) for name, each in decoders.items()]
    if names:
        scores += [_average(name, each, scores, answered) for name, each in decoders.items()]
    turns = len(answered) + sum(part.turns for part in left_out)
    return Evaluation(
        tuple(decoders), names, tuple(scores), settings, turns, count_turns(tasks), left_out
    )


def _score(name: str, decoder: Decoder, task: str, found: Sequence[Answer]) -> Score:
    assert decoder.engine.drafter is not None
    counts = count(_rounds(name, found), decoder.engine.drafter.config.gamma, decoder.stop_tokens)
    rounds = max(counts.rounds, 1)
    return Score(
        drafter=name,
        task=task,
        turns=len(found),
        rounds=counts.rounds,
        tokens=counts.tokens,
        tau=counts.tau,
        drafted=counts.drafted / rounds,
        verified=counts.verified / rounds,
        accepted=counts.accepted / rounds,
        verified_share=counts.verified / max(counts.drafted, 1),
        verify_rate=counts.verify_rate,
        survival=counts.survival,
        conditional=counts.conditional,
        sweep=sweep([text for answer in found for text in answer.texts[name]]),
        **_pooled(name, decoder, found),
    )


def _average(
    name: str, decoder: Decoder, scores: Sequence[Score], found: Sequence[Answer]
) -> Score:
    mine = [score for score in scores if score.drafter == name]
    sums = {key: sum(getattr(s, key) for s in mine) for key in ("turns", "rounds", "tokens")}
    keys = ("tau", "drafted", "verified", "accepted", "verified_share", "verify_rate")
    means = {key: statistics.mean(getattr(s, key) for s in mine) for key in keys}
    return Score(
        drafter=name,
        task=AVERAGE,
        survival=tuple(map(_mean, zip(*(s.survival for s in mine), strict=True))),
        conditional=tuple(map(_mean, zip(*(s.conditional for s in mine), strict=True))),
        sweep=tuple(map(_mean_point, zip(*(s.sweep for s in mine if s.sweep), strict=True))),
        **sums,
        **means,
        **_pooled(name, decoder, found),
    )


def _pooled(name: str, decoder: Decoder, found: Sequence[Answer]) -> dict[str, Any]:
    """The fields of a score that are computed over all rounds together: slots, bins and speed."""
    assert decoder.engine.drafter is not None
    blocks = visited(_rounds(name, found), decoder.stop_tokens)
    calibration = decoder.engine.drafter.calibrations.at(found[0].temperature)
    return {
        "slots": _slots(blocks, calibration),
        "bins": _bins(blocks),
        "speed": _speed([row for answer in found if (row := answer.speeds[name])]),
    }


def _rounds(name: str, found: Sequence[Answer]) -> list[Round]:
    """Rounds of all answers; greedy repeats are equal, so only the first one counts."""
    return [
        round_
        for answer in found
        for run in answer.runs[name][: 1 if answer.temperature == 0 else None]
        for round_ in run.rounds
    ]


def _slots(blocks: Sequence[Block], calibration: Calibration) -> tuple[SlotReport, ...]:
    if not blocks:
        return ()
    confidence = np.clip([block.confidence for block in blocks], _EDGE, 1 - _EDGE)
    raw = np.log(confidence / (1 - confidence)) * np.array(calibration.temperatures)
    return tuple(slot_report(raw, [block.accepted for block in blocks], calibration))


def _bins(blocks: Sequence[Block]) -> tuple[Bin, ...]:
    if not blocks:
        return ()
    survival = np.cumprod([block.confidence for block in blocks], axis=1)
    observed = np.array([block.accepted for block in blocks])[:, None] > np.arange(
        survival.shape[1]
    )
    columns = np.stack(bin_counts(survival.ravel(), observed.ravel()), axis=1)
    return tuple(Bin(p / n, seen / n, int(n)) for n, p, seen in columns.tolist() if n)


def _speed(rows: Sequence[Row]) -> Speed | None:
    if not rows:
        return None
    total, slowest = speedups(rows)
    tokens = sum(row.tokens for row in rows)
    plain = sum(row.tokens * row.plain_seconds_per_token for row in rows)
    compared = [row.equal for row in rows if row.equal is not None]
    margins = [row.margin for row in rows if row.margin is not None]
    return Speed(
        plain_tps=tokens / plain,
        tps=total * tokens / plain,
        speedup=total,
        slowest=slowest,
        median=statistics.median(row.speedup for row in rows),
        prompts=len(rows),
        equal=sum(compared) if compared else None,
        margin=max(margins, default=None),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _mean_point(points: Sequence[SweepPoint]) -> SweepPoint:
    return SweepPoint(
        points[0].threshold,
        statistics.mean(point.tau for point in points),
        statistics.mean(point.verified for point in points),
        _mean(point.acceptance_rate for point in points),
    )
