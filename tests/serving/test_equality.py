"""Eight requests at once get the tokens that each gets alone, in float32, through `submit`.

Under `full` with any seed; under `auto`, whose verify lengths depend on times, greedy and
reproducible ones (see docs/architecture.md).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.families import family
from helpers.hand_made import hand_made_profile
from helpers.served import served_folder
from helpers.slow_cases import some_slow
from helpers.tiny_models import tiny
from helpers.toys import toy_pair

from dspark_mlx.calibration.sts import identity
from dspark_mlx.decoder import Decoder
from dspark_mlx.load import load
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.targets.tap import Target

FAMILIES = {
    "delta net": lambda size: family("qwen3_5", vocab_size=size),
    "sliding window": lambda size: tiny("gpt_oss", vocab_size=size),
}
GAMMA = 4
# Every slot pays at first; what rounds take and what is accepted says otherwise later.
PROFILE = hand_made_profile([10 + 0.1 * rows for rows in range(GAMMA + 1)], draft=0.1, plain=10)
WAIT = 300


def toy(name: str, folder: Path) -> Decoder:
    stored = json.loads((folder / "tokenizer.json").read_text())
    size = len(stored["model"]["vocab"]) + len(stored["added_tokens"])
    target = Target(FAMILIES[name](size), (-1, 0), name)
    return Decoder(toy_pair(target, make_scheduler("full"), gamma=GAMMA), folder, {})


@pytest.fixture(scope="module")
def builtin() -> Decoder:
    return load(precision="float32")


def settings(index: int, lengths_differ: bool) -> dict:
    """Those of the eight requests; of each prompt the first greedy, the others with seeds."""
    made = {"max_tokens": 15 + 2 * index, "stop_tokens": ()}
    if index % 2 == 0:
        return made
    made |= {"temperature": 0.8, "seed": index}
    return made | {"reproducible": True} if lengths_differ or index == 1 else made


def assert_equal_to_solo(decoder: Decoder, prompts: list, lengths_differ: bool) -> None:
    given = [settings(i, lengths_differ) for i in range(8)]
    alone = [
        [chunk.token for chunk in decoder.stream(prompt, **each)]
        for prompt, each in zip(prompts, given, strict=True)
    ]
    assert len(set(map(tuple, alone))) == 8
    sizes: list[int] = []
    model = decoder.engine.target.model
    original = type(model)
    model.__class__ = type("Spy", (original,), {"__call__": _spying(original, sizes)})
    try:
        with decoder:
            handles = [decoder.submit(p, **each) for p, each in zip(prompts, given, strict=True)]
            answers = [handle.result(WAIT) for handle in handles]
    finally:
        model.__class__ = original
    assert [list(answer.tokens) for answer in answers] == alone
    assert max(sizes) > 4, "they did not decode together"
    # Under `auto` a toy's random drafter is given up soon.
    assert sum(answer.statistics.drafted for answer in answers) > 0
    assert lengths_differ or sum(answer.statistics.accepted for answer in answers) > 8


def _spying(original, sizes):
    def call(self, inputs, *args, **kwargs):
        sizes.append(inputs.shape[0])
        return original.__call__(self, inputs, *args, **kwargs)

    return call


CASES = [(name, scheduler) for name in FAMILIES for scheduler in ("full", "auto")]


@pytest.mark.parametrize("case", some_slow(CASES, CASES[1:3]), ids=str)
def test_toys_of_every_kind_of_cache(case, tmp_path):
    """Rows, states or windows of one request in another's, behind the engine's thread."""
    name, scheduler = case
    pair = toy(name, served_folder(tmp_path / "target"))
    vocabulary = pair.engine.target.vocab_size
    prompts = [[(7 * i + 5 * j * j + 1) % vocabulary for j in range(2 + 5 * i)] for i in range(8)]
    made = make_scheduler(scheduler, PROFILE, identity(GAMMA))
    decoder = pair.with_scheduler(made, PROFILE if scheduler == "auto" else None)
    assert_equal_to_solo(decoder, prompts, scheduler == "auto")
    pair.engine.target.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["full", "auto"])
def test_the_built_in_pair(builtin, scheduler):
    """The same on the pair that everybody tries first."""
    texts = [f"Name {2 + i} things that one finds in a kitchen." for i in range(8)]
    prompts = [[{"role": "user", "content": text}] for text in texts]
    if scheduler == "full":
        builtin = builtin.with_scheduler("full")
    assert_equal_to_solo(builtin, prompts, scheduler == "auto")
