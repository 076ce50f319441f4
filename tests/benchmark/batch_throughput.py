"""Tokens per second of requests that decode together: `python tests/benchmark/batch_throughput.py`.

Against mlx-lm's own `batch_generate`, which decodes plainly, on the same weights in the same run.
Both take turns; medians of whole runs, prompts included, and of the time after them. All requests
are greedy and as long as each other. The built-in pair, or --model and --drafter. A slow machine
measures one number of requests a call: `--requests 8 --max-tokens 64 --repeats 2`.

With --rounds it also prints what the rounds of each kind took.
"""

from __future__ import annotations

import argparse
import gc
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from time import perf_counter
from types import SimpleNamespace

import mlx.core as mx
from mlx_lm.generate import batch_generate

import dspark_mlx
from dspark_mlx.engine.active import ActiveRequests
from dspark_mlx.engine.state import Engine
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.text.prompt_files import SAMPLE, read_prompts
from dspark_mlx.types import Round


@dataclass(frozen=True)
class Run:
    """One decoding of all requests: seconds in all, seconds after the prompts, and their tokens.

    `steps` are lists of rounds that were run together; empty for mlx-lm's batch.
    """

    seconds: float
    after_prompts: float
    tokens: list[list[int]]
    steps: list[list[Round]]


def plain(engine: Engine, prompts: Sequence[list[int]], count: int) -> Run:
    """mlx-lm's own batch."""
    tokenizer = SimpleNamespace(eos_token_ids=(), decode=lambda ids: "")
    with engine.target.untapped():
        started = perf_counter()
        done = batch_generate(
            engine.target.model,
            tokenizer,
            list(prompts),
            max_tokens=count,
            return_token_ids=True,
            prefill_batch_size=len(prompts),
        )
        seconds = perf_counter() - started
    return Run(seconds, done.stats.generation_time, done.token_ids, [])


def together(engine: Engine, prompts: Sequence[list[int]], count: int) -> Run:
    """This package's batch."""
    active = ActiveRequests(engine)
    started = perf_counter()
    tokens: dict[object, list[int]] = {}
    for ids in prompts:
        sampler = make_sampler(Sampling(), engine.target.vocab_size)
        request = active.add(ids, max_tokens=count, stop_tokens=(), sampler=sampler)
        tokens[request] = []
    read, steps = 0.0, []
    while len(active):
        step = []
        for request, done in active.step():
            assert isinstance(done, Round), done
            tokens[request] += done.tokens
            if not done.prefill:
                step.append(done)
            if request.ended:
                active.remove(request)
        if step:
            steps.append(step)
        if not read and all(tokens.values()):
            read = perf_counter()
    end = perf_counter()
    return Run(end - started, end - read, list(tokens.values()), steps)


HEADER = "requests  plain tok/s  together tok/s  ratio  after prompts  drafted  verified  tau  same"


def compare(engine: Engine, prompts: Sequence[list[int]], tokens: int, repeats: int) -> list[Run]:
    """Print a line for these requests, see `HEADER`; returns the runs of `together`.

    Both sides run once before, with few tokens, and not on the clock; then they take turns.
    """
    slow: list[Run] = []
    fast: list[Run] = []
    for repeat in range(repeats + 1):
        count = tokens if repeat else min(tokens, 16)
        pair = plain(engine, prompts, count), together(engine, prompts, count)
        if repeat:
            slow.append(pair[0])
            fast.append(pair[1])
        gc.collect()
        mx.clear_cache()
    number, total = len(prompts), len(prompts) * tokens
    rates = [total / median(run.seconds for run in side) for side in (slow, fast)]
    after = median(r.after_prompts for r in slow) / median(r.after_prompts for r in fast)
    rounds = [done for run in fast for step in run.steps for done in step]
    drafted = [done for done in rounds if done.drafted]
    same = sum(a == b for a, b in zip(slow[-1].tokens, fast[-1].tokens, strict=True))
    verified = fmean(done.scheduled for done in drafted) if drafted else 0.0
    speed = f"{rates[0]:>13.1f}{rates[1]:>16.1f}{rates[1] / rates[0]:>7.2f}{after:>15.2f}"
    share, tau = 100 * len(drafted) / len(rounds), fmean(len(done.tokens) for done in rounds)
    shape = f"{share:>8.0f}%{verified:>10.2f}{tau:>5.2f}{same:>4}/{number}"
    print(f"{number:>8}{speed}{shape}", flush=True)
    step = median(run.after_prompts for run in slow) / max(tokens - 1, 1)
    print(f"{'':>8}  a step of mlx-lm's takes {1e3 * step:.1f} ms", flush=True)
    return fast


def print_rounds(runs: Sequence[Run]) -> None:
    """Medians and means of the rounds of each number of requests and each width."""
    kinds: dict[tuple[int, int], list[Round]] = defaultdict(list)
    for step in (step for run in runs for step in run.steps):
        width = 1 + max(done.scheduled for done in step)
        kinds[len(step), width if step[0].drafted else 0].append(step[0])
    for (requests, width), rounds in sorted(kinds.items()):
        name = f"drafted, {width} rows each" if width else "plain"
        ms = 1e3 * median(done.seconds for done in rounds)
        mean = 1e3 * fmean(done.seconds for done in rounds)
        host = 1e3 * median(done.host_seconds for done in rounds)
        took = f"{len(rounds)} of {ms:.1f} ms (mean {mean:.1f}), host {host:.1f}"
        print(f"{'':>8}  {requests} requests, {name}: {took}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--drafter")
    parser.add_argument("--scheduler", default="auto")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", action="store_true", help="print what the rounds took")
    arguments = parser.parse_args()
    decoder = dspark_mlx.load(arguments.model, arguments.drafter, arguments.scheduler)
    sample = [
        decoder.encode([{"role": "user", "content": line.turns[0]}])
        for line in read_prompts(SAMPLE)
    ]
    print(HEADER)
    for number in arguments.requests:
        prompts = [sample[i % len(sample)] for i in range(number)]
        runs = compare(decoder.engine, prompts, arguments.max_tokens, arguments.repeats)
        if arguments.rounds:
            print_rounds(runs)


if __name__ == "__main__":
    main()
