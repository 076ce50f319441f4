"""The routed experts of DeepSeek V4 spread over several machines, through MLX's own groups.

One machine, of rank 0, leads: it holds everything but the other machines' experts, runs the whole
engine, and takes every decision. The others hold experts alone and compute what they are asked for.
So nothing has to be decided alike on several machines, and caches, taps, rollbacks, schedulers and
the drafter are those of one machine.

For each layer of a forward the leader sends its rows with the experts that each row chose, every
machine computes the rows that chose one of its experts, and their sums are added: three
collectives, of 20 bytes, of `rows * (hidden + 2 * chosen) * 4` and of `rows * hidden * 4`. They are
sums to which the others add zeros, which every backend of MLX has.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ...deepseek_v4.experts import Experts, RoutedExperts
from ...errors import InputError
from .daemon_thread import DaemonThread

PATIENCE = 600
"""Seconds in which a machine must answer the leader: one may still read its weights."""

_T = TypeVar("_T")
_LAST = 5  # seconds that the others have to hear of the end
_MEET, _COMPUTE, _STOP = 1, 2, 3
_TYPES = (mx.float32, mx.bfloat16, mx.float16)
_MATRICES = ("gate_proj", "up_proj", "down_proj")


class Machines:
    """The members of a group, which share a target's experts.

    Args:
        group: of `mlx.core.distributed.init`.

    Raises:
        InputError: the group has one member.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self.rank: int = group.rank()
        self.size: int = group.size()
        self._over = False
        # Ctrl-C is raised in the main thread, which must not wait in C: what was begun here is
        # ended, and all stay in step.
        self._thread = DaemonThread("machines")
        if self.size == 1:
            hint = "Start it with mlx.launch -n 2, or with a hostfile."
            raise InputError("distributed", "one process", "a group of several", hint)

    @property
    def leads(self) -> bool:
        """Whether this is the machine that decodes."""
        return self.rank == 0

    def spread(self, network: nn.Module, about: str, beside: int = 0) -> None:
        """Keep this machine's experts of a network, of which no weight is read yet.

        All machines call it. On the leader the network computes as before, with the others' help.

        Args:
            network: the target.
            about: what must be the same on all machines, as text.
            beside: bytes that the leader holds beside the target.

        Raises:
            InputError: the target has no such experts, the machines' targets differ, or a machine
                was lost.
        """
        layers = [getattr(layer, "ffn", None) for layer in getattr(network, "layers", [])]
        if not layers or not all(isinstance(part, Experts) for part in layers):
            raise InputError("distributed", type(network).__module__, "a DeepSeek V4 target")
        count: int = network.args.n_routed_experts
        if count < self.size:
            raise InputError(
                "distributed", f"{self.size} machines", f"{count} at most, the experts"
            )
        start, stop = self._answered(lambda: self._meet(layers, network, about, beside))
        for i, ffn in enumerate(layers):
            assert isinstance(ffn, Experts)
            _cut(ffn.experts, start, stop)
            if self.leads:
                ffn.experts = SpreadExperts(ffn.experts, i, self)

    def serve(self, experts: Sequence[RoutedExperts]) -> None:
        """Compute what the leader asks for, until it stops.

        Args:
            experts: those of each layer after `spread`, whose weights are read here.

        Raises:
            InputError: a machine was lost.
        """
        for each in experts:
            for _, array in tree_flatten(each.parameters()):
                mx.eval(array)
        self._answered(lambda: self._serve(experts))

    def stop(self) -> None:
        """End the others; only the leader, and once. One that does not listen is left."""
        if self.leads and not self._over:
            wait([self._thread.submit(lambda: self._header(_STOP))], _LAST)
        self._over = True

    def compute(
        self, local: RoutedExperts, layer: int, x: mx.array, experts: mx.array, weights: mx.array
    ) -> mx.array:
        """What `RoutedExperts` computes, of the experts of all machines; only the leader."""
        chosen = experts.shape[-1]
        parts = [x.reshape(-1, x.shape[-1]), experts.reshape(-1, chosen)]
        parts.append(weights.reshape(-1, chosen))
        asked = np.array(mx.concatenate([part.astype(mx.float32) for part in parts], axis=1))

        def together() -> np.ndarray:
            self._header(_COMPUTE, layer, *asked.shape, _TYPES.index(x.dtype))
            self._sum(asked)
            return self._sum(_part(local, asked, chosen, self._first, x.dtype))

        return mx.array(self._answered(together)).reshape(x.shape)

    def _answered(self, work: Callable[[], _T]) -> _T:
        """What collectives make, which the leader waits for with `PATIENCE`, the others for ever.

        Raises:
            InputError: see `_sum`; or a machine does not answer.
        """
        future = self._thread.submit(work)
        if not wait([future], PATIENCE if self.leads else None).done:
            self._over = True
            hint = "One of them hangs, or its network does; start all of them again."
            found = f"no answer in {PATIENCE} seconds"
            raise InputError("distributed", found, f"{self.size} machines that answer", hint)
        return future.result()

    def _serve(self, experts: Sequence[RoutedExperts]) -> None:
        while (header := self._header())[0] != _STOP:
            _, layer, rows, columns, dtype = header
            chosen = (columns - self._hidden) // 2
            asked = self._sum(np.zeros((rows, columns), np.float32))
            self._sum(_part(experts[layer], asked, chosen, self._first, _TYPES[dtype]))

    def _header(self, *own: int) -> list[int]:
        """What the leader asks for; only the leader gives it."""
        numbers: list[int] = self._sum(np.array([*own, *[0] * (5 - len(own))], np.int32)).tolist()
        return numbers

    def _meet(
        self, layers: list[Any], network: nn.Module, about: str, beside: int
    ) -> tuple[int, int]:
        """This machine's experts, first and behind the last, after all agreed on the target."""
        held = sum(array.nbytes for _, array in tree_flatten(network.parameters()))
        routed = sum(
            array.nbytes for part in layers for _, array in tree_flatten(part.experts.parameters())
        )
        count: int = layers[0].experts.gate_proj.weight.shape[0]
        self._hidden: int = network.args.hidden_size
        if self._header(*[_MEET] * self.leads)[0] != _MEET:
            raise InputError("distributed", "a leader that ended", "one that loads a target")
        told = np.zeros((self.size, 2), np.int32)
        told[self.rank, 0] = zlib.crc32(f"{about} {held}".encode()) >> 1
        if self.leads:
            told[0, 1] = leaders_share(count, routed, held - routed + beside, self.size)
        told = self._sum(told)
        if different := [rank for rank in range(self.size) if told[rank, 0] != told[0, 0]]:
            self._over = True
            found = f"another target, precision or version than rank 0's on rank {different[0]}"
            raise InputError("distributed", found, "the same on all machines")
        bounds = [0, *np.linspace(told[0, 1], count, self.size).round().astype(int).tolist()]
        self._first = bounds[self.rank]
        return bounds[self.rank], bounds[self.rank + 1]

    def _sum(self, array: np.ndarray | mx.array) -> np.ndarray:
        """The sum of all machines' arrays."""
        try:
            total = mx.distributed.all_sum(mx.array(array), group=self._group)
            mx.eval(total)
        except RuntimeError as error:
            self._over = True
            found = f"a machine that was lost ({error})"
            hint = f"This was rank {self.rank}; start all of them again."
            raise InputError("distributed", found, f"{self.size} that answer", hint) from error
        return np.array(total)


