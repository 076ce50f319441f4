"""Recorded rounds against the real loop, and their file."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from helpers.pairs import tokens_of, traces

from dspark_mlx.errors import InputError
from dspark_mlx.replay.record import record
from dspark_mlx.replay.recorded import RecordedRound, arrays, read_rounds, write_rounds

TOKENS = 24
ROUNDS = [
    RecordedRound(0, "math \u2028 é", 12, (0.1, -2.5e-7, 3.0), 3),
    RecordedRound(1, "chat", 0, (float(np.float32(1.1)), -30.0, 0.0), 0),
]


@pytest.mark.parametrize(
    ("name", "vocabulary"),
    [
        ("vanilla", "full"),
        ("vanilla", 400),
        ("gated", "full"),
        ("rnn", "full"),
        ("conf_hidden_only", "full"),
        ("embedding_tap", "full"),
    ],
)
def test_walking_full_blocks_is_the_real_loop(pair, name, vocabulary):
    """A context one feature too long or short, blocks compared with the wrong tokens, a block's
    rows left in the context, another slot's confidence, a draft vocabulary told nothing."""
    decoder = pair(name, draft_vocabulary=vocabulary)
    gamma = decoder.engine.drafter.config.gamma
    prompts = [trace["prompt_ids"] for trace in traces(name)[:2]]
    recorded = record(decoder.engine, [("t", p) for p in prompts], TOKENS, ())
    assert len(recorded) == TOKENS * len(prompts)
    lengths = []
    for request, prompt in enumerate(prompts):
        mine = {r.position: r for r in recorded if r.request == request}
        assert sorted(mine) == list(range(len(prompt), len(prompt) + TOKENS))
        position = len(prompt)
        # Long enough that max_tokens cuts no round that is compared.
        for done in list(decoder.rounds(prompt, TOKENS + 2 * gamma + 2, stop_tokens=()))[1:]:
            if position not in mine:
                break
            assert len(done.tokens) == mine[position].accepted + 1
            confidence = 1 / (1 + np.exp(-np.array(mine[position].confidence_logits)))
            assert np.allclose(done.confidence, confidence, atol=1e-4)
            lengths.append(mine[position].accepted)
            position += mine[position].accepted + 1
        assert position >= len(prompt) + TOKENS
    assert len(set(lengths)) > 1


def test_a_stop_token_shortens_the_recording(pair):
    """Blocks judged by tokens after the end of the text."""
    decoder = pair("vanilla")
    gamma = decoder.engine.drafter.config.gamma
    prompt = traces("vanilla")[3]["prompt_ids"]
    text = tokens_of(decoder.rounds(prompt, TOKENS + gamma, stop_tokens=()))
    for stop in (text[0], text[-1]):
        ended = text[: text.index(stop) + 1]
        recorded = record(decoder.engine, [("t", prompt)], TOKENS, [stop])
        assert len(recorded) == max(len(ended) - gamma, 0)


def test_progress_counts_prompts(pair):
    """A bar that never fills."""
    decoder = pair("vanilla")
    seen: list[tuple[int, int]] = []
    prompts = [("t", trace["prompt_ids"]) for trace in traces("vanilla")[:2]]
    record(decoder.engine, prompts, 2, (), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_a_drafter_without_confidence_is_refused(pair):
    """A recording whose log-odds are missing."""
    decoder = pair("dflash")
    with pytest.raises(InputError, match="without a confidence head"):
        record(decoder.engine, [], 4, ())
    with pytest.raises(InputError, match="no drafter"):
        record(decoder.plain().engine, [], 4, ())


def test_the_file_keeps_every_value(tmp_path):
    """Rounded log-odds, a task that breaks its line, a partial file left behind."""
    write_rounds(tmp_path / "r.jsonl", ROUNDS)
    assert read_rounds(tmp_path / "r.jsonl") == ROUNDS
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]
    logits, accepted = arrays(ROUNDS)
    assert logits.shape == (2, 3) and logits[0, 1] == -2.5e-7
    assert accepted.tolist() == [3, 0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"request": -1}, "request -1"),
        ({"request": True}, "request True"),
        ({"position": 1.5}, "position 1.5"),
        ({"accepted": 4}, "from 0 to 3"),
        ({"accepted": -1}, "from 0 to 3"),
        ({"task": 3}, "task 3"),
        ({"confidence_logits": []}, "finite numbers"),
        ({"confidence_logits": [0.0, "1", 2.0]}, "finite numbers"),
        ({"confidence_logits": [0.0, float("nan"), 2.0]}, "finite numbers"),
        ({"confidence_logits": None}, "finite numbers"),
        ({"confidence_logits": [0.0, 1.0], "accepted": 1}, "as on the first line"),
        ({"more": 1}, "an object of request, task"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": None}, "temperature None"),
        ({"temperature": 0.7}, "3 numbers from 0 to 1 at temperature 0.7"),
        ({"temperature": 0.7, "chances": [0.5, 0.5, 1.5]}, "3 numbers from 0 to 1"),
        ({"chances": [0.5, 0.5, 0.5]}, "0 numbers from 0 to 1 at temperature 0"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, change, named):
    """A fit on rounds that no drafter made."""
    path = tmp_path / "r.jsonl"
    write_rounds(path, ROUNDS)
    first, second = path.read_text().splitlines()
    path.write_text(first + "\n" + json.dumps(json.loads(second) | change) + "\n")
    with pytest.raises(InputError, match=named) as refused:
        read_rounds(path)
    assert refused.value.where == f"{path}:2"


def test_lines_without_a_temperature_are_greedy(tmp_path):
    """Recordings from before texts were sampled, refused."""
    path = tmp_path / "r.jsonl"
    old = [dataclasses.asdict(done) for done in ROUNDS]
    for line in old:
        del line["temperature"], line["chances"]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert read_rounds(path) == ROUNDS


@pytest.mark.parametrize(
    ("content", "found"), [("", "no lines"), ("{\n", "not JSON"), ("[]", r"\[\]")]
)
def test_a_file_of_something_else_is_refused(tmp_path, content, found):
    """A Python error for a user's wrong file."""
    path = tmp_path / "r.jsonl"
    with pytest.raises(InputError, match="no readable file"):
        read_rounds(path)
    path.write_text(content)
    with pytest.raises(InputError, match=found):
        read_rounds(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not text"):
        read_rounds(path)
