"""What a round's decision takes: `python tests/benchmark/deciding_time.py`; needs no model.

A made-up request walks through a text of its own, whose later half repeats the first one with an
edit in every 40th token. Each round asks `auto` as the engine does: a copy or a draft, how much of
it, and what is learned of the round. It prints medians over rounds, by what they verified, with
references of 100,000 tokens and without any.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Sequence
from statistics import median, quantiles
from time import perf_counter

from dspark_mlx.calibration.sts import identity
from dspark_mlx.lookup.lookup import Lookup
from dspark_mlx.schedulers import schedule
from dspark_mlx.schedulers.auto import AutoPolicy, AutoScheduler
from dspark_mlx.schedulers.copies import WIDEST
from dspark_mlx.schedulers.memory import PairMemory
from dspark_mlx.schedulers.proposer import DRAFTER, LOOKUP
from dspark_mlx.schedulers.speed_profile import SpeedProfile
from dspark_mlx.types import Round

GAMMA = 7
VOCABULARY = 50_000
SURVIVES = 0.75
"""The chance that a draft survives, which its confidence knows."""


def profile() -> SpeedProfile:
    """A device on which a row costs a tenth of a plain step."""
    verify = tuple(10.0 + width for width in range(1, GAMMA + 2))
    spread = (0.05,) * len(verify)
    return SpeedProfile(
        "made up", "", "none", (64,), (verify,), (2.0,), (11.0,), {}, (spread,), quick=True
    )


class Request:
    """One made-up request, round by round.

    Args:
        policy: `auto`'s.
        lookup: has read its references and the prompt; None to copy nothing.
        answer: what the target says.
        start: tokens before the answer.
    """

    def __init__(
        self, policy: AutoPolicy, lookup: Lookup | None, answer: Sequence[int], start: int
    ) -> None:
        self._policy, self._lookup, self._answer = policy, lookup, answer
        self._start, self._at, self._parked = start, 0, 0
        self._random = random.Random(0)

    @property
    def ended(self) -> bool:
        """Whether the answer is whole."""
        return self._at + WIDEST >= len(self._answer)

    def round(self) -> tuple[str, float]:
        """Run a round; returns what it verified and the seconds that its decisions took."""
        context, policy = self._start + self._at, self._policy
        confidence = [self._random.choice((0.55, 0.95)) for _ in range(GAMMA)]
        drafts = [self._random.random() < chance for chance in confidence]
        started = perf_counter()
        copied: Sequence[int] = ()
        if self._lookup:
            length = policy.copy_length(context, self._lookup.survival(), WIDEST - 1)
            copied = self._lookup.tokens[:length]
        scheduled, kind = len(copied), LOOKUP if copied else ""
        if not copied:
            self._parked = self._parked or policy.park(context, GAMMA)
            if not self._parked:
                kind, scheduled = DRAFTER, schedule(policy, confidence, GAMMA, True)
        deciding = perf_counter() - started
        done = self._made(kind, copied, drafts, scheduled, confidence)
        self._parked = max(self._parked - 1, 0) if not kind else 0
        self._at += len(done.tokens)
        started = perf_counter()
        if self._lookup:
            self._lookup.commit(done.tokens)
        policy.learn(done)
        return kind or "plain", deciding + perf_counter() - started

    def _made(
        self,
        kind: str,
        copied: Sequence[int],
        drafts: Sequence[bool],
        scheduled: int,
        confidence: Sequence[float],
    ) -> Round:
        follows = self._answer[self._at :]
        right = [a == b for a, b in zip(copied, follows, strict=False)] if copied else drafts
        accepted = [*right[:scheduled], False].index(False)
        return Round(
            tuple(follows[: accepted + 1]),
            drafted=(len(copied) or GAMMA) if kind else 0,
            proposer=kind,
            scheduled=scheduled,
            accepted=accepted,
            confidence=tuple(confidence) if kind == DRAFTER else (),
            seconds=(12.0 + scheduled) / 1e3 * self._random.uniform(0.95, 1.1),
        )


def measure(reference: int, tokens: int, copies: bool = True) -> dict[str, list[float]]:
    """Microseconds of each round's decisions, by what it verified.

    Args:
        reference: tokens of references.
        tokens: tokens of the answer.
        copies: False for a request that copies nothing.
    """
    rng = random.Random(1)
    new = [rng.randrange(VOCABULARY) for _ in range(tokens // 2)]
    again = [rng.randrange(VOCABULARY) if i % 40 == 39 else t for i, t in enumerate(new)]
    prompt = [rng.randrange(VOCABULARY) for _ in range(400)]
    memory = PairMemory(profile().widened(WIDEST), identity(GAMMA))
    lookup = Lookup([[rng.randrange(VOCABULARY) for _ in range(reference)]]) if copies else None
    if lookup:
        lookup.read(prompt)
    request = Request(AutoScheduler(memory).start(GAMMA), lookup, [*new, *again], len(prompt))
    taken: dict[str, list[float]] = defaultdict(list)
    while not request.ended:
        kind, seconds = request.round()
        taken[kind].append(1e6 * seconds)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--reference", type=int, default=100_000)
    args = parser.parse_args()
    runs = {
        f"{args.reference} tokens of reference": measure(args.reference, args.tokens),
        "no reference": measure(0, args.tokens),
        "no copies": measure(0, args.tokens, copies=False),
    }
    print(f"{'microseconds a round':<30}{'rounds':>8}{'median':>9}{'90 %':>9}{'most':>9}")
    for name, taken in runs.items():
        every = [value for values in taken.values() for value in values]
        for kind, values in [("all", every), *sorted(taken.items())]:
            ninety = quantiles(values, n=10)[-1] if len(values) > 1 else values[0]
            columns = f"{len(values):>8}{median(values):>9.0f}{ninety:>9.0f}{max(values):>9.0f}"
            print(f"{name if kind == 'all' else '  ' + kind:<30}{columns}")


if __name__ == "__main__":
    main()
