"""Writes an evaluation as tables: scores, acceptance by position, confidence by slot, sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..calibration.report import report_table as slot_table
from .records import AVERAGE, Evaluation, Score

_BLANK = "-"


def text(evaluation: Evaluation) -> str:
    """All tables that are not empty, and the notes on them."""
    parts = [
        scores(evaluation),
        positions(
            evaluation,
            "Acceptance by position, of the blocks that accepted all positions before it",
            lambda score: score.conditional,
        ),
        positions(
            evaluation,
            "Survival by position, of the blocks that verify it",
            lambda score: score.survival,
        ),
        *_confidence(evaluation),
        _sweep(evaluation),
        notes(evaluation),
    ]
    return "\n\n".join(part for part in parts if part)


def scores(evaluation: Evaluation) -> str:
    """DeepSpec's table: a line for each task and drafter, and one for plain decoding."""
    head = ["task", "drafter", "turns", "rounds", "tokens", "tau", "drafted", "verified"]
    head += ["verify rate", "ECE", "AUC", "tok/s", "speedup", "agree"]
    rows = []
    for task in _task_names(evaluation):
        mine = [evaluation.score(drafter, task) for drafter in evaluation.drafters]
        rows += _plain_row(task, mine)
        rows += [_score_row(score) for score in mine]
    return aligned(head, rows, left=2)


def positions(
    evaluation: Evaluation, title: str, values: Callable[[Score], Sequence[float | None]]
) -> str:
    """A table of values by slot: a line for each task and drafter, a column for each slot."""
    slots = max((len(values(score)) for score in evaluation.scores), default=0)
    rows = [
        [task, drafter, *_padded(values(evaluation.score(drafter, task)), slots)]
        for task in _task_names(evaluation)
        for drafter in evaluation.drafters
    ]
    head = ["task", "drafter", *(str(slot + 1) for slot in range(slots))]
    return f"{title}:\n{aligned(head, rows, left=2)}"


def notes(evaluation: Evaluation) -> str:
    """What a reader must know about the numbers; empty when there is nothing."""
    lines = []
    if evaluation.partial:
        lines.append(
            f"PARTIAL: interrupted after {evaluation.turns} of {evaluation.planned} turns; "
            "tasks without an answer are missing."
        )
    for part in evaluation.left_out:
        lines.append(
            f"Left out: {part.turns} turns of {part.task} from prompt {part.prompt + 1}, turn "
            f"{part.turn + 1} on: {part.tokens} tokens leave the target no room for "
            f"{evaluation.settings.max_tokens} more."
        )
    if not evaluation.settings.greedy and any(score.sweep for score in evaluation.scores):
        lines.append("The sweep is estimated on the blocks of the run; greedy, it is exact.")
    return "\n".join(lines)


def aligned(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A table whose columns are as wide as their widest cell; the first `left` are flush left."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _task_names(evaluation: Evaluation) -> tuple[str, ...]:
    return (*evaluation.tasks, AVERAGE) if evaluation.tasks else ()


def _plain_row(task: str, mine: Sequence[Score]) -> list[list[str]]:
    speeds = [score.speed for score in mine if score.speed]
    if not speeds:
        return []
    known = [task, "plain", str(mine[0].turns), _BLANK, _BLANK, "1.00"]
    return [[*known, *[_BLANK] * 5, f"{speeds[0].plain_tps:.1f}", "1.00x", ""]]


def _score_row(score: Score) -> list[str]:
    speed, agree = score.speed, ""
    if speed and speed.equal is not None:
        agree = f"{speed.equal} of {speed.prompts}"
        agree += f", ties up to {speed.margin:.1e}" if speed.margin is not None else ""
    counts = [str(n) for n in (score.turns, score.rounds, score.tokens)]
    lengths = [f"{value:.2f}" for value in (score.tau, score.drafted, score.verified)]
    return [
        score.task,
        score.drafter,
        *counts,
        *lengths,
        _number(score.verify_rate),
        _number(score.ece),
        _number(score.auc),
        f"{speed.tps:.1f}" if speed else _BLANK,
        f"{speed.speedup:.2f}x" if speed else _BLANK,
        agree,
    ]


def _confidence(evaluation: Evaluation) -> list[str]:
    if not evaluation.tasks:
        return []
    judged = [(name, evaluation.score(name).slots) for name in evaluation.drafters]
    return [
        f"Confidence of {name}, before and after calibration, all tasks together:\n"
        + slot_table(list(slots))
        for name, slots in judged
        if slots
    ]


def _sweep(evaluation: Evaluation) -> str:
    if not evaluation.tasks:
        return ""
    sweeps = {name: evaluation.score(name).sweep for name in evaluation.drafters}
    swept = {name: points for name, points in sweeps.items() if points}
    if not swept:
        return ""
    head = ["threshold", "drafter", "tau", "verified", "accepted of verified"]
    rows = [
        [
            f"{points[i].threshold:.2f}",
            name,
            f"{points[i].tau:.2f}",
            f"{points[i].verified:.2f}",
            _number(points[i].acceptance_rate),
        ]
        for i in range(0, len(next(iter(swept.values()))), 2)
        for name, points in swept.items()
    ]
    title = "Threshold on the confidence, macro-average:"
    return f"{title}\n{aligned(head, rows, left=2)}"


def _padded(values: Sequence[float | None], slots: int) -> list[str]:
    return [_number(value) for value in values] + [_BLANK] * (slots - len(values))


def _number(value: float | None) -> str:
    return _BLANK if value is None else f"{value:.3f}"
