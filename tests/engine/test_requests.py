"""Settings and prompts that cannot be used: one error at once, with place, value and range."""

from __future__ import annotations

import math

import pytest
from helpers.hand_made import hand_made_profile
from helpers.pairs import TARGET, traces, with_scheduler

import dspark_mlx
from dspark_mlx.errors import InputError
from dspark_mlx.schedulers import schedule
from dspark_mlx.schedulers.make import SCHEDULERS, make_scheduler

PROMPT = [3, 4, 5]


def check(error: pytest.ExceptionInfo, where: str, found: str, expected: str) -> None:
    """All three parts are there, and in the message."""
    assert error.value.where == where
    assert found in error.value.found
    assert expected in error.value.expected
    for part in (where, found, expected):
        assert part in str(error.value)


BAD_SETTINGS = [
    ({"temperature": -0.1}, "temperature", "-0.1", "0 or more"),
    ({"temperature": math.nan}, "temperature", "nan", "a number"),
    ({"temperature": math.inf}, "temperature", "inf", "a number"),
    ({"temperature": "hot"}, "temperature", "'hot'", "a number"),
    ({"temperature": None}, "temperature", "None", "a number"),
    ({"top_p": -0.1}, "top_p", "-0.1", "from 0 to 1"),
    ({"top_p": 1.5}, "top_p", "1.5", "from 0 to 1"),
    ({"top_p": math.nan}, "top_p", "nan", "a number"),
    ({"min_p": 1.1}, "min_p", "1.1", "from 0 to 1"),
    ({"min_p": -0.5}, "min_p", "-0.5", "from 0 to 1"),
    ({"top_k": -1}, "top_k", "-1", "a whole number, 0 or more"),
    ({"top_k": 1.5}, "top_k", "1.5", "a whole number"),
    ({"max_tokens": 0}, "max_tokens", "0", "a whole number, 1 or more"),
    ({"max_tokens": True}, "max_tokens", "True", "a whole number"),
    ({"max_tokens": 2.0}, "max_tokens", "2.0", "a whole number"),
    ({"seed": -1}, "seed", "-1", "a whole number, 0 or more"),
    ({"prefill_step_size": 0}, "prefill_step_size", "0", "a whole number, 1 or more"),
]


@pytest.mark.parametrize(
    "setting, where, found, expected", BAD_SETTINGS, ids=lambda v: str(v) if type(v) is dict else ""
)
def test_a_bad_setting_is_named(pair, setting, where, found, expected):
    """A setting that is ignored, or fails only once the iterator is consumed, or as a TypeError."""
    decoder = pair("vanilla")
    with pytest.raises(InputError) as error:
        decoder.rounds(PROMPT, **setting)
    check(error, where, found, expected)
    with pytest.raises(InputError) as error:
        decoder.stream(PROMPT, **setting)
    check(error, where, found, expected)


@pytest.mark.parametrize("stop", ["", [""], ["ok", ""], [3]])
def test_an_empty_stop_string_is_refused(pair, stop):
    """An empty stop string, which is found everywhere and ends every text at once."""
    with pytest.raises(InputError) as error:
        pair("vanilla").stream(PROMPT, stop=stop)
    check(error, "stop", "3" if stop == [3] else "''", "non-empty strings")


@pytest.mark.parametrize(
    "prompt, found, expected",
    [
        ([], "no tokens", "at least one token"),
        ([1, 512], "512 at position 1", "from 0 to 511"),
        ([-1], "-1 at position 0", "from 0 to 511"),
        ([1, 2.0], "2.0 at position 1", "token ids"),
        ([1, True], "True at position 1", "token ids"),
        ([3] * 512, "512 tokens", "512 positions"),
        ([3] * 600, "600 tokens", "512 positions"),
    ],
    ids=["empty", "too large", "negative", "float", "bool", "full", "over-long"],
)
def test_a_bad_prompt_is_refused_at_once(pair, prompt, found, expected):
    """An id outside the table read as garbage; a prompt past the target's positions."""
    with pytest.raises(InputError) as error:
        pair("vanilla").rounds(prompt)
    check(error, "prompt", found, expected)


def test_the_last_position_is_used(pair):
    """Generation running past the target's positions, or refusing the last one."""
    decoder = pair("vanilla")
    rounds = list(decoder.rounds([3] * 508, max_tokens=50, stop_tokens=()))
    assert sum(len(done.tokens) for done in rounds) == 4


