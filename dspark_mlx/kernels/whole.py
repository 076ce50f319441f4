"""Races whole forwards: with kernels of products, of attention, and with shared launches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

import mlx.nn as nn

from .attention import AttentionKernel, Heads, attention_forms, why_attention_wrong
from .base import Kernel
from .decision import Chosen, Decision, apply_attention
from .forwards import Apply, Forward, Forwards
from .linears import Applied, Linear, quantized_linears
from .siblings import AppliedSiblings, Siblings, find_siblings
from .store import STOCK, Verdict, VerdictStore, Where
from .trial import Trial, attempt

ALL = "kernels and attention"
"""The winner where forwards with kernels of both win."""
TOGETHER = "together"
"""The winner where siblings are computed together."""


class WholeForwards:
    """Decides by whole forwards of one network; what was found before is used.

    Args:
        network, forward, where, store, trial, clock, attentions: see `guard.Guard`.
    """

    def __init__(
        self,
        network: nn.Module,
        forward: Forward,
        where: Where,
        store: VerdictStore,
        trial: Callable[[Sequence[Trial]], Mapping[Trial, str]],
        clock: Callable[[], float],
        attentions: Collection[AttentionKernel],
    ) -> None:
        self._network, self._forward, self._attentions = network, forward, attentions
        self._where, self._store, self._trial = where, store, trial
        self._forwards = Forwards(network, forward, clock)
        self._linears = quantized_linears(network)
        self._forms: dict[int, set[Heads]] = {}

    def of_products(self, rows: int, kernels: Mapping[Linear, Mapping[int, Kernel]]) -> Verdict:
        """What was found for a whole forward, with a kernel of attention first.

        Each part alone may gain nothing: what the GPU saves by one of them, the host or the other
        part still costs.
        """
        counts = {linear: len(modules) for linear, modules in self._linears.items()}
        taking_part = {linear.product(rows): by[rows] for linear, by in kernels.items()}
        attention = self._attention_for(rows)
        key = self._where.whole_key(rows, counts, taking_part, attention)
        known = self._store.get(key)
        if known is None:
            apply: Apply = partial(Applied, self._network, kernels)
            if attention and not self._attention_reason(
                attention, self._able_forms(attention, rows)
            ):
                both: list[Apply] = [apply, partial(apply_attention, self._network, attention)]
                known = self._forwards.race(rows, [], ALL, both)
            if known is None or known.winner == STOCK:
                known = self._forwards.race(rows, [], "kernels", [apply])
            self._store.put(key, known)
        return known

    def with_attention(self, decision: Decision, kernel: AttentionKernel, rows: int) -> Decision:
        """The decision with what was found for a kernel of attention, beside the chosen ones."""
        able = self._able_forms(kernel, rows)
        if not able:
            return decision
        whole = decision.forwards.get(rows)
        if whole and whole.winner == ALL and kernel is self._attention_for(rows):
            found = {**decision.attentions, kernel.name: replace(whole, winner=kernel.name)}
            return replace(decision, attention=kernel, attentions=found)
        beside = {
            str(linear): by[rows].name for linear, by in decision.chosen.items() if rows in by
        }
        key = self._where.attention_key(able, kernel, beside)
        verdict = self._store.get(key)
        if verdict is None:
            verdict = self._attention_race(decision.chosen, kernel, able, rows)
            self._store.put(key, verdict)
        won = verdict.winner == kernel.name and decision.attention is None
        return replace(
            decision,
            attention=kernel if won else decision.attention,
            attentions={**decision.attentions, kernel.name: verdict},
        )

    def _attention_race(
        self, chosen: Chosen, kernel: AttentionKernel, forms: Sequence[Heads], rows: int
    ) -> Verdict:
        reason = self._attention_reason(kernel, forms)
        if reason is not None:
            return Verdict(STOCK, reason, {}, {kernel.name: reason})
        beside = [partial(Applied, self._network, chosen)]
        apply = partial(apply_attention, self._network, kernel)
        return self._forwards.race(rows, beside, kernel.name, [apply])

    def _able_forms(self, kernel: AttentionKernel, rows: int) -> list[Heads]:
        """The forms of the network's attention of so many rows that a kernel can compute."""
        if rows not in self._forms:
            self._forms[rows] = attention_forms(self._network, lambda: self._forward(rows))
        return [heads for heads in self._forms[rows] if kernel.why_not(heads) is None]

    def _attention_for(self, rows: int) -> AttentionKernel | None:
        """The first kernel that can compute attention of so many rows."""
        return next((kernel for kernel in self._attentions if self._able_forms(kernel, rows)), None)

    def _attention_reason(self, kernel: AttentionKernel, forms: Sequence[Heads]) -> str | None:
        """Why a kernel of attention is refused; None where it is right."""
        failed = self._trial([(kernel.name, heads) for heads in forms])
        if failed:
            return next(iter(failed.values()))
        reasons = (attempt(partial(why_attention_wrong, kernel, heads)) for heads in forms)
        return next((reason for reason in reasons if reason), None)

    def with_siblings(self, decision: Decision, rows: int) -> Decision:
        """The decision with what was found for computing siblings together, beside all else."""
        if not decision.chosen:
            return decision
        run = partial(self._forward, rows)
        siblings = find_siblings(self._network, rows, run, decision.chosen)
        if not siblings:
            return decision
        trials = [(each.kernels[rows].name, each.products(rows)) for each in siblings]
        kernels = {each.kernels[rows].name: each.kernels[rows] for each in siblings}
        beside = decision.attention.name if decision.attention else ""
        key = self._where.together_key(trials, list(kernels.values()), beside)
        verdict = self._store.get(key)
        if verdict is None:
            verdict = self._together_race(decision, siblings, list(dict.fromkeys(trials)), rows)
            self._store.put(key, verdict)
        won = verdict.winner != STOCK
        return replace(decision, siblings=siblings if won else (), together=verdict)

    def _together_race(
        self,
        decision: Decision,
        siblings: Sequence[Siblings],
        trials: Sequence[Trial],
        rows: int,
    ) -> Verdict:
        failed = self._trial(trials)
        if failed:
            return Verdict(STOCK, next(iter(failed.values())), {}, {})
        beside: list[Apply] = [partial(Applied, self._network, decision.chosen)]
        if decision.attention:
            beside.append(partial(apply_attention, self._network, decision.attention))
        return self._forwards.race(rows, beside, TOGETHER, [partial(AppliedSiblings, siblings)])
