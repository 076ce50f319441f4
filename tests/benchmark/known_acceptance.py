"""Schedulers on a GPU with a drafter of known acceptance and of a head that knows or knows nothing.

`python tests/benchmark/known_acceptance.py` measures on the pair of `benchmark.synthetic` of
Qwen3-4B's shape. Whether a draft is right is drawn beforehand for every position: all schedulers
meet the same texts. `full` twice, `auto` as a pair's first request, `auto` after others and plain
decoding take turns; the two of `full` differ by what this machine's times scatter. Beside the times
stands what a replay of the same texts predicts on the measured profile. `--tiny` is the same at a
size for a CPU.

On a CUDA device set MLX_CUDA_USE_CUDNN_SDPA=0: cuDNN plans attention anew for every key length.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from importlib.metadata import version
from time import perf_counter

import mlx.core as mx
import numpy as np

from dspark_mlx.benchmark.synthetic import (
    GAMMA,
    SHAPES,
    KnownDrafter,
    counting_target,
    random_drafter,
)
from dspark_mlx.drafters.base import Drafter
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.load.compiled import compile_forwards
from dspark_mlx.load.kernels import apply_kernels
from dspark_mlx.profiling.measure import quick_profile
from dspark_mlx.replay.simulate import ReplayText, replay, total
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers import Scheduler
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.schedulers.speed_profile import SpeedProfile
from dspark_mlx.types import Draft, Round

# The text's first token; the prompt is those before it, from 3 on.
FIRST = 67
PLAIN_TEXTS = 3
HEADS = {"useless": 0.8, "good": 0.5}
"""Acceptance of each head's drafts."""
SIDES = ("full", "full, again", "auto", "auto, warm")


class TextDrafter(KnownDrafter):
    """A `KnownDrafter` whose drafts are the same for every scheduler, text by text.

    Args:
        inner, acceptance, informed: see `KnownDrafter`.
        positions: tokens of a text.
    """

    def __init__(self, inner: Drafter, acceptance: float, informed: bool, positions: int) -> None:
        super().__init__(inner, acceptance, informed)
        self._positions = positions
        self.choose(0)

    def choose(self, number: int) -> ReplayText:
        """Draft a text's drafts from now on; what a replay has to know of them."""
        rng = np.random.default_rng((7, number))
        block = rng.normal(size=(self._positions, 1))
        slots = rng.normal(size=(self._positions, GAMMA))
        chances = 1 / (1 + np.exp(-self._level - 0.9 * block - 0.6 * slots))
        wrong = rng.random(chances.shape) >= chances
        shown = chances if self._informed else rng.uniform(0.3, 0.7, chances.shape)
        steps = np.arange(1, GAMMA + 1) + 5 * wrong
        self._steps = mx.array(steps.astype(np.int32))
        self._shown = mx.array(shown.astype(np.float32))
        mx.eval(self._steps, self._shown)
        accepted = np.cumprod(~wrong, axis=1).sum(axis=1)
        return ReplayText(
            task="counting",
            start=FIRST,
            accepted=tuple(accepted.tolist()),
            confidence=tuple(map(tuple, shown.tolist())),
        )

    def draft(self, context, anchor, pick) -> Draft:
        draft = self._inner.draft(context, anchor, pick)
        assert draft.confidence is not None
        # The text counts upwards, so that its newest token says at which position it is.
        position = mx.remainder(anchor - FIRST, self._positions)
        # Nothing of the draft may be left out of the graph.
        tokens = (anchor + self._steps[position].reshape(-1)) % self.vocabulary_size
        tokens = (tokens + 0 * draft.tokens).astype(mx.int32)
        confidence = self._shown[position].reshape(-1) + 0 * draft.confidence
        return replace(draft, tokens=tokens, columns=tokens, confidence=confidence)


def decode(engine: Engine, tokens: int) -> tuple[float, list[Round]]:
    """Seconds after the first token, and the rounds."""
    sampler = make_sampler(Sampling(), engine.target.vocab_size)
    made, started = [], 0.0
    for done in rounds(engine, range(3, FIRST), max_tokens=tokens, stop_tokens=(), sampler=sampler):
        started = started or perf_counter()
        made.append(done)
    seconds = perf_counter() - started
    text = [token for done in made for token in done.tokens]
    expected = [(FIRST + i) % engine.target.vocab_size for i in range(tokens)]
    assert text == expected, "the target's text does not count upwards"
    return seconds, made


