"""A draft with the numbers that nothing but a test reads: corrected logits and hidden rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx

from dspark_mlx.sampling import Pick, greedy
from dspark_mlx.types import Draft


@dataclass(frozen=True)
class ObservedDraft:
    """A block, its corrected logits `[gamma, size]`, and the rows they were read from.

    `hidden` is None where the request's draft vocabulary reads the rows out.
    """

    draft: Draft
    logits: mx.array
    hidden: mx.array | None

    def __getattr__(self, name: str):
        return getattr(self.draft, name)


def observed(drafter, context, anchor: mx.array, pick: Pick = greedy) -> ObservedDraft:
    """Draft once, and look on: the drafter is as before afterwards."""
    logits, hidden = [], []

    def looking(row, ids, tokens):
        logits.append(row)
        return pick(row, ids, tokens)

    output = drafter._output

    def reading(rows):
        hidden.append(rows)
        return output.full.logits(rows)

    drafter._output = replace(output, full=replace(output.full, logits=reading))
    try:
        draft = drafter.draft(context, anchor, looking)
    finally:
        drafter._output = output
    return ObservedDraft(draft, mx.concatenate(logits), mx.concatenate(hidden) if hidden else None)
