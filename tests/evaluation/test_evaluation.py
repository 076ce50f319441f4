"""The evaluation of golden pairs: the reference's numbers, partial results, several drafters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.pairs import golden, make_scheduler, tokens_of, traces
from helpers.worded import END, worded_target, words

import dspark_mlx
from dspark_mlx import InputError
from dspark_mlx.calibration.metrics import ece
from dspark_mlx.evaluation import EvaluationSettings, Task, evaluate
from dspark_mlx.evaluation.answers import Answer, LeftOut, answers
from dspark_mlx.evaluation.records import AVERAGE
from dspark_mlx.evaluation.summary import summarise
from dspark_mlx.evaluation.table import text
from dspark_mlx.load import add_drafter

NEW_TOKENS = 64
FAST = EvaluationSettings(max_tokens=12, plain=False, sweep=False)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return worded_target(tmp_path_factory.mktemp("worded") / "target")


@pytest.fixture(scope="module")
def decoders(target):
    """Three drafters of one target, one of them without a confidence head."""
    first = dspark_mlx.load(target, golden("vanilla"), "full")
    others = {name: add_drafter(first, golden(name), "full") for name in ("dflash", "rnn")}
    yield {"vanilla": first, **others}
    first.engine.target.close()


def whole_traces(name: str) -> list[dict]:
    return [trace for trace in traces(name) if not trace["confidence_threshold"]]


def tasks_of(found: list[dict], size: int = 2) -> list[Task]:
    """The traces' prompts, `size` a task."""
    prompts = [(words(trace["prompt_ids"]),) for trace in found]
    groups = [tuple(prompts[i : i + size]) for i in range(0, len(prompts), size)]
    return [Task(f"t{i}", group) for i, group in enumerate(groups)]


@pytest.mark.parametrize("name", ["vanilla", "dflash"])
def test_scores_are_the_references(decoders, name):
    """tau of a cut last round, the prefill counted, one prompt's rounds given to another task."""
    found = whole_traces(name)[:4]
    settings = EvaluationSettings(max_tokens=NEW_TOKENS, plain=False)
    made = evaluate({name: decoders[name]}, tasks_of(found), settings)
    assert (made.drafters, made.tasks, made.partial) == ((name,), ("t0", "t1"), False)
    for task, mine in (("t0", found[:2]), ("t1", found[2:])):
        lengths = [n for trace in mine for n in trace["acceptance_lengths"]]
        proposed = [n for trace in mine for n in trace["proposal_lengths"]]
        accepted = [n for trace in mine for n in trace["accepted_draft_lengths"]]
        score = made.score(name, task)
        assert (score.turns, score.rounds, score.tokens) == (2, len(lengths), sum(lengths))
        assert score.tau == pytest.approx(np.mean(lengths))
        assert score.verified == pytest.approx(np.mean(proposed))
        assert score.accepted == pytest.approx(np.mean(accepted))
        assert score.verify_rate == pytest.approx(sum(lengths) / (sum(proposed) + len(proposed)))
        expected = [np.mean([n > k for n in accepted]) for k in range(len(score.survival))]
        assert score.survival == pytest.approx(expected)
    average, parts = made.score(name), [made.score(name, task) for task in made.tasks]
    assert average.tau == pytest.approx(np.mean([score.tau for score in parts]))
    assert average.rounds == sum(score.rounds for score in parts)
    assert average.speed is None


def test_drafters_side_by_side_score_as_alone(decoders):
    """One drafter's rounds in another's score; greedy outputs that differ from plain decoding."""
    tasks = tasks_of(whole_traces("vanilla")[:2], size=1)
    made = evaluate(decoders, tasks, EvaluationSettings(max_tokens=14))
    for name, decoder in decoders.items():
        alone = evaluate({name: decoder}, tasks, EvaluationSettings(max_tokens=14, plain=False))
        for task in (*made.tasks, AVERAGE):
            beside, single = made.score(name, task), alone.score(name, task)
            assert beside.tau == single.tau and beside.conditional == single.conditional
            assert beside.slots == single.slots and beside.sweep == single.sweep
            speed = beside.speed
            assert speed is not None and speed.equal == speed.prompts == beside.turns
            assert speed.tps / speed.plain_tps == pytest.approx(speed.speedup)
            assert speed.slowest <= speed.median
    dflash = made.score("dflash")
    assert (dflash.slots, dflash.bins, dflash.sweep) == ((), (), ()) and dflash.ece is None
    assert made.score("rnn").slots and made.score("rnn").sweep


def test_confidence_is_that_of_the_rounds(decoders):
    """Confidences of other blocks, of another slot, or labels of what follows."""
    decoder, (trace,) = decoders["vanilla"], whole_traces("vanilla")[:1]
    made = evaluate({"d": decoder}, tasks_of([trace]), EvaluationSettings(NEW_TOKENS, plain=False))
    rounds = list(decoder.rounds(trace["prompt_ids"], NEW_TOKENS + 6, stop_tokens=[END]))
    rounds = [done for done in rounds if done.drafted][: len(trace["acceptance_lengths"])]
    survival = np.cumprod([done.confidence for done in rounds], axis=1)
    labels = np.array([done.accepted for done in rounds])[:, None] > np.arange(5)
    score = made.score("d")
    for k, slot in enumerate(score.slots):
        assert slot.ece_after == pytest.approx(ece(survival[:, k], labels[:, k]), abs=1e-6)
        assert slot.observed == pytest.approx(labels[:, k].mean())
    assert score.ece == pytest.approx(np.mean([slot.ece_after for slot in score.slots]))
    assert score.auc is None or not math.isnan(score.auc)
    assert sum(each.count for each in score.bins) == survival.size