def measure(bits: int, arguments: argparse.Namespace) -> None:
    """Print what the schedulers reach with each drafter, and the profile; arguments of `main`."""
    shape = SHAPES["tiny" if arguments.tiny else "qwen3-4b"]
    tokens, count, sides = arguments.tokens, arguments.texts, arguments.sides
    target = counting_target(shape, bits)
    if arguments.kernels:
        apply_kernels(target, GAMMA + 1)
    if arguments.compiled:
        compile_forwards(target)
        print({what: found.reason for what, found in target.compiled_races.items()}, flush=True)
    inner = random_drafter(target, shape)
    plain = Engine(target, None, FullScheduler())
    for head in arguments.heads:
        drafter = TextDrafter(inner, HEADS[head], head == "good", tokens)
        full = Engine(target, drafter, FullScheduler())
        profile = quick_profile(full, "known acceptance", "")

        def auto(made: Scheduler, drafter=drafter, profile=profile) -> Engine:
            return Engine(target, drafter, made, profile)

        warm = make_scheduler("auto", profile, drafter.calibrations)
        for engine in (plain, full):
            decode(engine, 32)  # compiles
        decode(auto(warm), tokens)  # the request that the warm ones know of
        seconds: dict[str, list[float]] = {name: [] for name in ("plain", *sides)}
        made: dict[str, list[Round]] = {}
        texts = []
        for number in range(1, count + 1):
            texts.append(drafter.choose(number))
            first = make_scheduler("auto", profile, drafter.calibrations)
            engines = {"full": full, "full, again": full}
            engines |= {"auto": auto(first), "auto, warm": auto(warm)}
            turn = [(name, engines[name]) for name in sides]
            if number <= PLAIN_TEXTS:
                turn.append(("plain", plain))  # which no draft changes
            # Every side has every place among the others.
            shift = number % len(turn)
            for name, engine in turn[shift:] + turn[:shift]:
                spent, made[name] = decode(engine, tokens)
                seconds[name].append(spent)
        print(f"{bits} bits, acceptance {HEADS[head]}, {head} head", flush=True)
        report(tokens, seconds, made)
        print(f"  auto/full by replay on this profile: {predicted(texts, profile, drafter):.3f}")
        costs = profile.at(128)
        verify = " ".join(f"{ms:.2f}" for ms in costs.verify)
        print(f"  draft {costs.draft:.2f} ms, plain {costs.plain:.2f}, verify {verify}", flush=True)
    target.close()


def predicted(texts: list[ReplayText], profile: SpeedProfile, drafter: TextDrafter) -> float:
    """`auto` over `full` on a pair's first requests, by a replay of the texts."""
    full = total(FullScheduler(), texts, profile)
    fresh = [make_scheduler("auto", profile, drafter.calibrations) for _ in texts]
    made = [replay(each, text, profile) for each, text in zip(fresh, texts, strict=True)]
    return sum(made[1:], made[0]).speedup / full.speedup


def report(tokens: int, seconds: dict[str, list[float]], made: dict[str, list[Round]]) -> None:
    """Print rates over all texts together, and `auto` over `full` text by text."""
    rates = {name: (tokens - 1) / statistics.mean(each) for name, each in seconds.items()}
    shown = ", ".join(f"{name} {rate / rates['plain']:.2f}x" for name, rate in rates.items())
    print(f"  plain {rates['plain']:.1f} tokens/s; {shown}")
    for name in [side for side in seconds if side not in ("plain", "full")]:
        ratios = [full / own for own, full in zip(seconds[name], seconds["full"], strict=True)]
        error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
        blocks = [done for done in made[name] if done.drafted]
        slots = sum(done.scheduled for done in blocks) / max(len(blocks), 1)
        print(
            f"  {name}/full: {rates[name] / rates['full']:.3f} ± {error:.3f}, median "
            f"{statistics.median(ratios):.3f} of {' '.join(f'{ratio:.2f}' for ratio in ratios)}; "
            f"the last text drafted in {len(blocks)} of {len(made[name]) - 1} rounds, "
            f"{slots:.1f} slots each",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a size for a CPU")
    parser.add_argument("--bits", type=int, nargs="*", default=[16, 8, 4])
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--heads", nargs="+", default=tuple(HEADS), choices=tuple(HEADS))
    add = parser.add_argument
    add("--kernels", action="store_true", help="race the package's kernels first")
    add("--compiled", action=argparse.BooleanOptionalAction, default=True, help="race them")
    arguments = parser.parse_args()
    print(mx.default_device(), version("mlx"), flush=True)
    for bits in arguments.bits:
        measure(bits, arguments)


if __name__ == "__main__":
    main()
