"""Conversations written by the target: every answer its own, every turn where it belongs."""

from __future__ import annotations

import dataclasses
import itertools
import json

import mlx.core as mx
import numpy as np
import pytest
from helpers.chat_toys import (
    ANSWER,
    CHARACTERS,
    END,
    LENGTH,
    TEMPLATE,
    THINKING,
    USER,
    chat_decoder,
)

from dspark_mlx.errors import InputError
from dspark_mlx.train.data import conversations
from dspark_mlx.train.data.batch_decode import batch_decode
from dspark_mlx.train.data.budget import unit
from dspark_mlx.train.data.conversations import open_store, write_conversations
from dspark_mlx.train.data.corpus import KEYS
from dspark_mlx.train.data.duplicates import Seen, exact_keys, near_keys
from dspark_mlx.train.data.plan import DataPlan
from dspark_mlx.train.data.prompt_files import read_prompt_turns
from dspark_mlx.train.data.store import Store, load_all
from dspark_mlx.train.data.templates import Template

PROMPTS = (
    ("what is this?", "and that?"),
    ("list three words",),
    ("abc. def. abc.",),
    ("how far is it to A?", "why?", "how?"),
    ("zzz",),
)
SMALL = DataPlan(max_user=32, max_answer=16, max_length=LENGTH, shard=24, rows=16)
OWN = dataclasses.replace(SMALL, follow_up=0.8, user_min_p=0.0, conversations=24)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return chat_decoder(tmp_path_factory.mktemp("chat") / "toy")


def written(decoder, plan, folder, progress=None):
    store = open_store(decoder, plan, folder)
    write_conversations(decoder, plan, store, progress)
    return load_all(store)


