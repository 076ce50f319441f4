"""Several requests on a GPU with a drafter of known acceptance, against mlx-lm's plain batch.

`PYTHONPATH=.:tests python tests/benchmark/known_batch.py` takes the pair of `benchmark.synthetic`
of Qwen3-4B's shape at 8 bits and acceptance 0.8. A scheduler and `batch_generate` take turns, see
`batch_throughput.py`. `--tiny` is the same at a size for a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

import mlx.core as mx
from benchmark.batch_throughput import HEADER, compare, print_rounds, together

from dspark_mlx.benchmark.synthetic import (
    GAMMA,
    SHAPES,
    KnownDrafter,
    counting_target,
    random_drafter,
)
from dspark_mlx.drafters.base import DrafterContext
from dspark_mlx.drafters.batch import BatchingDrafter, ContextBatch, Wanted
from dspark_mlx.engine.state import Engine
from dspark_mlx.load.compiled import compile_forwards
from dspark_mlx.load.kernels import apply_kernels
from dspark_mlx.profiling.measure import quick_profile
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.schedulers.profile_table import profile_table
from dspark_mlx.types import Draft

CONTEXT = 64
APART = 500


class BatchingKnownDrafter(KnownDrafter):
    """A `KnownDrafter` that drafts for several requests in one forward, as the inner one does."""

    def batch(self, contexts: Sequence[DrafterContext]) -> KnownBatch:
        assert isinstance(self._inner, BatchingDrafter)
        return KnownBatch(self, self._inner.batch(contexts))


class KnownBatch:
    """See `ContextBatch`: the inner drafter's contexts, and drafts that are right as known."""

    def __init__(self, drafter: KnownDrafter, inner: ContextBatch) -> None:
        self._drafter = drafter
        self._inner = inner

    def joined(self, contexts: Sequence[DrafterContext]) -> KnownBatch:
        return KnownBatch(self._drafter, self._inner.joined(contexts))

    def rows(self, indices: Sequence[int]) -> KnownBatch:
        return KnownBatch(self._drafter, self._inner.rows(indices))

    def alone(self, index: int) -> None:
        self._inner.alone(index)

    def extend(self, taps: Sequence[mx.array], tokens: mx.array, kept: Sequence[int]) -> None:
        self._inner.extend(taps, tokens, kept)

    def arrays(self) -> list[mx.array]:
        return self._inner.arrays()

    def draft(self, wanted: Sequence[Wanted]) -> list[Draft | None]:
        drafts = zip(self._inner.draft(wanted), wanted, strict=True)
        return [draft and self._drafter.known(draft, each.anchor) for draft, each in drafts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a size for a CPU")
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--acceptance", type=float, default=0.8)
    parser.add_argument("--scheduler", nargs="+", default=["auto", "lagged"], help="one or more")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=2)
    add = parser.add_argument
    add("--kernels", action="store_true", help="race the package's kernels first")
    add("--compiled", action=argparse.BooleanOptionalAction, default=True, help="race them")
    arguments = parser.parse_args()
    print(mx.default_device(), version("mlx"), flush=True)
    shape = SHAPES["tiny" if arguments.tiny else "qwen3-4b"]
    target = counting_target(shape, arguments.bits)
    if arguments.kernels:
        apply_kernels(target, GAMMA + 1)
    if arguments.compiled:
        compile_forwards(target)
        print({what: found.reason for what, found in target.compiled_races.items()}, flush=True)
    drafter = BatchingKnownDrafter(random_drafter(target, shape), arguments.acceptance)
    engine = Engine(target, drafter, FullScheduler())
    profile = quick_profile(engine, "known acceptance", "")
    print(profile_table(profile), flush=True)
    for name in arguments.scheduler:
        scheduler = make_scheduler(name, profile, drafter.calibrations)
        scheduled = replace(engine, scheduler=scheduler, profile=profile)
        print(f"{name}\n{HEADER}")
        for number in arguments.requests:
            starts = [3 + APART * i % (shape.vocabulary // 2) for i in range(number)]
            prompts = [list(range(start, start + CONTEXT)) for start in starts]
            together(engine, prompts, arguments.max_tokens)  # compiles
            print_rounds(compare(scheduled, prompts, arguments.max_tokens, arguments.repeats))


if __name__ == "__main__":
    main()
