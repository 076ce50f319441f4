"""Texts of several prompts against each prompt's own."""

from __future__ import annotations

import pytest
from helpers.pairs import golden, tokens_of
from helpers.worded import worded_target, words

from dspark_mlx.decoder import Decoder
from dspark_mlx.engine.active import ActiveRequests
from dspark_mlx.errors import InputError
from dspark_mlx.load import load
from dspark_mlx.types import Round

PROMPTS = [words([3 + 7 * i + j for j in range(2 + 3 * i)]) for i in range(7)]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Decoder:
    folder = worded_target(tmp_path_factory.mktemp("together") / "target")
    return load(folder, golden("vanilla"), "full", precision="float32")


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_every_text_is_what_its_prompt_gives_alone(decoder, at_once):
    """Texts in another order, cut in another place, or with what stands behind a stop string."""
    settings = {"temperature": 0.8, "seed": 4}
    ends = [chunk.token for chunk in decoder.stream(PROMPTS[2], 12, **settings)][6:7]
    stop = words(ends)
    want, done = [], []
    for prompt in PROMPTS:
        chunks = decoder.stream(prompt, 12, stop=stop, **settings)
        want.append("".join(chunk.text for chunk in chunks))
    texts = decoder.generate_batch(
        PROMPTS, 12, stop=stop, at_once=at_once, progress=lambda *of: done.append(of), **settings
    )
    assert texts == want and len(set(map(len, want))) > 1
    assert done == [(i + 1, 7) for i in range(7)]


def test_a_prompt_that_cannot_be_used_is_refused_before_anything_is_decoded(decoder):
    with pytest.raises(InputError, match="prompt"):
        decoder.generate_batch(["w3", [3] * 600], progress=lambda *of: pytest.fail("decoded"))
    with pytest.raises(InputError, match="at_once"):
        decoder.generate_batch(["w3"], at_once=0)
    assert decoder.generate_batch([]) == []


def test_requests_of_token_ids_are_added(decoder):
    """The way for an application that steps its requests itself."""
    active, made = ActiveRequests(decoder.engine), {}
    for i in range(3):
        request = decoder.add(active, [3, 4 + i], 9, stop_tokens=(), temperature=1.0, seed=i)
        made[request] = []
    while len(active):
        for request, done in active.step():
            assert isinstance(done, Round)
            made[request] += done.tokens
            if request.ended:
                active.remove(request)
    for i, tokens in enumerate(made.values()):
        alone = decoder.rounds([3, 4 + i], 9, stop_tokens=(), temperature=1.0, seed=i)
        assert tokens == tokens_of(alone)
