"""Every family of mlx-lm: speculative tokens are the plain ones, whatever its caches are."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.families import CONFIGS, VOCABULARY, family
from helpers.pairs import tokens_of
from helpers.scripted import ScriptedDrafter
from helpers.slow_cases import some_slow
from helpers.tiny_models import random_tokens
from mlx_lm.models.cache import make_prompt_cache

from dspark_mlx.benchmark.plain import plain_run
from dspark_mlx.caches import leaves
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.errors import InputError
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.targets.network import REFUSALS
from dspark_mlx.targets.self_check import check_rollback
from dspark_mlx.targets.tap import Target
from dspark_mlx.targets.tap_check import probe_logits

TOKENS = 24
# Length of the prompt, its chunks, and how often a drafted token is wrong.
CASES = ((5, 2048, 0.7), (5, 2048, 0.1), (40, 16, 0.7), (40, 2048, 0.1), (150, 16, 0.1),
    (150, 2048, 0.7))  # fmt: skip
FEW = CASES[1], CASES[2]
SOME = ("qwen3_next", "qwen3_5", "lfm2", "nemotron_h", "mamba2", "falcon_h1",
    "deepseek_v32", "llama4", "gemma3n", "gpt_oss", "rwkv7", "baichuan_m1", "phixtral")  # fmt: skip


TABLE = Path(__file__).parents[2] / "docs" / "targets.md"
HEADER = """# Targets

Every model file of mlx-lm 0.32.2 with tiny random weights in float32, greedy, prompts of 5, 40 and
150 tokens, chunks of 2048 and 16, drafts that are mostly wrong and mostly right. Right: the tokens
are those of mlx-lm's own loop, one by one, and the drafter is given every committed token's hidden
states. {right} of {all} files are right. Where there is no Metal, bitnet's kernel is replaced
by the same product in MLX operations, and muse_spark cannot run at all. This table is written by
`pytest -m slow tests/targets/test_families.py`.

A target is checked when it is loaded with a drafter, and before a drafter is trained for it: rows
together against single ones, and rows behind rows that were taken back, in float32. A family that
differs is refused. `drafter=False` is not checked: plain decoding runs one row at a time and takes
none back, so that it is mlx-lm's own whatever several rows would give.

DeepSeek V4.1 rounds its keys to 8 and 4 bits, and a quantised cache rounds its own. A key between
two such numbers goes either way by the last bit of a float32, so that mlx-lm's own prefills of one
text in different chunks differ by up to 4e-3 of the logits. Rolling back is exact all the same:
without the rounding DeepSeek V4.1 agrees to 1e-5 like all others, and a quantised cache holds the
bits of a fresh one.

| file | result | caches, or the reason |
|---|---|---|
"""


def speculative(target: Target, drafter, prompt, chunk: int) -> list:
    engine = Engine(target, drafter, FullScheduler())
    sampler = make_sampler(Sampling(), target.vocab_size)
    return list(
        rounds(
            engine,
            prompt,
            max_tokens=TOKENS,
            stop_tokens=(),
            sampler=sampler,
            prefill_step_size=chunk,
        )
    )


def check_family(name: str, cases: Sequence[tuple[int, int, float]] = CASES) -> None:
    """Raises where one token differs from mlx-lm's own plain decoding, or a feature is missing."""
    model = family(name)
    target = Target(model, (-1, 0, len(model.layers) - 1), name)
    try:
        plain: dict[int, list[int]] = {}
        for length, chunk, wrong in cases:
            prompt: list[int] = np.array(random_tokens(length, seed=length) % VOCABULARY).tolist()
            if length not in plain:
                plain[length] = plain_run(target, prompt, TOKENS, ()).tokens
            drafter = ScriptedDrafter([*prompt, *plain[length]], VOCABULARY, wrong, seed=length)
            done = speculative(target, drafter, prompt, chunk)
            case = f"{name}, prompt of {length}, chunks of {chunk}, {wrong:.0%} wrong"
            assert tokens_of(done) == plain[length], case
            rejected = sum(round_.scheduled - round_.accepted for round_ in done)
            assert rejected > 0 and any(round_.accepted for round_ in done), case
            check_features(target, drafter.context, [*prompt, *plain[length]], case)
    finally:
        target.close()


