"""The evaluation's records: speeds, scores by drafter and task."""

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
    """One bin of a reliability diagram: mean predicted survival, observed share, predictions."""

    predicted: float
    observed: float
    count: int


@dataclass(frozen=True)
class Speed:
    """Against plain decoding in the same run; each prompt's seconds are medians over its repeats.

    Attributes:
        plain_tps, tps: tokens a second, plainly and with the drafter, all tokens over all seconds.
        speedup: of all tokens together. slowest: of the slowest prompt. median: of the prompts.
        prompts: that were timed.
        equal: those whose tokens are plain decoding's; None where tokens are sampled.
        margin: the largest top-two logit margin at a first difference; None without one.
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
    """One drafter on one task, or the macro-average over the tasks.

    The macro-average has the sums of `turns`, `rounds` and `tokens`, and the means of all else, but
    for `slots`, `bins` and `speed`: those are of all tasks' rounds together.

    Attributes:
        drafter, task: names.
        turns: answered.
        rounds, tokens: after the prefills.
        tau: accepted length, see `counts`.
        drafted, verified, accepted: drafted tokens a round.
        verified_share: of the drafted tokens.
        verify_rate: DeepSpec's, tokens committed over rows verified.
        survival: by slot, share of the blocks that accept it; None where none verifies it.
        conditional: by slot, the same of the blocks that accepted all slots before it.
        slots: raw and calibrated confidence by slot, of the blocks that were drafted; empty for a
            drafter without a confidence head, or where blocks were verified in part.
        bins: reliability diagram of the calibrated survival, all slots together; empty likewise.
        sweep: thresholds on the confidence; exact where greedy, else estimated on the blocks of the
            run, as if a shorter block led to the same next one.
        speed: None where nothing was decoded plainly.
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
        """Mean over the slots of the calibrated survival's expected calibration error."""
        return statistics.mean(slot.ece_after for slot in self.slots) if self.slots else None

    @property
    def auc(self) -> float | None:
        """Mean over the slots that have both outcomes."""
        known = [slot.auc_after for slot in self.slots if not math.isnan(slot.auc_after)]
        return statistics.mean(known) if known else None


@dataclass(frozen=True)
class Evaluation:
    """Scores by task, drafter by drafter, each task's together; macro-averages last.

    Attributes:
        drafters, tasks: names, in order; only tasks with an answer.
        scores: see above.
        settings: of the evaluation.
        turns, planned: answered or left out, and asked for; fewer when it was interrupted.
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
        """The one of a drafter and a task."""
        return next(s for s in self.scores if (s.drafter, s.task) == (drafter, task))
