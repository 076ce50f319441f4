"""Measures rounds of a synthetic pair beside mlx-lm's plain decoding, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from ..engine.rounds import rounds
from ..engine.state import Engine
from ..errors import InputError
from ..sampling.make import make_sampler
from ..sampling.settings import Sampling
from ..schedulers.full import FullScheduler
from ..targets.tap import Target
from .plain import plain_run
from .synthetic import GAMMA, KnownDrafter, Shape, counting_target, random_drafter

SYNTHETIC_HEAD = (
    f"bits  plain ms  round ms ({GAMMA + 1} rows)  tokens/round  speed-up  "
    "kernels, attention, forwards"
)
"""Head of the table of rows."""
SYNTHETIC_LEGEND = (
    "kernels: shapes of matrices that this package's kernels multiply by, of all that were raced; "
    "attention: by this package's own kernel, or MLX's;\nforwards: verify forwards are compiled, "
    "or Python builds each of them"
)
"""What its last columns mean."""

_FIRST, _PROMPT = 3, 64
_WARM = 24


@dataclass(frozen=True)
class SyntheticRow:
    """Medians of one width of weights.

    Attributes:
        bits: bits of a weight; 16 is bfloat16.
        plain_ms: milliseconds of a token of mlx-lm's own loop.
        round_ms: milliseconds of a round of `GAMMA` + 1 rows, drafting included.
        tokens: mean tokens of a round.
        kernels: shapes of matrices that kernels of this package compute, and all shapes.
        attention: whether attention is by a kernel of this package too.
        compiled: whether verify forwards are compiled.
    """

    bits: int
    plain_ms: float
    round_ms: float
    tokens: float
    kernels: tuple[int, int]
    attention: bool
    compiled: bool

    @property
    def speedup(self) -> float:
        """Tokens a second over plain decoding's."""
        return self.plain_ms * self.tokens / self.round_ms

    def line(self) -> str:
        """Its line of the table below `SYNTHETIC_HEAD`."""
        bits = "bf16" if self.bits == 16 else str(self.bits)
        used = f"{self.kernels[0]} of {self.kernels[1]} shapes"
        return (
            f"{bits:>4}{self.plain_ms:10.2f}{self.round_ms:18.2f}{self.tokens:14.2f}"
            f"{self.speedup:9.2f}x  {used}, {'own' if self.attention else 'MLX'}, "
            f"{'compiled' if self.compiled else 'by Python'}"
        )


def measure(
    shape: Shape,
    bits: int,
    acceptance: float,
    tokens: int,
    repeats: int,
    prepare: Callable[[Target], None] = lambda target: None,
) -> SyntheticRow:
    """Medians over runs in which both sides take turns; the greedy text is checked in each.

    Args:
        shape, bits: the target, see `synthetic.counting_target`.
        acceptance: mean chance that a drafted token is right.
        tokens: tokens of a run, the first included.
        repeats: runs of each side.
        prepare: called with the target before anything is timed.

    Raises:
        InputError: a text is not the target's greedy one.
    """
    target = counting_target(shape, bits)
    drafter = KnownDrafter(random_drafter(target, shape), acceptance)
    prepare(target)
    engine = Engine(target, drafter, FullScheduler())
    prompt = range(_FIRST, _FIRST + _PROMPT)
    _decode(engine, prompt, _WARM)
    plain_run(target, prompt, _WARM, ())
    round_ms, plain_ms, per_round = [], [], []
    for _ in range(repeats):
        seconds, count = _decode(engine, prompt, tokens)
        round_ms.append(1000 * seconds / count)
        per_round.append((tokens - 1) / count)
        plain = plain_run(target, prompt, tokens, ())
        _check(plain.tokens, target, prompt, "plain decoding")
        plain_ms.append(1000 * plain.seconds / (tokens - 1))
    decision = target.kernels
    used = len(decision.chosen) if decision else 0
    races = decision.races if decision else ()
    shapes = len({(race.product.outputs, race.product.inputs) for race in races})
    attention = decision is not None and decision.attention is not None
    target.drop_kernels()
    target.close()
    median = statistics.median
    about = statistics.mean(per_round), (used, shapes), attention, target.compiled is not None
    return SyntheticRow(bits, median(plain_ms), median(round_ms), *about)


def _decode(engine: Engine, prompt: Sequence[int], tokens: int) -> tuple[float, int]:
    """Seconds and number of the rounds after the prefill."""
    sampler = make_sampler(Sampling(), engine.target.vocab_size)
    text: list[int] = []
    started, count = 0.0, -1
    for made in rounds(engine, prompt, max_tokens=tokens, stop_tokens=(), sampler=sampler):
        started = started or perf_counter()
        text += made.tokens
        count += 1
    seconds = perf_counter() - started
    _check(text, engine.target, prompt, "speculative decoding")
    return seconds, count


def _check(text: Sequence[int], target: Target, prompt: Sequence[int], where: str) -> None:
    expected = [(prompt[-1] + 1 + i) % target.vocab_size for i in range(len(text))]
    if list(text) != expected:
        at = next(i for i, (a, b) in enumerate(zip(text, expected, strict=True)) if a != b)
        raise InputError(where, f"token {text[at]} at position {at}", f"{expected[at]}")
