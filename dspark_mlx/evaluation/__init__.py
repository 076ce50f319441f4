"""Evaluates one or more drafters on DeepSpec's benchmark tasks, with DeepSpec's measures.

`python -m dspark_mlx.evaluate` is the command for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..decoder import Decoder
from ..progress import ProgressCallback
from .answers import EvaluationSettings, answers
from .records import Evaluation
from .summary import summarise
from .tasks import Task, read_tasks

__all__ = ["Evaluation", "EvaluationSettings", "Task", "evaluate", "read_tasks"]


def evaluate(
    decoders: Mapping[str, Decoder],
    tasks: Sequence[Task],
    settings: EvaluationSettings | None = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Answer all prompts with every drafter, and return the scores.

    To keep the finished answers when an evaluation is stopped, iterate over `answers` and give
    what it yielded to `summarise`.

    Args:
        decoders: at least one decoder with a drafter, by name; several share one target, see
            `load.add_drafter`.
        tasks: the tasks, see `read_tasks`.
        settings: None for the defaults.
        progress: called with the number of turns done and of all turns.

    Raises:
        InputError: see `answers`.
    """
    settings = settings or EvaluationSettings()
    found = list(answers(decoders, tasks, settings, progress))
    return summarise(decoders, tasks, settings, found)
