"""Schedulers on a GPU with a drafter of known acceptance and of a head that knows or knows nothing.

`python tests/benchmark/known_acceptance.py` builds a target of Qwen3-4B's shape and a drafter of
five layers, both random, without any download. The target's greedy text counts upwards (its head is
its embedding, moved by one row), so that the drafter, which runs in full, can propose the right
token or a wrong one as a chance decides. `full`, `auto` and plain decoding take turns; medians.
`--tiny` is the same at a size for a CPU.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from time import perf_counter

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.qwen3 import Model, ModelArgs

from dspark_mlx.calibration.by_temperature import Calibrations
from dspark_mlx.calibration.sts import identity
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.drafters.base import Drafter, DrafterContext
from dspark_mlx.drafters.dspark.config import DSparkConfig
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.profiling.measure import quick_profile
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.targets.tap import Target
from dspark_mlx.types import Draft, Round

GAMMA = 7
WHOLE = {
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}
TINY = {
    "hidden_size": 128,
    "num_hidden_layers": 8,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1024,
}


def make_target(shape: dict[str, int], bits: int) -> Target:
    """A random target whose greedy text counts upwards; 16 bits are bfloat16."""
    mx.random.seed(0)
    args = {"rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "rope_theta": 1e6}
    model = Model(
        ModelArgs.from_dict(
            {"model_type": "qwen3", "tie_word_embeddings": False} | args | shape,
        )
    )
    size = (shape["vocab_size"], shape["hidden_size"])
    # Long rows: what the layers add to them does not change which row of the head fits best.
    embedding = 50 * mx.random.normal(size)
    model.model.embed_tokens.weight = embedding
    model.lm_head.weight = mx.roll(embedding, 1, 0) / 50
    model.set_dtype(mx.bfloat16)
    if bits < 16:
        nn.quantize(model, group_size=64, bits=bits)
    mx.eval(model.parameters())
    return Target(model, taps_of(shape), f"{bits} bits")


def taps_of(shape: dict[str, int]) -> tuple[int, ...]:
    """Five layers, evenly spread."""
    return tuple(round(i * (shape["num_hidden_layers"] - 2) / 4) for i in range(5))


def make_drafter(target: Target, shape: dict[str, int]) -> Drafter:
    """A random drafter of five layers of the target's widths."""
    config = DSparkConfig(
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_layers=5,
        num_heads=shape["num_attention_heads"],
        num_kv_heads=shape["num_key_value_heads"],
        head_dim=shape["head_dim"],
        rms_norm_eps=1e-6,
        vocab_size=shape["vocab_size"],
        target_hidden_size=shape["hidden_size"],
        target_num_layers=shape["num_hidden_layers"],
        taps=taps_of(shape),
        block_size=GAMMA,
        logits_start=0,
        mask_token_id=0,
        rope_theta=1e6,
        head="vanilla",
        head_rank=256 if shape is WHOLE else 16,
        confidence="hidden+markov",
        owns_embedding=False,
        owns_head=False,
        target="",
    )
    shapes = {f"{name}.weight": shape_ for name, shape_ in config.matrix_shapes().items()}
    tensors = {
        name: (0.02 * mx.random.normal(size)).astype(mx.bfloat16)
        for name, size in (shapes | dict(config.vector_shapes())).items()
    }
    return assemble(config, tensors, target.embed, target.logits, mx.bfloat16, dequantize=False)


class KnownDrafter:
    """A drafter that runs in full, and whose tokens are right with known chances.

    Args:
        inner: the drafter that runs.
        acceptance: mean chance that a token is right.
        useless: whether confidences are noise from 0.3 to 0.7; else they are the chances.
    """

    def __init__(self, inner: Drafter, acceptance: float, useless: bool, seed: int = 0) -> None:
        self._inner = inner
        self.config = inner.config
        self.calibrations = Calibrations({0.0: identity(GAMMA)})
        self.vocabulary_size = inner.vocabulary_size
        self._useless = useless
        self._rng = np.random.default_rng(seed)
        spread = 1.1 * np.random.default_rng(1).normal(size=4001)
        levels = np.linspace(-8, 8, 3201)
        means = [(1 / (1 + np.exp(-level - spread))).mean() for level in levels]
        self._level = float(levels[np.searchsorted(means, acceptance)])

    def new_context(self, prompt: Iterable[int] = (), temperature: float = 0.0) -> DrafterContext:
        return self._inner.new_context(prompt, temperature)

    def extend(self, context, taps, tokens, rows=None) -> None:
        self._inner.extend(context, taps, tokens, rows)

    def flush(self, context) -> None:
        self._inner.flush(context)

    def draft(self, context, anchor, pick) -> Draft:
        draft = self._inner.draft(context, anchor, pick)
        assert draft.confidence is not None
        block, slots = self._rng.normal(), self._rng.normal(size=GAMMA)
        chances = 1 / (1 + np.exp(-self._level - 0.9 * block - 0.6 * slots))
        wrong = self._rng.random(GAMMA) >= chances
        shown = self._rng.uniform(0.3, 0.7, GAMMA) if self._useless else chances
        steps = np.arange(1, GAMMA + 1) + 5 * wrong
        # Nothing of the draft may be left out of the graph.
        tokens = (anchor + mx.array(steps.astype(np.int32))) % self.vocabulary_size
        tokens = (tokens + 0 * draft.tokens).astype(mx.int32)
        confidence = mx.array(shown.astype(np.float32)) + 0 * draft.confidence
        return replace(draft, tokens=tokens, columns=tokens, confidence=confidence)


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


def measure(shape: dict[str, int], bits: int, tokens: int, repeats: int) -> None:
    target = make_target(shape, bits)
    inner = make_drafter(target, shape)
    for acceptance, useless in ((0.8, True), (0.5, False), (0.5, True), (0.8, False)):
        drafter = KnownDrafter(inner, acceptance, useless)
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
        shape = TINY if arguments.tiny else WHOLE
        measure(shape, bits, arguments.tokens, arguments.repeats)


if __name__ == "__main__":
    main()
