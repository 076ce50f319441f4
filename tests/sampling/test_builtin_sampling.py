"""Sampling with the built-in pair: likelihoods, JSON, and what a seed gives. Minutes."""

from __future__ import annotations

import json
from statistics import mean, stdev

import pytest

import dspark_mlx
from dspark_mlx.text.prompt_files import SAMPLE, read_prompts

pytestmark = pytest.mark.slow
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 16},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "colours"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def decoder() -> dspark_mlx.Decoder:
    return dspark_mlx.load(precision="float32")


def likelihoods(decoder, prompts, samples: int, seed: int) -> list[list[float]]:
    """Mean log-likelihood of each sample's tokens under the target, prompt by prompt."""
    return [
        [
            mean(
                one.logprob
                for done in decoder.rounds(
                    ids, 24, stop_tokens=(), temperature=1.0, seed=seed, sample=i, logprobs=0
                )
                for one in done.logprobs
            )
            for i in range(samples)
        ]
        for ids in prompts
    ]


def test_samples_are_as_likely_as_plain_ones(decoder):
    """A sampled text the target would rather not have written, or one too tame.

    200 samples of each, 25 a prompt; 3 standard errors are crossed by chance once in 370.
    """
    prompts = [
        decoder.encode([{"role": "user", "content": one.turns[0]}]) for one in read_prompts(SAMPLE)
    ]
    samples = 200 // len(prompts)
    fast = likelihoods(decoder, prompts, samples, seed=1)
    plain = likelihoods(decoder.plain(), prompts, samples, seed=2)
    pairs = list(zip(fast, plain, strict=True))
    difference = mean(mean(a) - mean(b) for a, b in pairs)
    variance = sum((stdev(a) ** 2 + stdev(b) ** 2) / samples for a, b in pairs) / len(pairs) ** 2
    print(f"difference {difference:+.4f}, standard error {variance**0.5:.4f}")
    assert abs(difference) < 3 * variance**0.5


def test_a_hundred_texts_of_a_json_schema(decoder):
    """A text that leaves its schema after a rejected draft."""
    schema = decoder.json_schema(SCHEMA)
    messages = [{"role": "user", "content": "Describe a person in JSON."}]
    tokens = rounds = 0
    for seed in range(100):
        chunks = list(
            decoder.stream(messages, 100, temperature=1.0, seed=seed, logits_processors=(schema,))
        )
        value = json.loads("".join(chunk.text for chunk in chunks))
        assert set(value) == {"name", "age", "colours"} and chunks[-1].finish_reason == "stop"
        assert isinstance(value["age"], int) and 0 <= value["age"] <= 120
        tokens += chunks[-1].generation_tokens - 1
        rounds += chunks[-1].statistics.rounds
    print(f"accepted length {tokens / rounds:.2f} in {rounds} rounds")
    assert tokens > 1.2 * rounds


@pytest.mark.parametrize("index", range(4))
def test_a_reproducible_text_is_the_plain_one(decoder, index):
    """float32: the same seed with and without drafts."""
    prompt = [{"role": "user", "content": read_prompts(SAMPLE)[2 * index].turns[0]}]
    settings = {"temperature": 1.0, "seed": index, "reproducible": True, "top_p": 0.95}
    texts = [
        [chunk.token for chunk in each.stream(prompt, 96, **settings)]
        for each in (decoder, decoder.plain())
    ]
    assert texts[0] == texts[1]