class SpreadExperts(nn.Module):
    """In the place of a layer's routed experts, on the leader.

    Args:
        local: this machine's.
        layer: its index.
        machines: all of them.
    """

    def __init__(self, local: nn.Module, layer: int, machines: Machines) -> None:
        super().__init__()
        self.local = local
        self._layer = layer
        self._machines = machines

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """See `RoutedExperts`; computed at once, not when the result is needed."""
        return self._machines.compute(self.local, self._layer, x, experts, weights)


def is_spread(network: nn.Module) -> bool:
    """Whether a network computes with the help of other machines."""
    return any(isinstance(module, SpreadExperts) for _, module in network.named_modules())


def leaders_share(experts: int, routed: int, other: int, size: int) -> int:
    """How many of a layer's experts the leader keeps, so that all machines hold as much.

    Each of the others keeps one at least.

    Args:
        experts: of a layer.
        routed: bytes of all routed experts.
        other: bytes of what the leader alone holds.
        size: number of machines.
    """
    even = (routed + other) / size
    share = round(experts * (even - other) / routed)
    return min(max(share, 1), experts - size + 1)


def _cut(experts: nn.Module, start: int, stop: int) -> None:
    """Keep some of the experts; without a copy of their own, all would stay in memory."""
    for name in _MATRICES:
        module = experts[name]
        for part, array in tree_flatten(module.parameters()):
            module[part] = mx.contiguous(array[start:stop])


def _part(
    local: RoutedExperts, asked: np.ndarray, chosen: int, first: int, dtype: mx.Dtype
) -> np.ndarray:
    """The sums over this machine's experts, float32 `[rows, hidden]`.

    Args:
        local: its experts.
        asked: rows, experts and weights as `Machines.compute` sends them.
        chosen: experts that a row chose.
        first: number of its first expert.
        dtype: type to compute in.
    """
    x, experts, weights = np.split(asked, [-2 * chosen, -chosen], axis=1)
    experts = experts.astype(np.int32) - first
    row, slot = np.nonzero((experts >= 0) & (experts < local.gate_proj.weight.shape[0]))
    summed = np.zeros(x.shape, np.float32)
    if row.size:
        each = mx.array(experts[row, slot][:, None]), mx.array(weights[row, slot][:, None])
        made = local(mx.array(x[row]).astype(dtype), *each)
        # Pairs of one row stand together.
        rows, starts = np.unique(row, return_index=True)
        summed[rows] = np.add.reduceat(np.array(made.astype(mx.float32)), starts, axis=0)
    return summed
