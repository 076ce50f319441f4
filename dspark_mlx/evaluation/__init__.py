"""The benchmark evaluation: DeepSpec's numbers of one or more drafters on its tasks.

Usable without a terminal; `python -m dspark_mlx.evaluate` is the command over it.
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
    """Answer all prompts with every drafter and add up.

    To keep what is finished when it is stopped, take `answers` one by one and give them to
    `summarise`.

    Args:
        decoders: by name, at least one; several share one target, see `load.load_beside`.
        tasks: see `read_tasks`.
        settings: None are the defaults.
        progress: called with turns done and turns in all.

    Raises:
        InputError: see `answers`.
    """
    settings = settings or EvaluationSettings()
    found = list(answers(decoders, tasks, settings, progress))
    return summarise(decoders, tasks, settings, found)