def check_features(target: Target, context, text: list[int], case: str) -> None:
    """The drafter's context against the taps of one forward over the same text."""
    count = len(context.tokens)
    assert context.tokens == text[:count], case
    _, fresh = target(mx.array(text[:count]), make_prompt_cache(target.model))
    for joined, expected in zip(context.features(), fresh, strict=True):
        assert joined.shape == expected.shape, case
        error = float(np.array(mx.abs(joined - expected).max() / mx.abs(expected).max()))
        assert error < 1e-3, f"{case}: features differ by {error:.1e}"


def outcome(name: str) -> tuple[str, str]:
    """ "right", "refused" or "wrong", and why."""
    try:
        model = family(name)
        mx.eval(probe_logits(model))
    except REFUSALS as error:
        return "refused", f"mlx-lm: {type(error).__name__}: {error}"
    try:
        target = Target(model, (-1, 0, len(model.layers) - 1), name)
        check_rollback(target, name)
        target.close()
        check_family(name)
    except InputError as error:
        return "refused", f"{error.found}; expected {error.expected}"
    except (AssertionError, *REFUSALS) as error:
        return "wrong", f"{type(error).__name__}: {error}"
    finally:
        mx.clear_cache()
    kinds = {type(leaf).__name__ for leaf in leaves(make_prompt_cache(model))}
    return "right", ", ".join(sorted(kinds))


@pytest.mark.slow
def test_the_table_of_all_families():
    """A family that decodes other tokens, or is refused without a reason; writes the table."""
    rows = {name: outcome(name) for name in CONFIGS}
    lines = [f"| {name} | {verdict} | {why} |" for name, (verdict, why) in rows.items()]
    count = sum(verdict == "right" for verdict, _ in rows.values())
    TABLE.write_text(HEADER.format(right=count, all=len(rows)) + "\n".join(lines) + "\n")
    assert [name for name, (verdict, _) in rows.items() if verdict == "wrong"] == []
    assert count >= 122


@pytest.mark.parametrize("name", SOME)
def test_speculative_tokens_are_the_plain_ones(name):
    """A state that keeps a rejected row, a window that lost one, a feature of another stream."""
    check_family(name, FEW)


@pytest.mark.parametrize(
    "name", some_slow(["qwen3_next", "falcon_h1", "deepseek_v41"], ("qwen3_next",))
)
def test_requests_in_turn_and_from_thread_to_thread(name):
    """Records of two requests that mix, or a state that only the thread before can compute."""
    target = Target(family(name), (-1, 1), name)
    prompts = [(random_tokens(n, seed=n) % VOCABULARY).tolist() for n in (9, 33)]
    plain = [plain_run(target, prompt, TOKENS, ()).tokens for prompt in prompts]
    sampler = [make_sampler(Sampling(), target.vocab_size) for _ in prompts]
    requests = []
    for i, prompt in enumerate(prompts):
        drafter = ScriptedDrafter([*prompt, *plain[i]], VOCABULARY, 0.5, seed=i)
        engine = Engine(target, drafter, FullScheduler())
        requests.append(
            rounds(engine, prompt, max_tokens=TOKENS, stop_tokens=(), sampler=sampler[i])
        )
    found: list[list[int]] = [[], []]
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        threads, step = (one, other), 0
        while any(len(tokens) < TOKENS for tokens in found):
            for i, request in enumerate(requests):
                if len(found[i]) < TOKENS:
                    found[i] += threads[(step + i) % 2].submit(next, request).result().tokens
            step += 1
    target.close()
    assert found == plain


def test_every_model_file_has_a_configuration():
    """A family of a newer mlx-lm that nothing tries."""
    assert len(CONFIGS) >= 126
