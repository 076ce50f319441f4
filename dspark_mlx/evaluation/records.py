"""The results of an evaluation: scores and speeds by drafter and task."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from ..calibration.report import SlotReport
from .answers import EvaluationSettings, LeftOut
from .sweep import SweepPoint

AVERAGE = "macro-average"


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
        predicted: mean predicted survival.
        observed: share of the predictions whose slot survived.
        count: number of predictions.
    """

    predicted: float
    observed: float
    count: int


@dataclass(frozen=True)
class Speed:
    """Speed of a drafter against plain decoding in the same run.

    A prompt's seconds are the median over its repeats.

    Attributes:
        plain_tps, tps: tokens per second without and with the drafter, all tokens over all seconds.
        speedup: speedup of all tokens together.
        slowest: smallest speedup of a prompt.
        median: median speedup of the prompts.
        prompts: number of prompts that were timed.
        equal: number of prompts whose tokens are equal to plain decoding's; None where tokens are
            sampled.
        margin: largest top-two logit margin at a first difference; None where there is none.
    """

    plain_tps: float
    tps: float
    speedup: float
    slowest: float
    median: float
    prompts: int
    equal: int | None
    margin: float | None


@dataclass(frozen=True)
class Score:
    """The score of one drafter on one task, or its macro-average over the tasks.

    The macro-average has sums of `turns`, `rounds` and `tokens`. Its `slots`, `bins` and `speed`
    are computed over the rounds of all tasks together. All other values are means over the tasks.

    Attributes:
        drafter, task: their names.
        turns: number of answered turns.
        rounds, tokens: rounds after the prefills, and tokens that they committed.
        tau: accepted length, see `counts`.
        drafted, verified, accepted: draft tokens per round.
        verified_share: verified over drafted tokens.
        verify_rate: tokens committed over rows verified (DeepSpec's measure).
        survival: see `Counts.survival`.
        conditional: see `Counts.conditional`.
        slots: for each slot, the quality of the raw and the calibrated confidence. Empty for a
            drafter without a confidence head, or where blocks were verified in part.
        bins: reliability diagram of the calibrated survival, all slots together; empty where
            `slots` is empty.
        sweep: results for thresholds on the confidence. They are exact for greedy decoding, else
            estimated on the blocks of the run, as if a shorter block led to the same next block.
        speed: speed against plain decoding; None where nothing was decoded plainly.
    """

    drafter: str
    task: str
    turns: int
    rounds: int
    tokens: int
    tau: float
    drafted: float
    verified: float
    accepted: float
    verified_share: float
    verify_rate: float
    survival: tuple[float | None, ...]
    conditional: tuple[float | None, ...]
    slots: tuple[SlotReport, ...]
    bins: tuple[Bin, ...]
    sweep: tuple[SweepPoint, ...]
    speed: Speed | None

    @property
    def ece(self) -> float | None:
        """Expected calibration error of the calibrated survival, mean over the slots.

        It is None where `slots` is empty.
        """
        return statistics.mean(slot.ece_after for slot in self.slots) if self.slots else None

    @property
    def auc(self) -> float | None:
        """Area under the ROC curve of the calibrated survival, mean over the slots.

        Slots with a single outcome are left out; it is None where none is left.
        """
        known = [slot.auc_after for slot in self.slots if not math.isnan(slot.auc_after)]
        return statistics.mean(known) if known else None


@dataclass(frozen=True)
class Evaluation:
    """The scores of an evaluation.

    Attributes:
        drafters: names of the drafters.
        tasks: names of the tasks that have an answer.
        scores: for each task the scores of all drafters, then their macro-averages.
        settings: how the evaluation decoded.
        turns: turns that were answered or left out; fewer than `planned` after an interruption.
        planned: all turns of the tasks.
        left_out: turns that do not fit the target's positions.
    """

    drafters: tuple[str, ...]
    tasks: tuple[str, ...]
    scores: tuple[Score, ...]
    settings: EvaluationSettings
    turns: int
    planned: int
    left_out: tuple[LeftOut, ...]

    @property
    def partial(self) -> bool:
        """Whether it ended before its last turn."""
        return self.turns < self.planned

    def score(self, drafter: str, task: str = AVERAGE) -> Score:
        """The score of a drafter on a task; by default its macro-average."""
        return next(s for s in self.scores if (s.drafter, s.task) == (drafter, task))