@pytest.mark.parametrize(
    "name, where, found, expected",
    [
        ("fast", "scheduler", "'fast'", "full"),
        ("", "scheduler", "''", "auto"),
        ("full:1", "scheduler", "'full:1'", "threshold:VALUE"),
        ("threshold:2", "scheduler threshold", "2.0", "from 0 to 1"),
        ("threshold:-0.1", "scheduler threshold", "-0.1", "from 0 to 1"),
        ("threshold:nan", "scheduler threshold", "nan", "from 0 to 1"),
        ("threshold:x", "scheduler threshold", "'x'", "a number"),
        ("threshold", "scheduler threshold", "no value", "a number"),
    ],
)
def test_an_unusable_scheduler_is_named(name, where, found, expected):
    """A threshold that admits all or nothing in silence, or another scheduler in its place."""
    with pytest.raises(InputError) as error:
        make_scheduler(name)
    check(error, where, found, expected)
    with pytest.raises(InputError) as error:
        dspark_mlx.load(TARGET, drafter=False, scheduler=name)
    check(error, where, found, expected)


def test_a_threshold_needs_a_confidence_head(pair):
    """A drafter without confidences failing in the middle of its first round."""
    with pytest.raises(InputError) as error:
        with_scheduler(pair("dflash"), "threshold:0.5")
    check(error, "scheduler threshold:0.5", "without a confidence head", "with a confidence head")


def test_an_unknown_precision_is_named():
    """A misspelt precision taken for "stored"."""
    with pytest.raises(InputError) as error:
        dspark_mlx.load(TARGET, drafter=False, precision="float8")
    check(error, "precision", "'float8'", "bfloat16")


def test_a_prompt_of_another_type_is_refused(pair):
    """A set or a number consumed as if it were token ids."""
    with pytest.raises(InputError) as error:
        pair("vanilla").encode(5)
    check(error, "prompt", "int", "a string, a list of messages or of token ids")


def test_text_settings_of_rounds_are_explained(pair):
    """Of a setting that `stream` has and `rounds` lacks: did you mean that setting?"""
    decoder = pair("vanilla")
    with pytest.raises(InputError, match="stop_tokens, or Decoder") as error:
        decoder.rounds(PROMPT, 8, stop="x")
    assert "Did you mean" not in str(error.value)


def test_schedulers_go_by_name_after_loading(pair):
    """`with_scheduler("full")` ending in an AttributeError, although `load` takes such names."""
    decoder = pair("vanilla")
    profile = hand_made_profile(verify=(1.0, 1.1, 1.2, 1.3, 1.4, 1.5), draft=0.1, plain=1.0)
    for kind in SCHEDULERS.values():
        if kind.NEEDS_PROFILE:
            with pytest.raises(InputError, match="no speed profile in this decoder"):
                decoder.with_scheduler(kind.EXAMPLE)
        other = decoder.with_scheduler(kind.EXAMPLE, profile)
        assert other.engine.profile is profile and other.engine.scheduler is not None
    # The profile that a decoder has is kept, and is what another scheduler needs.
    assert other.with_scheduler("prefix").engine.profile is profile
    assert decoder.plain().with_scheduler("prefix").engine.drafter is None
    for arguments, where in (
        (("fixed:inf",), "scheduler"),
        ((5,), "scheduler"),
        (("full", 5), "profile"),
    ):
        with pytest.raises(InputError, match=where):
            decoder.with_scheduler(*arguments)


class Two:
    """A scheduler object of a user's own: two slots, and what it was shown."""

    name, needs_confidence, reads_confidence = "two", True, True

    def __init__(self):
        self.seen: list[tuple[float, ...]] = []
        self.learnt = []

    def start(self, gamma, sampled):
        return self

    def park(self, context, limit):
        return 0

    def admit(self, slot, seen):
        self.seen.append(tuple(seen))
        return slot < 2

    def learn(self, done):
        self.learnt.append(done)


def test_a_scheduler_sees_no_later_slot():
    """Leaking the confidence of a slot that is not yet judged (paper, appendix A)."""
    policy, confidence = Two(), [0.9, 0.8, 0.7, 0.6]
    assert schedule(policy, confidence, 4, deterministic=False) == 2
    assert policy.seen == [(0.9,), (0.9, 0.8), (0.9, 0.8, 0.7)]
    assert schedule(policy, confidence, 1, deterministic=False) == 1


def test_an_object_can_schedule(pair):
    """A scheduler object that load takes but the loop ignores."""
    prompt, scheduler = traces("vanilla")[0]["prompt_ids"], Two()
    rounds = list(pair("vanilla").with_scheduler(scheduler).rounds(prompt, 12))
    assert {done.scheduled for done in rounds[1:-2]} == {2}
    assert {done.drafted for done in rounds[1:-2]} == {5}
    assert scheduler.learnt == rounds[1:]
