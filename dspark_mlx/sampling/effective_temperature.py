"""How hot a request's texts are: the temperature that, without filters, makes texts as predictable.

Drafts survive where a text is predictable, which filters change as much as the temperature does:
of texts at temperature 1, those with top-p 0.9 accept like those at 0.7. The formula was fitted to
SmolLM2-135M-Instruct: to the mean surprise of its next token, 455 positions, top-p 0.5 to 0.98,
top-k 5 to 100 and min-p 0.02 to 0.2 at temperatures 0.7 and 1. It is right within 0.06 for all but
the most cutting ones. It only chooses what a request is believed to be before its first round.
"""

from __future__ import annotations

from .settings import Sampling

_POWER = 4


def heat(sampling: Sampling) -> float:
    """A request's temperature, less what its filters take; 0 where greedy.

    XTC, penalties and other logits processors are left out: what they do depends on the text.
    """
    temperature = sampling.temperature
    if temperature == 0:
        return 0.0
    cut = 10 * (1 - sampling.top_p) / sampling.top_p + 50 * sampling.min_p
    if sampling.top_k:
        cut += 15 / sampling.top_k
    return float((temperature**-_POWER + cut) ** (-1 / _POWER)) if cut else float(temperature)
