"""The loop over DeepSeek V4 with its embedded head: the reference's greedy speculative traces."""

from __future__ import annotations

import json

import pytest
from helpers.deepseek_v4 import FOLDER, read
from helpers.pairs import tokens_of
from helpers.slow_cases import some_slow

import dspark_mlx
from dspark_mlx import generate
from dspark_mlx.errors import InputError
from dspark_mlx.profiling.timing import Session

NEW_TOKENS = 64
STOP = [1]
TRACES = read("loop_golden")["traces"]


@pytest.fixture(scope="module")
def decoder():
    return dspark_mlx.load(FOLDER, precision="float32", scheduler="full")


@pytest.mark.parametrize("index", some_slow(range(len(TRACES)), [0, 6, 13]))
def test_traces_equal_the_reference(decoder, index):
    """Tokens, and how many were verified and committed in each round."""
    trace = TRACES[index]
    threshold, prompt = trace["confidence_threshold"], trace["prompt_ids"]
    scheduled = decoder.with_scheduler(f"threshold:{threshold}" if threshold else "full")
    rounds = list(scheduled.rounds(prompt, NEW_TOKENS, stop_tokens=STOP))
    assert prompt + tokens_of(rounds) == trace["output_ids"]
    remaining = NEW_TOKENS - 1
    rows = zip(trace["acceptance_lengths"], trace["proposal_lengths"], strict=True)
    for done, (committed, proposed) in zip(rounds[1:], rows, strict=False):
        assert len(done.tokens) == min(committed, remaining)
        assert done.scheduled == min(proposed, remaining - 1)
        remaining -= len(done.tokens)
    assert len(rounds) > 1 and (remaining == 0 or rounds[-1].tokens[-1] == STOP[0])


def test_its_forwards_can_be_timed(decoder):
    """A measurement that takes out rows of more than the newest forward, or of a full ring."""
    session = Session(decoder.engine)
    session.fill(30, seconds=60.0)
    for _ in range(2):
        assert all(run() > 0 for run in session.points([1, 6]).values())
    assert session.length > 30


def test_the_head_inside_is_found(decoder):
    """A checkpoint with its head, decoded plainly or with a drafter from elsewhere."""
    assert decoder.drafter_folder == decoder.target_folder == FOLDER
    assert decoder.engine.drafter.config.METHOD == "deepseek_v4"


def test_the_command_takes_and_prints_token_ids(capsys):
    """A checkpoint without a tokenizer, which the command could not run."""
    trace = TRACES[13]
    ids = map(str, trace["prompt_ids"])
    command = ["--model", str(FOLDER), "--prompt-ids", *ids, "--scheduler", "threshold:0.5"]
    assert generate.main([*command, "--max-tokens", "20", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    expected = trace["output_ids"][len(trace["prompt_ids"]) :][:20]
    assert report["tokens"] == expected and report["finish_reason"] == "length"
    assert report["text"] == " ".join(map(str, expected))
    with pytest.raises(InputError, match="no --stop"):
        generate.main([*command, "--stop", "end"])
