"""What the guard found, as a table for a terminal and as data for a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .decision import Decision
from .store import STOCK, Verdict

_OP = "quantized matmul"


def race_table(decision: Decision) -> str:
    """The races as text: one line a product, its winner, times and why, then whole forwards."""
    lines = ["kernels of few rows, raced against MLX's products on this device; milliseconds"]
    lines.append(f"{'matrix':>16} bits  rows  {'MLX':>8} {'best':>8}  winner")
    for race in sorted(decision.races, key=lambda r: (r.product.outputs, r.product.rows)):
        product, verdict = race.product, race.verdict
        matrix = f"{product.outputs}x{product.inputs}"
        own, best = _times(verdict)
        lines.append(
            f"{matrix:>16} {product.bits:>4} {product.rows:>5}  {own:>8} {best:>8}  "
            f"{verdict.winner}: {verdict.reason}"
        )
        lines += [f"{'':>20}refused {name}: {why}" for name, why in verdict.refused.items()]
    for rows, verdict in sorted(decision.forwards.items()):
        lines.append(f"whole forward of {rows} rows: {verdict.winner}: {verdict.reason}")
    for name, verdict in decision.attentions.items():
        lines.append(f"attention by {name}: {verdict.winner}: {verdict.reason}")
    if (found := decision.together) is not None:
        lines.append(f"matrices of the same rows: {found.winner}: {found.reason}")
    return "\n".join(lines)


def forwards_table(found: Mapping[str, Verdict]) -> str:
    """The races of compiled forwards as text, a line each."""
    lines = ["compiled verify forwards, raced against those that Python builds on this device"]
    lines += [f"{what}: {verdict.winner}: {verdict.reason}" for what, verdict in found.items()]
    return "\n".join(lines)


def forwards_report(found: Mapping[str, Verdict]) -> dict[str, Any]:
    """The races of compiled forwards as JSON's values."""
    return {what: _values(verdict) for what, verdict in found.items()}


def _times(verdict: Verdict) -> tuple[str, str]:
    own = verdict.times.get(STOCK)
    others = [ms for name, ms in verdict.times.items() if name != STOCK]
    return ("-" if own is None else f"{own:.3f}"), (f"{min(others):.3f}" if others else "-")


def race_report(decision: Decision) -> dict[str, Any]:
    """The races as JSON's values; nothing in them tells who ran them."""
    races = [
        {
            "op": _OP,
            "shape": [race.product.outputs, race.product.inputs],
            "bits": race.product.bits,
            "group_size": race.product.group_size,
            "dtype": str(race.product.dtype),
            "mode": race.product.mode,
            "rows": race.product.rows,
            **_values(race.verdict),
        }
        for race in decision.races
    ]
    forwards = {str(rows): _values(verdict) for rows, verdict in decision.forwards.items()}
    attentions = {name: _values(verdict) for name, verdict in decision.attentions.items()}
    together = decision.together and _values(decision.together)
    return {
        "products": races,
        "forwards": forwards,
        "attention": attentions,
        "together": together,
    }


def _values(verdict: Verdict) -> dict[str, Any]:
    return {
        "winner": verdict.winner,
        "reason": verdict.reason,
        "milliseconds": verdict.times,
        "refused": verdict.refused,
    }