def turns(conversation):
    """User texts and answers of a whole sequence, as lists of ids."""
    begins = np.isin(conversation.tokens, (USER, ANSWER)) & ~conversation.answer
    parts = np.split(conversation.tokens, np.flatnonzero(begins))
    assert len(parts[0]) == 0
    kinds = [part[0] for part in parts[1:]]
    assert kinds == [USER, ANSWER] * (len(kinds) // 2)
    return [part[1:].tolist() for part in parts[1:]]


def most_probable(decoder, tokens, start):
    """Whether each token from `start` on is the target's first choice after those before it."""
    with decoder.engine.target.untapped():
        logits = decoder.engine.target.model(mx.array([tokens]))[0]
    return mx.argmax(logits, axis=-1).tolist()[start - 1 : -1] == list(tokens[start:])


def test_given_prompts_are_answered_in_turn(decoder, tmp_path):
    """Answers to other prompts, lost or repeated turns, masks on what the target did not write,
    answers that are not the target's."""
    plan = dataclasses.replace(SMALL, prompts=PROMPTS, temperatures=((0.0, 1),))
    corpus = written(decoder, plan, tmp_path / "s")
    asked = []
    for conversation in corpus:
        parts = turns(conversation)
        asked.append(tuple(decoder.tokenizer.decode(p[:-1]) for p in parts[::2]))
        start = 0
        for user, answer in zip(parts[::2], parts[1::2], strict=True):
            start += len(user) + 2
            prompt = conversation.tokens[:start].tolist()
            assert not conversation.answer[start - len(user) - 2 : start].any()
            assert conversation.answer[start : start + len(answer)].all()
            assert most_probable(decoder, [*prompt, *answer], len(prompt))
            start += len(answer)
        assert start == len(conversation.tokens)
    expected = [p for p in PROMPTS if any(p[: len(a)] == a for a in asked)]
    assert len(asked) == len(expected) >= 4
    assert any(len(a) > 1 for a in asked)


def test_every_prompt_comes_before_any_again(decoder, tmp_path):
    """Prompts drawn with replacement, or shards that all ask the same ones."""
    prompts = tuple((f"{a}{b}",) for a in CHARACTERS[:6] for b in CHARACTERS[:6])
    plan = dataclasses.replace(
        SMALL, prompts=prompts, temperatures=((1.0, 1),), conversations=50, shard=18
    )
    corpus = written(decoder, plan, tmp_path / "s")
    firsts = [decoder.tokenizer.decode(turns(c)[0][:-1]) for c in corpus]
    # Empty answers are dropped, so a few of the 36 may be missing.
    epoch = len(set(firsts[:33]))
    assert epoch == 33
    assert max(firsts.count(first) for first in set(firsts)) == 2


def test_the_target_writes_user_turns(decoder, tmp_path):
    """User turns of one kind, cut off, with special tokens, or masked as answers."""
    corpus = written(decoder, OWN, tmp_path / "s")
    users = [turns(c)[::2] for c in corpus]
    for conversation, asked in zip(corpus, users, strict=True):
        for user in asked:
            assert user[-1] == END and 2 <= len(user) <= OWN.max_user
        assert conversation.answer.any() and conversation.answer[-1]
        assert conversation.tokens[-1] == END or len(conversation.tokens) > OWN.max_answer
    firsts = [tuple(asked[0]) for asked in users]
    assert len(set(firsts)) == len(firsts) == 24
    lengths = [len(asked) for asked in users]
    assert max(lengths) in (2, 3) and lengths.count(1) > 4


def test_user_turns_continue_prompts(decoder, tmp_path):
    """Beginnings lost from the text, or taken longer than half of a prompt."""
    plan = dataclasses.replace(
        OWN, prompts=(("what is the A of this thing here",),), self_written=1.0, continued=1.0
    )
    corpus = written(decoder, plan, tmp_path / "s")
    firsts = [decoder.tokenizer.decode(turns(c)[0][:-1]) for c in corpus]
    assert all(text.startswith("what is") for text in firsts)
    assert len(set(firsts)) == len(firsts)
    assert {text.startswith("what is the A") for text in firsts} == {False, True}
    assert not any(text.startswith("what is the A of this") for text in firsts)


def test_user_turns_imitate_prompts(decoder, tmp_path, monkeypatch):
    """Examples out of order, of another place, learnt from, or too long for the target."""
    prompts = (*((f"{letter} is what number?",) for letter in "ABCDEFGH"), ("long " * 30,))
    plan = dataclasses.replace(
        OWN, prompts=prompts, self_written=1.0, continued=0.0, imitated=1.0, examples=2
    )
    shown = []

    def noted(model, jobs, *rest):
        shown.extend(decoder.tokenizer.decode(list(job.prompt)) for job in jobs)
        return batch_decode(model, jobs, *rest)

    monkeypatch.setattr(conversations, "batch_decode", noted)
    corpus = written(decoder, plan, tmp_path / "s")
    plain = {text for text in shown if "is what number?" in text and "|" not in text}
    texts = [text for (text,) in prompts[:8]]
    assert plain == {f"/{texts[0]}~/"} | {f"/{a}~/{b}~/" for a, b in itertools.pairwise(texts)}
    assert not any("long" in text for text in shown)
    assert not any("number" in decoder.tokenizer.decode(c.tokens.tolist()) for c in corpus)


def test_both_kinds_are_mixed(decoder, tmp_path):
    """A share that is ignored."""
    prompts = tuple((a + b + " prompt",) for a in "ABCDEF" for b in "ABCDEF")
    plan = dataclasses.replace(
        OWN, prompts=prompts, self_written=0.5, continued=0.0, conversations=48
    )
    corpus = written(decoder, plan, tmp_path / "s")
    given = sum("prompt" in decoder.tokenizer.decode(c.tokens.tolist()) for c in corpus)
    assert 8 <= given <= 46


def test_answers_have_mixed_temperatures(decoder, tmp_path):
    """One temperature for all, or weights that are ignored."""
    plan = dataclasses.replace(OWN, temperatures=((0.0, 3), (1.0, 1)), follow_up=0.0)
    corpus = written(decoder, plan, tmp_path / "s")
    sure = 0
    for conversation in corpus:
        start = int(np.argmax(conversation.answer))
        tokens = conversation.tokens.tolist()
        sure += most_probable(decoder, tokens, start)
    assert 0.5 < sure / len(corpus) < 0.95


def test_a_killed_run_goes_on_with_the_same_content(decoder, tmp_path, monkeypatch):
    """Randomness or duplicates that depend on what ran before in the process."""
    plan = dataclasses.replace(OWN, prompts=PROMPTS, self_written=0.7, shard=12)
    whole = tmp_path / "whole"
    written(decoder, plan, whole)
    append = Store.append

    def killed(self, conversations):
        if self.shards == 2:
            raise KeyboardInterrupt
        append(self, conversations)

    monkeypatch.setattr(Store, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        written(decoder, plan, tmp_path / "killed")
    monkeypatch.setattr(Store, "append", append)
    assert Store.open(tmp_path / "killed").shards == 2
    mx.random.seed(3)
    written(decoder, plan, tmp_path / "killed")
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert len(names) > 3
    for name in names:
        assert (whole / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_thinking_is_mixed_and_kept_apart(tmp_path):
    """A template that drops earlier thinking: one sequence whose later answers follow what the
    target never saw, or masks on what was re-written."""
    decoder = chat_decoder(tmp_path / "toy", THINKING)
    prompts = tuple((a + b, "and then?") for a in CHARACTERS[:12] for b in CHARACTERS[:12])
    plan = dataclasses.replace(SMALL, prompts=prompts, temperatures=((1.0, 1),))
    corpus = list(written(decoder, plan, tmp_path / "s"))
    marks, texts = set(), []
    for conversation in corpus:
        start = int(np.argmax(conversation.answer))
        assert conversation.answer[start:].all() and not conversation.answer[:start].any()
        before, after = np.split(conversation.tokens, [start])
        texts.append([decoder.tokenizer.decode(part.tolist()) for part in (before, after)])
        marks.add(texts[-1][0][-1])
    assert marks == {"t", "n"}
    # The first three characters of an earlier answer are what this template drops.
    later = [
        before.startswith(earlier[:-1] + answer[3:])
        for (earlier, answer), (before, _), c in zip(texts, texts[1:], corpus[1:], strict=False)
        if (c.tokens[~c.answer] == USER).sum() == 2
    ]
    assert len(later) > 3 and all(later)


@pytest.mark.parametrize("budget", [{"answer_tokens": 250}, {"conversations": 25}])
def test_a_budget_is_met_and_shown(decoder, tmp_path, budget):
    """Stopping early, far too late, or a bar that runs back or ends short."""
    plan = dataclasses.replace(OWN, conversations=None)
    plan = dataclasses.replace(plan, **budget)
    seen = []
    store = open_store(decoder, plan, tmp_path / "s")
    write_conversations(decoder, plan, store, lambda done, total: seen.append((done, total)))
    name, limit = next(iter(budget.items()))
    assert limit <= getattr(store, name) < 2 * limit
    assert seen[-1] == (limit, limit)
    assert unit(plan) == {"answer_tokens": "token", "conversations": "conversation"}[name]
    # Nothing is left to do.
    shards = store.shards
    write_conversations(decoder, plan, store)
    assert store.shards == shards


def test_seconds_are_a_budget(decoder, tmp_path):
    """A run that never ends; one that writes nothing because time passed before it began."""
    plan = dataclasses.replace(OWN, conversations=None, seconds=1e-6)
    store = open_store(decoder, plan, tmp_path / "s")
    write_conversations(decoder, plan, store)
    assert store.shards == 1


def test_the_target_is_given_back_tapped(decoder, tmp_path):
    """Taps lost by writing, so that training reads none."""
    written(decoder, dataclasses.replace(OWN, conversations=4), tmp_path / "s")
    target = decoder.engine.target
    _, taps = target(mx.array([3, 4]), [None] * target.num_layers)
    assert len(taps) == 1


def test_nothing_new_is_an_error(decoder, tmp_path):
    """A run that asks the same greedy question for ever."""
    plan = dataclasses.replace(
        SMALL, prompts=PROMPTS, temperatures=((0.0, 1),), conversations=1000, thinking=0.0
    )
    store = open_store(decoder, plan, tmp_path / "s")
    with pytest.raises(InputError, match="nothing new"):
        write_conversations(decoder, plan, store)
    assert 4 <= store.conversations <= 5


def test_turns_alternate_where_the_template_wants_them_to(tmp_path):
    """A template that refuses two user turns in a row: no prompts like others could be written."""
    strict = "{% if messages|length > 1 and messages[1].role == 'user' %}"
    strict += "{{ raise_exception('turns must alternate') }}{% endif %}" + TEMPLATE
    asked = Template(chat_decoder(tmp_path / "toy", strict)).asked(["a", "b"])
    assert [m["role"] for m in asked] == ["user", "assistant"] * 2
    assert [m["content"] for m in asked] == ["a", "", "b", ""]


def test_a_target_without_a_template_is_refused(tmp_path):
    """An answer to raw text, or a traceback out of transformers."""
    for name, template in (("none", None), ("fixed", "/always this~|")):
        decoder = chat_decoder(tmp_path / name, template)
        store = open_store(decoder, OWN, tmp_path / f"{name}-store")
        with pytest.raises(InputError, match="chat template"):
            write_conversations(decoder, OWN, store)
        assert store.shards == 0


@pytest.mark.parametrize(
    "change",
    [
        {"self_written": 1.5},
        {"continued": -0.1},
        {"imitated": 1.5},
        {"examples": 0},
        {"thinking": float("nan")},
        {"temperatures": ()},
        {"temperatures": ((-1.0, 1),)},
        {"temperatures": ((1.0, 0),)},
        {"temperatures": ((float("inf"), 1),)},
        {"max_answer": 0},
        {"rows": 0},
        {"seed": -1},
        {"conversations": 0},
        {"seconds": 0},
        {"conversations": None},
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(decoder, tmp_path, change):
    """A store begun, or a run without end, before the mistake is seen."""
    plan = dataclasses.replace(OWN, **change)
    with pytest.raises(InputError):
        open_store(decoder, plan, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_settings_tell_plans_apart():
    """A store that goes on with other prompts; one that refuses a larger budget."""
    settings = {json.dumps(plan.settings) for plan in (OWN, dataclasses.replace(OWN, seconds=3))}
    assert len(settings) == 1
    for change in ({"prompts": PROMPTS}, {"rows": 9}, {"temperatures": ((0.0, 1),)}):
        assert json.dumps(dataclasses.replace(OWN, **change).settings) not in settings


def test_prompts_are_read(tmp_path):
    """One spelling of two, files in random order, a line that is skipped silently."""
    (tmp_path / "b.jsonl").write_text('{"prompt": "one", "task": "x"}\n')
    (tmp_path / "a.jsonl").write_text('{"turns": ["two", "three"]}\n')
    assert read_prompt_turns(tmp_path) == (("two", "three"), ("one",))
    assert read_prompt_turns(tmp_path / "b.jsonl") == (("one",),)
    bad = ['{"text": "x"}', '{"turns": []}', '{"turns": ["x", 3]}', '{"prompt": " "}', "[1]", "{"]
    for line in bad:
        (tmp_path / "b.jsonl").write_text('{"prompt": "one"}\n' + line + "\n")
        with pytest.raises(InputError, match=r"b\.jsonl:2"):
            read_prompt_turns(tmp_path)
    (tmp_path / "none").mkdir()
    for path in (tmp_path / "none", tmp_path / "missing.jsonl"):
        with pytest.raises(InputError):
            read_prompt_turns(path)


LONG = "Write a function that finds the longest common prefix of 3 strings in a list, please."


def test_near_duplicates():
    """Twins that differ in a number or a comma kept; other questions of the same kind dropped."""
    seen = Seen(np.zeros((0, KEYS), dtype=np.uint64))
    assert seen.add(near_keys(LONG))
    for twin in (
        LONG,
        LONG.upper(),
        LONG.replace("3", "12").replace(",", ""),
        LONG.replace(", please", ""),
    ):
        assert seen.has(near_keys(twin)) and not seen.add(near_keys(twin))
    for other in ("Write a function that sorts a list of strings by length.", "Why?", "", "3"):
        assert seen.add(near_keys(other))
    assert not seen.add(near_keys("why"))


def test_shares_of_near_duplicates_that_are_found():
    """The numbers that the module promises."""
    rng = np.random.default_rng(0)
    found = []
    for same, size in ((45, 50), (34, 51), (17, 51)):
        hits = 0
        for _ in range(200):
            words = [str(w) for w in rng.integers(1 << 40, size=(3 * 120))]
            words = [w.translate(str.maketrans("0123456789", "abcdefghij")) for w in words]
            # Runs overlap, so a pair shares its first runs alone.
            pair = [words[: same + 2] + words[100 * i : 100 * i + size - same] for i in (1, 2)]
            first, second = (near_keys(" ".join(p)) for p in pair)
            hits += bool((first[1:] == second[1:]).any())
        found.append(hits / 200)
    # Shared runs over all runs: 45 of 55, 34 of 68, 17 of 85.
    for share, expected in zip(found, (0.99, 0.40, 0.02), strict=True):
        assert abs(share - expected) < 0.12


def test_exact_duplicates():
    """Keys that collide with none, or equal conversations that pass."""
    seen = Seen(np.zeros((0, KEYS), dtype=np.uint64))
    assert seen.add(exact_keys([1, 2, 3]))
    assert not seen.add(exact_keys([1, 2, 3]))
    assert seen.add(exact_keys([1, 2]))
    assert Seen(np.array([exact_keys([7])])).has(exact_keys([7]))
