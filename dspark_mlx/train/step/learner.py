"""The compiled training step: features, loss, gradients, AdamW; and its state for checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten

from ...checkpoint.quantization import Quantization
from ...errors import InputError
from ...targets.tap import Target
from .features import target_features
from .forward import FROZEN, Features, TrainingBatch
from .metrics import BlockMetrics
from .network import Network
from .qat import fake_quantized


@dataclass(frozen=True)
class Recipe:
    """The settings of the optimiser (DeepSpec's values, except for the batch).

    Attributes:
        steps: number of all steps.
        learning_rate: the highest learning rate. It rises to this value during the warm-up, then
            falls to 0 at the last step along a cosine.
        warmup: length of the warm-up, as a share of the steps.
        weight_decay: weight decay of AdamW.
        clip: largest norm of the gradients; larger ones are scaled down.
        accumulate: number of batches whose gradients make one step.
    """

    steps: int
    learning_rate: float = 6e-4
    warmup: float = 0.04
    weight_decay: float = 0.0
    clip: float = 1.0
    accumulate: int = 1

    def check(self) -> None:
        """Refuse settings outside their range.

        Raises:
            InputError: a number is outside its range.
        """
        for name in ("steps", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "1 or more")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(name, getattr(self, name), "above 0")
        if not 0 <= self.warmup < 1 or not self.weight_decay >= 0:
            found = f"warmup {self.warmup}, weight_decay {self.weight_decay}"
            raise InputError("recipe", found, "a share below 1, and 0 or more")

    def rate(self, step: int) -> float:
        """The learning rate of a step; steps are counted from 0."""
        return float(np.array(self.schedule(mx.array(step))))

    def schedule(self, step: mx.array) -> mx.array:
        """The learning rate of a step as an MLX scalar, for the optimiser."""
        warm = max(round(self.steps * self.warmup), 1)
        rising = (step + 1) / warm
        done = mx.clip((step - warm) / max(self.steps - warm, 1), 0, 1)
        falling = 0.5 * (1 + mx.cos(np.pi * done))
        return self.learning_rate * mx.where(step < warm, rising, falling)


class TrainStep:
    """Takes training steps; it holds the drafter's weights and their optimiser.

    Args:
        network: computes the loss.
        target: the target that the drafter learns to predict.
        tensors: all tensors of the drafter, by canonical name.
        recipe: see `Recipe`.
        dtype: type to compute in; weights and optimiser are float32.
        compiled: whether to compile the step (`mx.compile`).
        quantization: the quantisation that the drafter is trained for; None for none.

    Attributes:
        parameters: the trained weights, float32, by canonical name.
    """

    def __init__(
        self,
        network: Network,
        target: Target,
        tensors: dict[str, mx.array],
        recipe: Recipe,
        dtype: mx.Dtype,
        compiled: bool,
        quantization: Quantization | None = None,
    ) -> None:
        self._network = network
        self._target = target
        self._recipe = recipe
        self._dtype = dtype
        self._quantization = quantization
        self.parameters = {
            name: value.astype(mx.float32) for name, value in tensors.items() if name not in FROZEN
        }
        self._optimizer = optim.AdamW(
            learning_rate=recipe.schedule, weight_decay=recipe.weight_decay
        )
        self._optimizer.init(self.parameters)
        mx.eval(self.parameters, self._optimizer.state)
        self._gradients, self._update = self._take_gradients, self._apply
        self._evaluate = self._loss
        if compiled:
            state = [self.parameters, self._optimizer.state]
            self._gradients = mx.compile(self._take_gradients, inputs=state)
            self._update = mx.compile(self._apply, inputs=state, outputs=state)
            self._evaluate = mx.compile(self._loss, inputs=state)

    def step(self, batches: Iterable[TrainingBatch]) -> tuple[mx.array, mx.array]:
        """Take one step with the mean gradient of the batches; the results are not waited for.

        Returns:
            The mean loss, a scalar; and the sums of `BlockMetrics.rows`, float32 `[6, gamma]`.
        """
        total: dict[str, mx.array] | None = None
        losses, metrics = [], []
        for batch in batches:
            loss, rows, gradients = self._gradients(*_arrays(batch))
            losses.append(loss)
            metrics.append(rows)
            total = gradients if total is None else _sum(total, gradients)
            mx.async_eval(loss, rows, total)
        assert total is not None
        count = len(losses)
        self._update({name: value / count for name, value in total.items()})
        loss, rows = sum(losses[1:], losses[0]) / count, sum(metrics[1:], metrics[0])
        mx.async_eval(loss, rows, self.parameters, self._optimizer.state)
        return loss, rows

    def evaluate(self, batches: Iterable[TrainingBatch]) -> BlockMetrics:
        """The metrics of the current weights on batches of held-out texts."""
        total = None
        for batch in batches:
            loss, rows = self._evaluate(*_arrays(batch))
            one = BlockMetrics(1, float(np.array(loss)), np.array(rows))
            total = one if total is None else total + one
        assert total is not None
        return total

    def state(self) -> dict[str, mx.array]:
        """The optimiser's state, by names joined with dots, for a checkpoint."""
        return dict(tree_flatten(self._optimizer.state))

    def restore(self, parameters: dict[str, mx.array], state: dict[str, mx.array]) -> None:
        """Set the parameters and the optimiser's `state` to those of a checkpoint."""
        self.parameters.update(parameters)
        # The state is changed in place, because the compiled functions hold these dictionaries. It
        # is not unflattened, because the names of parameters have dots themselves.
        for key, value in state.items():
            name, _, moment = key.rpartition(".")
            held = self._optimizer.state[name] if name else self._optimizer.state
            held[moment] = value
        mx.eval(self.parameters, self._optimizer.state)

    def _loss(
        self, tokens: mx.array, anchors: mx.array, supervised: mx.array
    ) -> tuple[mx.array, mx.array]:
        batch = TrainingBatch(tokens, anchors, supervised)
        return self._cast_loss(self.parameters, batch, target_features(self._target, tokens))

    def _take_gradients(
        self, tokens: mx.array, anchors: mx.array, supervised: mx.array
    ) -> tuple[mx.array, mx.array, dict[str, mx.array]]:
        batch = TrainingBatch(tokens, anchors, supervised)
        read = target_features(self._target, tokens)
        of = partial(self._cast_loss, batch=batch, read=read)
        (loss, rows), gradients = mx.value_and_grad(of)(self.parameters)
        return loss, rows, gradients

    def _cast_loss(
        self, parameters: dict[str, mx.array], batch: TrainingBatch, read: Features
    ) -> tuple[mx.array, mx.array]:
        stored = fake_quantized(parameters, self._quantization)
        cast = {name: value.astype(self._dtype) for name, value in stored.items()}
        return self._network.loss(cast, batch, read)

    def _apply(self, gradients: dict[str, mx.array]) -> None:
        clipped, _ = optim.clip_grad_norm(gradients, self._recipe.clip)
        self.parameters.update(self._optimizer.apply_gradients(clipped, self.parameters))


def _arrays(batch: TrainingBatch) -> tuple[mx.array, mx.array, mx.array]:
    return batch.tokens, batch.anchors, batch.supervised


def _sum(a: dict[str, mx.array], b: dict[str, mx.array]) -> dict[str, mx.array]:
    return {name: a[name] + b[name] for name in a}
