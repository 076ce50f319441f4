"""The training loop: steps, evaluations, checkpoints, and going on after a stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoint.base_config import CanonicalConfig
from ..errors import InputError
from ..targets.tap import Target
from .checkpoints import Checkpoints, TrainingProgress
from .data.corpus import Corpus
from .log import Entry, TrainingLog
from .settings import TrainingSettings
from .step.batches import Batches, split
from .step.features import readout
from .step.forward import FROZEN
from .step.learner import TrainStep
from .step.metrics import BlockMetrics
from .step.network import Network

LOG_EVERY = 10
_JUDGED = 32
"""Batches of an evaluation at most."""


@dataclass(frozen=True)
class InitialDrafter:
    """What a run begins with.

    Attributes:
        config: the drafter's canonical configuration, unquantised.
        tensors: its first weights, by canonical name.
        identity: what else the run is defined by (data, target), as JSON values.
        cap: of the target's logits, see `logit_cap`.
        ranking: the target's tokens by frequency, as the drafter brings them; see `rank_tokens`.
    """

    config: CanonicalConfig
    tensors: dict[str, mx.array]
    identity: dict[str, Any]
    cap: float
    ranking: tuple[int, ...] = ()


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        tensors: weights of the drafter, float32, by canonical name.
        progress: where it ended.
        judged: the weights on the held-out texts; None where the run was stopped before its first
            evaluation after a step.
        ended: "done", "early" or "stopped".
    """

    tensors: dict[str, mx.array]
    progress: TrainingProgress
    judged: BlockMetrics | None
    ended: str


