"""Tokens per second of requests that decode together: `python tests/benchmark/batch_throughput.py`.

Against mlx-lm's own `batch_generate`, which decodes plainly, on the same weights in the same run.
Both take turns; medians of whole runs, prompts included, and of the time after them. All requests
are greedy and as long as each other. The built-in pair, or --model and --drafter.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from time import perf_counter
from types import SimpleNamespace

import mlx.core as mx
from mlx_lm.generate import batch_generate

import dspark_mlx
from dspark_mlx.benchmark.prompts import SAMPLE, read_prompts
from dspark_mlx.decoder import Decoder
from dspark_mlx.engine.active import ActiveRequests
from dspark_mlx.types import Round


@dataclass(frozen=True)
class Run:
    """One decoding of all requests: seconds in all, seconds after the prompts, and their tokens."""

    seconds: float
    after_prompts: float
    tokens: list[list[int]]


def plain(decoder: Decoder, prompts: Sequence[list[int]], count: int) -> Run:
    """mlx-lm's own batch."""
    tokenizer = SimpleNamespace(eos_token_ids=(), decode=lambda ids: "")
    with decoder.engine.target.untapped():
        started = perf_counter()
        done = batch_generate(
            decoder.engine.target.model,
            tokenizer,
            list(prompts),
            max_tokens=count,
            return_token_ids=True,
            prefill_batch_size=len(prompts),
        )
        seconds = perf_counter() - started
    return Run(seconds, done.stats.generation_time, done.token_ids)


def speculative(
    decoder: Decoder, prompts: Sequence[list[int]], count: int
) -> tuple[Run, list[Round]]:
    """This package's batch, and the rounds behind the prompts."""
    active = ActiveRequests(decoder.engine)
    started = perf_counter()
    requests = [decoder.add(active, ids, count, stop_tokens=()) for ids in prompts]
    tokens: dict[object, list[int]] = {request: [] for request in requests}
    read, rounds = 0.0, []
    while len(active):
        for request, done in active.step():
            assert isinstance(done, Round), done
            tokens[request] += done.tokens
            if not done.prefill:
                rounds.append(done)
            if request.ended:
                active.remove(request)
        if not read and all(tokens.values()):
            read = perf_counter()
    end = perf_counter()
    return Run(end - started, end - read, list(tokens.values())), rounds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--drafter")
    parser.add_argument("--scheduler", default="auto")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    decoder = dspark_mlx.load(arguments.model, arguments.drafter, arguments.scheduler)
    sample = [
        decoder.encode([{"role": "user", "content": line["prompt"]}])
        for line in read_prompts(SAMPLE)
    ]
    print(
        "requests  plain tok/s  together tok/s  ratio  after prompts  drafted  verified  tau  same"
    )
    for number in arguments.requests:
        prompts = [sample[i % len(sample)] for i in range(number)]
        slow: list[Run] = []
        fast: list[Run] = []
        rounds: list[Round] = []
        for repeat in range(arguments.repeats + 1):
            runs = plain(decoder, prompts, arguments.max_tokens)
            made, of = speculative(decoder, prompts, arguments.max_tokens)
            if repeat:  # the first warms up
                slow.append(runs)
                fast.append(made)
                rounds += of
            gc.collect()
            mx.clear_cache()
        total = number * arguments.max_tokens
        rates = [total / median(run.seconds for run in side) for side in (slow, fast)]
        after = median(r.after_prompts for r in slow) / median(r.after_prompts for r in fast)
        drafted = [done for done in rounds if done.drafted]
        same = sum(a == b for a, b in zip(slow[-1].tokens, fast[-1].tokens, strict=True))
        verified = fmean(done.scheduled for done in drafted) if drafted else 0.0
        speed = f"{rates[0]:>13.1f}{rates[1]:>16.1f}{rates[1] / rates[0]:>7.2f}{after:>15.2f}"
        share, tau = 100 * len(drafted) / len(rounds), fmean(len(done.tokens) for done in rounds)
        shape = f"{share:>8.0f}%{verified:>10.2f}{tau:>5.2f}{same:>4}/{number}"
        print(f"{number:>8}{speed}{shape}", flush=True)


if __name__ == "__main__":
    main()
