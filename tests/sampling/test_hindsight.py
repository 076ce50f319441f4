"""Recorded sampled rounds against rounds of the real loop, on pairs of eight tokens.

Shares of real rounds have a standard error of 0.025 at most; all comparisons allow 4.5 of the
difference's, which right code exceeds once in 100,000, and seeds are fixed.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers.pairs import traces
from helpers.toys import PROMPT, toy_engine, toy_target

from dspark_mlx.engine.rounds import rounds
from dspark_mlx.replay.record import record
from dspark_mlx.replay.recorded import arrays, by_temperature, read_rounds, write_rounds
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler

VOCABULARY, GAMMA, TEXTS = 8, 3, 400
HOT = Sampling(temperature=1.0)


@pytest.fixture(scope="module")
def engine():
    target = toy_target(VOCABULARY)
    yield toy_engine(target, FullScheduler(), gamma=GAMMA)
    target.close()


def real(engine, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The first drafted round of many requests: whether each slot survived, and confidences."""
    kept, confidence = [], []
    for sample in range(TEXTS):
        sampler = make_sampler(sampling, VOCABULARY, len(PROMPT), sample)
        request = rounds(engine, PROMPT, max_tokens=12, stop_tokens=(), sampler=sampler)
        next(request)
        done = next(request)
        request.close()
        kept.append([done.accepted > slot for slot in range(GAMMA)])
        confidence.append(done.confidence)
    return np.array(kept, dtype=float), np.array(confidence)


def differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of two samples' means, slot by slot, in standard errors."""
    error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
    return np.abs(a.mean(axis=0) - b.mean(axis=0)) / np.maximum(error, 1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.0, "verification": "token"},
        {"temperature": 1.0, "top_k": 4},
    ],
    ids=str,
)
@pytest.mark.slow
def test_rounds_in_hindsight_are_those_of_the_loop(engine, settings):
    """Odds of another rule, of the block's own tokens instead of the text's, of p and q exchanged,
    or of another temperature; drafts that forget what was rejected."""
    sampling = Sampling(seed=5, **settings)
    recorded = record(engine, [("t", PROMPT)] * TEXTS, 1, (), sampling=sampling)
    assert len(recorded) == TEXTS and {r.temperature for r in recorded} == {sampling.temperature}
    kept, confidence = real(engine, sampling)
    logits, chances = arrays(recorded)
    drawn = np.array([[r.accepted > slot for slot in range(GAMMA)] for r in recorded], dtype=float)
    assert (differences(chances, kept) < 4.5).all()
    assert (differences(drawn, kept) < 4.5).all()
    seen = 1 / (1 + np.exp(-logits))
    # What the block rule rejects is drawn by the token rule: too near for so few rounds to tell.
    assert (differences(seen, confidence) < 4.5).all()
    # Odds are known where outcomes are drawn: the reason for recording them.
    assert chances[:, 0].var() < 0.5 * drawn[:, 0].var()


def test_a_pair_that_agrees_accepts_everything(engine, monkeypatch):
    """Odds that rounding takes above 1 or below it; a division by an odds of zero."""
    monkeypatch.setattr("dspark_mlx.sampling.chooser.Chooser.draft_weights", _target_rows)
    monkeypatch.setattr("dspark_mlx.replay.record.target_logprobs", _uniform)
    recorded = record(engine, [("t", PROMPT)] * 3, 4, (), sampling=HOT)
    assert all(r.accepted == GAMMA for r in recorded)
    assert np.allclose([r.chances for r in recorded], 1.0, atol=1e-5)


def _target_rows(self, logits, *_):
    return logits * 0


def _uniform(chooser, logits):
    return logits * 0 - np.log(VOCABULARY)


def test_tokens_outside_the_draft_vocabulary_are_rejections(pair):
    """A column of another token judged for one that no draft can propose."""
    decoder = pair("vanilla", draft_vocabulary=64)
    prompt = traces("vanilla")[0]["prompt_ids"]
    recorded = record(decoder.engine, [("t", prompt)], 40, (), sampling=HOT)
    assert len(recorded) == 40
    for done in recorded:
        assert len(done.chances) == 5
        # A slot's chance is known as long as all before it survived.
        assert all(c > 0 for c in done.chances[: done.accepted])
        assert not any(done.chances[done.accepted + 1 :])
    assert min(r.accepted for r in recorded) == 0


def test_recordings_repeat_and_differ_by_request(engine):
    """A calibration that no command can make again; every prompt's text the same."""
    prompts = [("t", PROMPT)] * 2
    first, again = (record(engine, prompts, 6, (), sampling=HOT) for _ in range(2))
    assert first == again
    assert [r.chances for r in first[:6]] != [r.chances for r in first[6:]]


def test_the_file_keeps_sampled_rounds(engine, tmp_path):
    """Chances lost on the way, or rounds of several temperatures mixed."""
    made = record(engine, [("t", PROMPT)], 4, (), sampling=HOT) + record(
        engine, [("t", PROMPT)], 4, ()
    )
    write_rounds(tmp_path / "r.jsonl", made)
    assert read_rounds(tmp_path / "r.jsonl") == made
    groups = by_temperature(made)
    assert list(groups) == [0.0, 1.0] and groups[1.0] == made[:4]
    assert arrays(groups[0.0])[1].shape == (4,) and arrays(groups[1.0])[1].shape == (4, GAMMA)
