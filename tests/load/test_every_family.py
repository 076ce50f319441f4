"""Every family of mlx-lm by `load` with its defaults: texts alone, of kept prompts, and of several
requests at once are those of mlx-lm's own loop."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.families import CONFIGS, family
from helpers.loadable import loadable_family
from helpers.slow_cases import some_slow
from helpers.toys import example_config, toy_tensors

import dspark_mlx
from dspark_mlx.benchmark.plain import plain_run
from dspark_mlx.targets.tap import Target
from dspark_mlx.train.publish import write_drafter

VOCABULARY, FIRST, SECOND = 64, 20, 12
# What `load` refuses, each with its reason in docs/targets.md, or mlx-lm cannot run anywhere.
REFUSED = ("muse_spark", "olmo", "phi3small", "plamo3")
# One that asks its cache for a number, and one with layers that have no attention.
ALWAYS = ("gpt_bigcode", "nemotron-nas")


class Texts:
    """Plain texts of mlx-lm's own loop, each made once."""

    def __init__(self, target) -> None:
        self._target = target
        self._made: dict[tuple[int, ...], list[int]] = {}

    def after(self, prompt: list[int], count: int) -> list[int]:
        key = (count, *prompt)
        if key not in self._made:
            self._made[key] = plain_run(self._target, prompt, count, ()).tokens
        return self._made[key]

    def same(self, prompt: list[int], count: int, found: list[int]) -> None:
        """Fails where a text differs, but for where two tokens are as likely as each other."""
        expected = self.after(prompt, count)
        differing = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
        if differing:
            text = mx.array([prompt + expected[: differing[0]]])
            with self._target.untapped():
                logits = np.sort(np.array(self._target.model(text)[0, -1].astype(mx.float32)))
            assert logits[-1] - logits[-2] < 2e-5 * np.abs(logits).max(), (prompt, found, expected)


def random_drafter(folder: Path, name: str) -> Path:
    """The folder of a drafter whose tokens are rarely right; references have those that are."""
    target = Target(family(name, vocab_size=VOCABULARY), (-1, 0), name)
    hidden = target.hidden_size
    sizes = {"hidden_size": hidden, "target_hidden_size": hidden, "owns_head": False}
    config = example_config(target, "dspark", **sizes)
    write_drafter(folder, config, toy_tensors(config), mx.float32)
    target.close()
    return folder


@pytest.mark.parametrize(
    "name", some_slow([name for name in sorted(CONFIGS) if name not in REFUSED], ALWAYS)
)
# Some families are another model to transformers, which is asked for their tokenizer.
@pytest.mark.filterwarnings("ignore")
def test_texts_are_plain_decodings(tmp_path, name):
    """Faults of what is on by default: kept prompts, the speed profile, batches."""
    base = np.random.default_rng(1).integers(3, VOCABULARY, 17).tolist()
    folder = loadable_family(tmp_path / "target", name, VOCABULARY)
    with dspark_mlx.load(folder, random_drafter(tmp_path / "drafter", name)) as decoder:
        texts = Texts(decoder.engine.target)

        def alone(prompt: list[int], count: int, reference: list[list[int]]) -> list[int]:
            made = decoder.rounds(prompt, count, stop_tokens=(), reference=reference)
            return [token for round_ in made for token in round_.tokens]

        prompts = [base[:5], [*base, 9], base[:12], base]
        for prompt in prompts:
            texts.same(prompt, FIRST, alone(prompt, FIRST, [texts.after(prompt, FIRST)]))
        further = [[*prompt, *texts.after(prompt, FIRST), 4] for prompt in prompts]
        for some, count in ((prompts, FIRST), (further, SECOND)):
            handles = [decoder.submit(prompt, count, stop_tokens=()) for prompt in some]
            for prompt, handle in zip(some, handles, strict=True):
                texts.same(prompt, count, list(handle.result(120).tokens))
