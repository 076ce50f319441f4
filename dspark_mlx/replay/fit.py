"""Calibrations of a confidence head: rounds recorded and fitted at every sampling temperature."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from ..calibration.by_temperature import Calibrations
from ..calibration.sts import fit
from ..engine.state import Engine
from ..progress import ProgressCallback
from ..sampling.settings import Sampling
from .record import record
from .recorded import RecordedRound, arrays, by_temperature

TEMPERATURES = (0.0, 0.7, 1.0)
"""Sampling temperatures that a confidence head is calibrated at where none is asked for."""
MIN_ROUNDS = 200
"""Rounds of a sampling temperature, below which a fit would be of noise."""


def record_temperatures(
    engine: Engine,
    prompts: Sequence[tuple[str, Sequence[int]]],
    max_tokens: int,
    stop_tokens: Collection[int],
    temperatures: Sequence[float] = TEMPERATURES,
    progress: ProgressCallback | None = None,
) -> list[RecordedRound]:
    """Record rounds of all prompts at every sampling temperature.

    Args:
        engine, prompts, max_tokens, stop_tokens: see `record`.
        temperatures: sampling temperatures; 0 is greedy.
        progress: called after each prompt, with prompts done and in all, over all temperatures.

    Raises:
        InputError: see `record`.
    """
    rounds: list[RecordedRound] = []
    for number, temperature in enumerate(temperatures):

        def report(done: int, total: int, before: int = number * len(prompts)) -> None:
            if progress:
                progress(before + done, len(temperatures) * total)

        sampling = Sampling(temperature=temperature)
        rounds += record(engine, prompts, max_tokens, stop_tokens, report, sampling)
    return rounds


def fit_temperatures(rounds: Iterable[RecordedRound]) -> Calibrations:
    """Fit a calibration for every sampling temperature that rounds were recorded at."""
    groups = by_temperature(rounds).items()
    return Calibrations({temperature: fit(*arrays(group)) for temperature, group in groups})


def fewest_rounds(rounds: Iterable[RecordedRound], temperatures: Sequence[float] = ()) -> int:
    """How many rounds the sampling temperature with the fewest has, 0 where there are none.

    Args:
        rounds: recorded rounds.
        temperatures: those that count although they may have no round.
    """
    counts = dict.fromkeys(temperatures, 0)
    counts |= {temperature: len(group) for temperature, group in by_temperature(rounds).items()}
    return min(counts.values(), default=0)
