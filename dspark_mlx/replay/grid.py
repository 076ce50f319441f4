"""The default scheduler against the best constant, over drafters, heads, machines and lengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..calibration.sts import Calibration, fit, identity
from ..schedulers.make import make_scheduler
from ..schedulers.speed_profile import SpeedProfile
from .simulate import Outcome, ReplayText, best_fixed, replay
from .simulated import ACCEPTANCES, HEADS, simulated_texts

GAMMA = 7
_FITTED_TEXTS = 4
_FITTED_TOKENS = 200


@dataclass(frozen=True)
class Cell:
    """One drafter with one head on one machine.

    Attributes:
        acceptance, head: see `simulated_texts`.
        calibrated: whether the head was calibrated, on other texts of the same drafter.
        profile: name of the machine's profile.
        of_best: the scheduler's rate over the better of plain decoding and the best fixed length,
            which is chosen in hindsight.
        deciding_seconds: what the scheduler took for a round.
    """

    acceptance: float
    head: str
    calibrated: bool
    profile: str
    of_best: float
    deciding_seconds: float


def grid(
    profiles: Mapping[str, SpeedProfile],
    tokens: int,
    texts: int,
    *,
    acceptances: Iterable[float] = ACCEPTANCES,
    heads: Iterable[str] = tuple(HEADS),
    calibrated: Iterable[bool] = (False, True),
    taught: int = 0,
    scheduler: str = "auto",
    seed: int = 1,
) -> list[Cell]:
    """Every cell; its requests know nothing of one another.

    Args:
        profiles: speed profiles by name.
        tokens, texts: length and number of a cell's requests.
        acceptances, heads, calibrated: what the cells are made of.
        taught: earlier requests of the pair, of which each request knows; of the same length.
        scheduler: the name of the scheduler.
        seed: of all random numbers.
    """
    cells = []
    for acceptance in acceptances:
        best: dict[str, float] = {}
        for head in heads:
            raw = simulated_texts(acceptance, head, texts, tokens, GAMMA, seed)
            for name, profile in profiles.items():
                # The drafts are the same under every head.
                best.setdefault(name, max(best_fixed(raw, profile)[1].speedup, 1.0))
            for fitted in calibrated:
                prior, shown = _calibrated(acceptance, head, raw, seed) if fitted else _as_is(raw)
                earlier = simulated_texts(acceptance, head, taught, tokens, GAMMA, seed + 2000)
                for name, profile in profiles.items():
                    total = Outcome()
                    for text in shown:
                        made = make_scheduler(scheduler, profile, prior)
                        for known in earlier:
                            replay(made, _shown(known, prior), profile)
                        total += replay(made, text, profile)
                    deciding = total.deciding_seconds / total.rounds
                    ratio = total.speedup / best[name]
                    cells.append(Cell(acceptance, head, fitted, name, ratio, deciding))
    return cells


def grid_table(cells: Iterable[Cell]) -> str:
    """The cells as a Markdown table, a row for each head and acceptance: mean and least."""
    rows: dict[tuple[str, float], list[float]] = {}
    for cell in cells:
        rows.setdefault((cell.head, cell.acceptance), []).append(cell.of_best)
    acceptances = sorted({acceptance for _, acceptance in rows})
    heads = dict.fromkeys(head for head, _ in rows)
    lines = ["| head | " + " | ".join(f"{each:g}" for each in acceptances) + " |"]
    lines.append("|---|" + "---|" * len(acceptances))
    for head in heads:
        found = [rows[head, each] for each in acceptances]
        shown = " | ".join(f"{np.mean(each):.2f} ({min(each):.2f})" for each in found)
        lines.append(f"| {head} | {shown} |")
    return "\n".join(lines)


def _as_is(raw: list[ReplayText]) -> tuple[Calibration, list[ReplayText]]:
    return identity(GAMMA), raw


def _calibrated(
    acceptance: float, head: str, raw: list[ReplayText], seed: int
) -> tuple[Calibration, list[ReplayText]]:
    """A calibration fitted on other texts, and the texts with calibrated confidences."""
    others = simulated_texts(acceptance, head, _FITTED_TEXTS, _FITTED_TOKENS, GAMMA, seed + 1000)
    accepted = np.array([count for text in others for count in text.accepted])
    prior = fit(np.concatenate([_logits(text) for text in others]), accepted)
    return prior, [_shown(text, prior) for text in raw]


def _shown(text: ReplayText, prior: Calibration) -> ReplayText:
    """The text with calibrated confidences."""
    confidence = prior.probabilities(_logits(text)).tolist()
    return replace(text, confidence=tuple(map(tuple, confidence)))


def _logits(text: ReplayText) -> np.ndarray:
    confidence = np.clip(np.array(text.confidence), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(confidence / (1 - confidence)))


def by_least(cells: Iterable[Cell]) -> list[Cell]:
    """The cells, the worst first."""
    return sorted(cells, key=lambda cell: cell.of_best)