class TrainingRun:
    """A training run in a folder.

    Args:
        target: tapped as the drafter's configuration says.
        corpus: the texts.
        start: see `InitialDrafter`.
        settings: see `TrainingSettings`.
        folder: gets `log.csv` and `checkpoints/`; a run that is there already is gone on with. With
            more steps than it was begun with, a finished one goes on, too: from where it is, its
            learning rate is that of a run of so many steps, so it rises before it falls to 0 again.
        report: called with every line of the log.

    Attributes:
        progress: where it stands. held_out: numbers of the texts that it does not learn from.

    Raises:
        InputError: settings that cannot be meant, nothing to learn from, or a folder that holds
            another run.
    """

    def __init__(
        self,
        target: Target,
        corpus: Corpus,
        start: InitialDrafter,
        settings: TrainingSettings,
        folder: Path,
        report: Callable[[Entry], None] | None = None,
    ) -> None:
        settings.check()
        config, recipe, seed = start.config, settings.recipe, settings.batches.seed
        if len(corpus) <= settings.held_out:
            expected = f"more than the {settings.held_out} held out"
            raise InputError("conversations", f"{len(corpus)} of them", expected)
        learnt, self.held_out = split(len(corpus), settings.held_out, seed)
        self._batches = Batches(corpus, learnt, config.gamma, settings.batches)
        self._judged_on = Batches(corpus, self.held_out, config.gamma, settings.batches)
        self._settings = settings
        self._report = report
        self._frozen = {n: v for n, v in start.tensors.items() if n in FROZEN}
        network = Network(
            config,
            settings.objective,
            target.embed,
            readout(config, self._frozen, target, start.cap),
            settings.rows(target.vocab_size),
            settings.checkpoint_layers,
            self._frozen,
        )
        dtype = getattr(mx, settings.precision)
        self._learner = TrainStep(
            network,
            target,
            start.tensors,
            recipe,
            dtype,
            settings.compiled,
            settings.quantization(config),
        )
        identity = {**start.identity, "settings": settings.to_dict(), "drafter": config.to_dict()}
        self._checkpoints = Checkpoints(folder / "checkpoints", identity)
        self.progress = TrainingProgress()
        self._begun = False
        saved = self._checkpoints.load(self._learner.parameters, self._learner.state())
        if saved is not None:
            self.progress, parameters, state = saved
            self._learner.restore(parameters, state)
            self._begun = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(folder, f"no way to write there ({error})", "a folder") from error
        kept = self.progress.step if self._begun else -1
        self._log_file = TrainingLog(folder / "log.csv", config.gamma, kept)

    def go(self, stop: Callable[[], bool] = lambda: False) -> Result:
        """Train to the end.

        Args:
            stop: asked after every step; True saves a checkpoint and ends the run.

        Returns:
            The weights: of the best evaluation where the run ended early, else the last.

        Raises:
            InputError: a loss that is not a number, or a checkpoint that cannot be written; the
                last good checkpoint is kept.
        """
        settings, steps = self._settings, self._settings.recipe.steps
        began, before = time.perf_counter(), self.progress.seconds
        pending: list[tuple[mx.array, mx.array]] = []
        judged, ended = None, "done"
        if not self._begun:
            # What a published drafter is worth before it is fitted further; not the best to beat,
            # since the peak rate first undoes some of it.
            self._log("held-out", self._evaluate())
            self._begun = True
        early = self._is_early
        while self.progress.step < steps and not early:
            step, accumulate = self.progress.step, settings.recipe.accumulate
            places = range(step * accumulate, (step + 1) * accumulate)
            pending.append(self._learner.step(self._batches[place] for place in places))
            done = step + 1
            seconds = before + time.perf_counter() - began
            self.progress = replace(self.progress, step=done, seconds=seconds)
            stopped, last = stop(), done == steps
            judging = last or done % settings.evaluate_every == 0
            saving = last or stopped or done % settings.save_every == 0
            if judging or saving or done % LOG_EVERY == 0:
                # Read before it is saved: a checkpoint after a broken loss would be no good one.
                self._log("train", self._read(pending))
                pending = []
            if judging:
                judged = self._judge()
            early = self._is_early
            if saving or early:
                self._save()
            if stopped:
                ended = "stopped"
                break
        if early:
            ended = "early"
            self._learner.parameters.update(self._checkpoints.weights(self.progress.best_step))
        if early or (judged is None and ended == "done"):
            judged = self._evaluate()
        return Result({**self._learner.parameters, **self._frozen}, self.progress, judged, ended)

    @property
    def _is_early(self) -> bool:
        """Whether enough evaluations were no better ones."""
        return bool(self._settings.patience) and self.progress.bad >= self._settings.patience

    def _evaluate(self) -> BlockMetrics:
        count = min(self._judged_on.per_epoch, _JUDGED)
        return self._learner.evaluate(self._judged_on[i] for i in range(count))

    def _judge(self) -> BlockMetrics:
        judged = self._evaluate()
        self._log("held-out", judged)
        progress, tau = self.progress, judged.tau_greedy
        if tau > progress.best:
            self.progress = replace(progress, best=tau, best_step=progress.step, bad=0)
            if self._settings.patience:
                self._save()
        else:
            self.progress = replace(progress, bad=progress.bad + 1)
        return judged

    def _read(self, pending: list[tuple[mx.array, mx.array]]) -> BlockMetrics:
        """Wait for steps and add up what was watched."""
        parts = [BlockMetrics(1, float(np.array(loss)), np.array(rows)) for loss, rows in pending]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        if not math.isfinite(total.loss):
            hint = "Its last good checkpoint is kept. Try a lower learning rate."
            found = f"loss {total.mean_loss} at step {self.progress.step}"
            raise InputError("training", found, "a number", hint)
        return total

    def _log(self, kind: str, watched: BlockMetrics) -> None:
        progress, recipe = self.progress, self._settings.recipe
        epoch = progress.step * recipe.accumulate / self._batches.per_epoch
        rate = recipe.rate(progress.step - 1) if progress.step else 0.0
        entry = Entry(kind, progress.step, epoch, rate, watched, progress.seconds)
        self._log_file.add(entry)
        if self._report:
            self._report(entry)

    def _save(self) -> None:
        self._checkpoints.save(self.progress, self._learner.parameters, self._learner.state())
