"""Decides which kernels stand in for MLX's products in one model on one device.

A kernel has to compile and run in a process of its own, have the right numbers on the model's own
weights, be quicker by a margin than MLX's product in chains of dependent ones, and take part in a
whole forward that agrees with MLX's and is quicker too. Whatever fails leaves MLX's product in its
place, with one reason. What was found is kept, see `store`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..progress import ProgressCallback
from .attention import AttentionKernel
from .base import Backend, Kernel, Product
from .decision import Chosen, Decision, Race
from .forwards import Forward
from .linears import Applied, Call, Linear, quantized_linears, stock
from .race import timed_products, why_wrong
from .store import STOCK, Verdict, VerdictStore, Where
from .trial import Trial, attempt, try_kernels
from .whole import WholeForwards

ROWS = (2, 4, 8, 16)
"""Numbers of rows that are raced; those between them follow the next larger one."""


def backend_here() -> Backend | None:
    """The backend of MLX's default device that kernels can be compiled for; None without one."""
    if mx.default_device().type != mx.DeviceType.gpu:
        return None
    return "metal" if mx.metal.is_available() else "cuda" if mx.cuda.is_available() else None


def raced_rows(most: int) -> list[int]:
    """The numbers of rows to race for forwards of 2 to `most` rows."""
    return sorted({rows for rows in ROWS if rows < most} | {min(most, ROWS[-1])})


class Guard:
    """Races kernels for one network.

    Args:
        network: the network; nothing of it has changed when a method has returned.
        forward: see `forwards.Forward`.
        kernels: the candidates.
        where: the device, its system and MLX's version.
        store: what was found before.
        trial: finds which trials fail, see `trial.try_kernels`.
        clock: gives seconds, as `time.perf_counter`.
        progress: called with the number of products raced and of all to race.
        attentions: the candidates for attention.
    """

    def __init__(
        self,
        network: nn.Module,
        forward: Forward,
        kernels: Collection[Kernel],
        where: Where,
        store: VerdictStore,
        trial: Callable[[Sequence[Trial]], Mapping[Trial, str]] = try_kernels,
        clock: Callable[[], float] = perf_counter,
        progress: ProgressCallback | None = None,
        attentions: Collection[AttentionKernel] = (),
    ) -> None:
        self._network, self._forward, self._kernels = network, forward, kernels
        self._where, self._store, self._trial, self._clock = where, store, trial, clock
        self._progress, self._attentions = progress, attentions
        self._forwards = WholeForwards(network, forward, where, store, trial, clock, attentions)
        self._linears = quantized_linears(network)
        self._modules = {
            linear.product(rows): modules
            for linear, modules in self._linears.items()
            for rows in range(2, ROWS[-1] + 1)
        }

    def decide(self, most_rows: int) -> Decision:
        """The kernels for forwards of 2 to `most_rows` rows, found in the store or raced now."""
        rows = raced_rows(most_rows)
        products = [linear.product(count) for linear in self._linears for count in rows]
        verdicts = {p: self._store.get(self._where.key(p, self._able(p))) for p in products}
        races = [Race(p, verdict, True) for p, verdict in verdicts.items() if verdict]
        new = [product for product, verdict in verdicts.items() if verdict is None]
        races += [Race(product, verdict, False) for product, verdict in self._race(new)]
        decision = self._overruled(races, rows)
        for kernel in self._attentions:
            decision = self._forwards.with_attention(decision, kernel, rows[-1])
        return self._forwards.with_siblings(decision, rows[-1])

    def _able(self, product: Product) -> list[Kernel]:
        return [kernel for kernel in self._kernels if kernel.why_not(product) is None]

    def _race(self, products: Sequence[Product]) -> Iterator[tuple[Product, Verdict]]:
        trials = [(k.name, product) for product in products for k in self._able(product)]
        failed = self._trial(trials) if trials else {}
        recorded: dict[int, dict[int, mx.array]] = {}
        for done, product in enumerate(products):
            if self._progress:
                self._progress(done, len(products))
            able = self._able(product)
            refused = {k.name: failed[k.name, product] for k in able if (k.name, product) in failed}
            standing = [kernel for kernel in able if kernel.name not in refused]
            if not able:
                reasons = {kernel.name: kernel.why_not(product) or "" for kernel in self._kernels}
                yield product, Verdict(STOCK, "no kernel for it", {}, reasons)
                continue
            if standing and product.rows not in recorded:
                recorded[product.rows] = self._inputs(product.rows)
            verdict = self._verdict(product, standing, refused, recorded.get(product.rows, {}))
            self._store.put(self._where.key(product, able), verdict)
            yield product, verdict

    def _verdict(
        self,
        product: Product,
        kernels: Sequence[Kernel],
        refused: dict[str, str],
        recorded: Mapping[int, mx.array],
    ) -> Verdict:
        modules = self._modules[product]
        shape = (product.rows, product.inputs)
        xs = [
            recorded.get(id(module.weight), mx.random.normal(shape).astype(product.dtype))
            for module in modules
        ]
        standing = []
        for kernel in kernels:
            reason = attempt(partial(why_wrong, kernel, modules, xs))
            if reason is None:
                standing.append(kernel)
            else:
                refused[kernel.name] = reason
        if not standing:
            return Verdict(STOCK, "no kernel stands", {}, refused)
        times, wins = timed_products(standing, modules, xs[0], self._clock)
        best = min(wins, key=times.__getitem__)
        gain = f"{times[STOCK] / times[best]:.2f}x MLX's speed"
        if wins[best]:
            return Verdict(best, gain, times, refused)
        return Verdict(STOCK, f"{best} reaches {gain}, which is too little", times, refused)

    def _inputs(self, rows: int) -> dict[int, mx.array]:
        """What each matrix is multiplied by in a forward of so many rows, by its array's id."""
        found: dict[int, mx.array] = {}

        def record(x: mx.array, weight: mx.array, *about: Any) -> mx.array:
            found[id(weight)] = x.reshape(rows, x.shape[-1])
            return stock(x, weight, *about)

        with self._with({linear: {rows: record} for linear in self._linears}):
            mx.eval(self._forward(rows))
        mx.eval(list(found.values()))
        return found

    @contextlib.contextmanager
    def _with(self, calls: Mapping[Linear, Mapping[int, Call]]) -> Iterator[None]:
        applied = Applied(self._network, calls)
        try:
            yield
        finally:
            applied.close()

    def _overruled(self, races: Sequence[Race], rows: Sequence[int]) -> Decision:
        """The decision after whole forwards: where one loses, all its products stay MLX's."""
        named = {kernel.name: kernel for kernel in self._kernels}
        won = {r.product: named[r.verdict.winner] for r in races if r.verdict.winner in named}
        forwards: dict[int, Verdict] = {}
        chosen: Chosen = {}
        before = 1
        for count in rows:
            calls = {
                linear: {count: won[linear.product(count)]}
                for linear in self._linears
                if linear.product(count) in won
            }
            if calls:
                forwards[count] = verdict = self._forwards.of_products(count, calls)
                if verdict.winner != STOCK:
                    for linear, by_rows in calls.items():
                        between = range(before + 1, count + 1)
                        chosen.setdefault(linear, {}).update(dict.fromkeys(between, by_rows[count]))
            before = count
        return Decision(chosen, races, forwards)
