"""Turns of plain and speculative decoding, and the bench's row made of them."""

from __future__ import annotations

import pytest
from helpers.pairs import traces

from dspark_mlx.benchmark.comparison import bench_row
from dspark_mlx.benchmark.plain import plain_run
from dspark_mlx.benchmark.turns import decode, take_turn
from dspark_mlx.errors import InputError
from dspark_mlx.targets.tap import Target

NEW_TOKENS, STOP = 64, [1]


@pytest.mark.parametrize("name", ["vanilla", "dflash"])
def test_whole_rounds_are_the_references(pair, name):
    """The last round cut at max_tokens, left out, or followed by one too many: each shifts tau."""
    decoder = pair(name)
    for trace in [t for t in traces(name) if not t["confidence_threshold"]][:2]:
        prompt = trace["prompt_ids"]
        run = decode(decoder, prompt, NEW_TOKENS, {}, STOP, whole=True)
        assert [len(done.tokens) for done in run.rounds[1:]] == trace["acceptance_lengths"]
        assert [done.scheduled for done in run.rounds[1:]] == trace["proposal_lengths"]
        assert prompt + run.tokens[:NEW_TOKENS] == trace["output_ids"]


def test_a_turn_has_every_side(pair):
    """A side that decodes another number of tokens, or with the taps of another."""
    decoder = pair("vanilla")
    prompt = traces("vanilla")[0]["prompt_ids"]
    turn = take_turn((decoder, decoder.plain()), prompt, 20, {}, STOP)
    assert turn.plain is not None and len(turn.plain.tokens) == 20
    assert [run.tokens for run in turn.runs] == [turn.plain.tokens] * 2
    assert [len(run.rounds) for run in turn.runs][1] == 20
    assert take_turn((decoder,), prompt, 4, {}, STOP, plain=False).plain is None


def test_the_bench_row_is_of_its_turns(pair):
    """A row of another side, tokens beyond what was asked for, or a difference that is none."""
    decoder = pair("vanilla")
    prompt = traces("vanilla")[0]["prompt_ids"]
    row = bench_row(decoder, "t", prompt, 24, 2, {})
    rounds = list(decoder.rounds(prompt, 24))
    assert (row.task, row.prompt_tokens, row.tokens, row.equal) == ("t", len(prompt), 24, True)
    assert row.accepted_length == 23 / (len(rounds) - 1)
    assert row.plain_seconds_per_token > 0 and row.speculative_seconds_per_token > 0
    with pytest.raises(InputError, match="one token"):
        bench_row(decoder, "t", prompt, 1, 1, {})


def test_a_prompt_that_a_template_left_empty_is_refused(target_model):
    """mlx-lm's ValueError about embeddings."""
    target = Target(target_model, (), "golden target")
    with pytest.raises(InputError, match="prompt: found no tokens"):
        plain_run(target, [], 4, ())
    target.close()