def test_turns_stand_on_the_targets_own_answers(decoders):
    """A second turn without the first's answer, or with its stop token in it."""
    first, second = [3, 4, 5], [6, 7]
    task = Task("chat", ((words(first), words(second)),))
    done = list(answers(decoders, [task], FAST))
    assert [(a.prompt, a.turn) for a in done] == [(0, 0), (0, 1)]
    said = tokens_of(decoders["vanilla"].rounds(first, 12, stop_tokens=[END]))
    conversation = first + [token for token in said if token != END] + second
    for name, decoder in decoders.items():
        expected = tokens_of(decoder.rounds(conversation, 12, stop_tokens=[END]))
        assert done[1].runs[name][0].tokens[:12] == expected


def test_thinking_is_asked_for(decoders):
    """DeepSpec's prompts with an open thought, which its drafters were not trained on."""
    decoder, messages = decoders["vanilla"], [{"role": "user", "content": words([3, 4])}]
    assert decoder.encode(messages, thinking=True) == [9, 3, 4]
    assert decoder.encode(messages, thinking=False) == [3, 4]
    first = next(answers(decoders, [Task("t", ((words([3, 4]),),))], FAST))
    expected = tokens_of(decoder.rounds([3, 4], 12, stop_tokens=[END]))
    assert first.runs["vanilla"][0].tokens[:12] == expected


def test_what_is_finished_is_kept(decoders):
    """An interrupted evaluation that loses everything, or passes for a whole one."""
    tasks = tasks_of(whole_traces("vanilla")[:4])
    running = answers(decoders, tasks, FAST)
    found = [next(running)]
    made = summarise(decoders, tasks, FAST, found)
    assert made.partial and (made.turns, made.planned, made.tasks) == (1, 4, ("t0",))
    assert "PARTIAL: interrupted after 1 of 4 turns" in text(made)
    whole = summarise(decoders, tasks, FAST, [*found, *running])
    assert not whole.partial and "PARTIAL" not in text(whole)
    assert summarise(decoders, tasks, FAST, []).scores == ()


def test_what_does_not_fit_is_left_out_and_named(decoders):
    """A cut last round, a crash after an hour, or a prompt that disappears."""
    long = [3] * 500
    tasks = [Task("t", ((words(long), words([4])), (words([4]),)))]
    steps = []
    found = list(answers(decoders, tasks, FAST, lambda *each: steps.append(each)))
    assert found[0] == LeftOut("t", 0, 0, 2, 500) and isinstance(found[1], Answer)
    assert steps == [(2, 3), (3, 3)]
    made = summarise(decoders, tasks, FAST, found)
    assert not made.partial and made.score("vanilla").turns == 1
    assert "Left out: 2 turns of t from prompt 1, turn 1 on: 500 tokens" in text(made)


def test_sampling_counts_every_repeat(decoders):
    """Repeats of one seed, or a sweep that claims to be exact."""
    sampling = {"temperature": 1.0, "seed": 3}
    settings = EvaluationSettings(24, repeats=2, sampling=sampling)
    tasks = tasks_of(whole_traces("vanilla")[:1])
    (answer,) = answers({"d": decoders["vanilla"]}, tasks, settings)
    one, two = answer.runs["d"]
    assert one.tokens != two.tokens
    made = summarise({"d": decoders["vanilla"]}, tasks, settings, [answer])
    score = made.score("d", "t0")
    assert score.rounds == len(one.rounds) + len(two.rounds) - 2
    assert score.speed is not None and score.speed.equal is None
    assert END not in one.tokens + two.tokens
    assert score.sweep[0].tau == pytest.approx(score.tau)
    assert "estimated" in text(made)


def test_a_schedule_that_cuts_blocks_gives_no_reliability(decoders):
    """Calibration judged on the blocks that the confidence itself chose."""
    cut = decoders["vanilla"].with_scheduler(make_scheduler("threshold:0.45"))
    settings = EvaluationSettings(24, plain=False)
    score = evaluate({"d": cut}, tasks_of(whole_traces("vanilla")[:2]), settings).score("d")
    assert score.verified < score.drafted == 5
    assert score.verified_share == pytest.approx(score.verified / 5, abs=0.02)
    assert score.slots == () and score.sweep != ()


def test_the_sweeps_first_row_is_the_tables(decoders):
    """A text's last rounds left out of the sweep: 3.78 under a table that says 4.83."""
    tasks = tasks_of(whole_traces("vanilla")[:2], size=1)
    made = evaluate({"d": decoders["vanilla"]}, tasks, EvaluationSettings(24, plain=False))
    for task in (*made.tasks, AVERAGE):
        score, first = made.score("d", task), made.score("d", task).sweep[0]
        assert first.tau == pytest.approx(score.tau)
        assert first.verified == pytest.approx(score.verified)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"max_tokens": 1}, "max_tokens"),
        ({"repeats": 0}, "repeats"),
        ({"sampling": {"temperature": -1}}, "temperature"),
        ({"sampling": {"temprature": 1}}, "temprature"),
    ],
)
def test_unusable_settings_are_named(decoders, changes, where):
    """A setting that fails in the middle of an evaluation."""
    with pytest.raises(InputError) as refused:
        evaluate(decoders, [], EvaluationSettings(**changes))
    assert refused.value.where == where


def test_no_drafter_is_refused(decoders):
    """A table of plain steps under a drafter's name."""
    with pytest.raises(InputError, match="d: found no drafter"):
        evaluate({"d": decoders["vanilla"].plain()}, [])
