"""Schedulers on a GPU with a drafter of known acceptance and of a head that knows or knows nothing.

`python tests/benchmark/known_acceptance.py` measures on the pair of `benchmark.synthetic` of
Qwen3-4B's shape. `full`, `auto` and plain decoding take turns; medians. `--tiny` is the same at a
size for a CPU.
"""

from __future__ import annotations

import argparse
import statistics
from importlib.metadata import version
from time import perf_counter

import mlx.core as mx

from dspark_mlx.benchmark.synthetic import (
    SHAPES,
    KnownDrafter,
    Shape,
    counting_target,
    random_drafter,
)
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.profiling.measure import quick_profile
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.types import Round


def decode(engine: Engine, tokens: int) -> tuple[float, list[Round]]:
    """Tokens per second after the first one, and the rounds."""
    sampler = make_sampler(Sampling(), engine.target.vocab_size)
    made, started = [], 0.0
    for done in rounds(engine, range(3, 67), max_tokens=tokens, stop_tokens=(), sampler=sampler):
        started = started or perf_counter()
        made.append(done)
    seconds = perf_counter() - started
    text = [token for done in made for token in done.tokens]
    expected = [(67 + i) % engine.target.vocab_size for i in range(tokens)]
    assert text == expected, "the target's text does not count upwards"
    return (tokens - 1) / seconds, made


def measure(shape: Shape, bits: int, tokens: int, repeats: int) -> None:
    target = counting_target(shape, bits)
    inner = random_drafter(target, shape)
    for acceptance, useless in ((0.8, True), (0.5, False), (0.5, True), (0.8, False)):
        drafter = KnownDrafter(inner, acceptance, not useless)
        full = Engine(target, drafter, FullScheduler())
        profile = quick_profile(full, "known acceptance", "")
        rates: dict[str, list[float]] = {"plain": [], "full": [], "auto": [], "auto, warm": []}
        decode(full, 32)  # compiles
        warm = make_scheduler("auto", profile, drafter.calibrations)
        last: list[Round] = []
        for _ in range(repeats):
            # The first request that a pair ever makes, and one after others.
            fresh = make_scheduler("auto", profile, drafter.calibrations)
            engines = {
                "plain": Engine(target, None, FullScheduler()),
                "full": full,
                "auto": Engine(target, drafter, fresh, profile),
                "auto, warm": Engine(target, drafter, warm, profile),
            }
            for name, engine in engines.items():
                rate, made = decode(engine, tokens)
                rates[name].append(rate)
                last = made if name == "auto" else last
        speeds = {name: statistics.median(each) for name, each in rates.items()}
        head = "useless" if useless else "good"
        ratios = ", ".join(f"{n} {s / speeds['plain']:.2f}x" for n, s in speeds.items())
        blocks = [done for done in last if done.drafted]
        scheduled = sum(done.scheduled for done in blocks) / max(len(blocks), 1)
        print(
            f"{bits} bits, acceptance {acceptance}, {head} head: plain {speeds['plain']:.1f} "
            f"tokens/s; {ratios}; auto/full {speeds['auto'] / speeds['full']:.3f}; auto drafted in "
            f"{len(blocks)} of {len(last) - 1} rounds, {scheduled:.1f} slots each",
            flush=True,
        )
    costs = profile.at(128)
    verify = " ".join(f"{ms:.2f}" for ms in costs.verify)
    print(f"  draft {costs.draft:.2f} ms, plain {costs.plain:.2f}, verify {verify}", flush=True)
    target.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a size for a CPU")
    parser.add_argument("--bits", type=int, nargs="*", default=[16, 8, 4])
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(mx.default_device(), version("mlx"), flush=True)
    for bits in arguments.bits:
        shape = SHAPES["tiny" if arguments.tiny else "qwen3-4b"]
        measure(shape, bits, arguments.tokens, arguments.repeats)


if __name__ == "__main__":
    main()
