"""Arguments of the Python API that cannot be used: one error that names them, before any work."""

from __future__ import annotations

import pytest
from helpers.http_served import MESSAGES
from helpers.served import TEXT, served_decoder

from dspark_mlx import InputError

MESSAGE = r'expected a message with "role" and "content"'


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    made = served_decoder(tmp_path_factory.mktemp("served"))
    yield made
    made.close()
    made.engine.target.close()


@pytest.mark.parametrize(
    ("prompts", "settings", "said"),
    [
        ("hi", {}, r"^prompts: found 'hi'; expected a list of prompts"),
        (None, {}, r"^prompts: found None; expected a list"),
        (MESSAGES, {}, r"^prompts\[0\]: prompt: found dict"),
        (["a", [10**6]], {}, r"^prompts\[1\]: prompt: found 1000000 at position 0"),
        (["a"], {"progress": 3}, r"^progress: found 3; expected a function"),
    ],
)
def test_prompts_of_a_batch(decoder, prompts, settings, said):
    """Two letters decoded as two prompts, a TypeError, an error that says not which prompt."""
    with pytest.raises(InputError, match=said):
        decoder.generate_batch(prompts, 2, **settings)


@pytest.mark.parametrize("name", ["progress", "on_round"])
def test_callbacks(decoder, name):
    """A TypeError behind the prompt, which was read for nothing."""
    with pytest.raises(InputError, match=f"^{name}: found 3; expected a function"):
        decoder.stream(MESSAGES, 2, **{name: 3})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, r"^messages: found None; expected a list of messages"),
        ("hi", r"^messages: found 'hi'; expected a list of messages"),
        ({"role": "user", "content": "hi"}, r"^messages: found {'role'.*; expected a list"),
        ([None], rf"^messages\[0\]: found None; {MESSAGE}"),
    ],
)
def test_what_a_conversation_begins_with(decoder, given, said):
    """A ValueError of dict, or an error at the first answer alone."""
    with pytest.raises(InputError, match=said):
        decoder.conversation(given)
    with pytest.raises(InputError, match=r"^temprature: found no such setting; .*temperature\?"):
        decoder.conversation(temprature=1)


def test_what_is_sent_to_a_conversation(decoder):
    """An answer to no message; a conversation that a refused message stays in."""
    talk = decoder.conversation(max_tokens=30)
    for given, said in (
        (None, r"^message: found None; expected a text, a message, or a list of messages"),
        (b"x", r"^message: found b'x'; expected a text"),
        ([], r"^message: found none; expected at least one"),
        ([3], rf"^message\[0\]: found 3; {MESSAGE}"),
    ):
        with pytest.raises(InputError, match=said):
            talk.send(given)
    assert "".join(chunk.content for chunk in talk.send("hi")) == TEXT
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]


@pytest.mark.parametrize("timeout", ["x", -1, float("nan")])
def test_timeouts(decoder, timeout):
    """A TypeError, or a wait without end."""
    handle = decoder.submit(MESSAGES, 2)
    with pytest.raises(InputError, match=r"^timeout: found .* 0 seconds or more"):
        handle.result(timeout)
    with pytest.raises(InputError, match=r"^timeout: found "):
        decoder.close(timeout)
    with pytest.raises(InputError, match=r"^timeout: found None"):
        decoder.close(None)
    assert len(handle.result(30).tokens) == 2


def test_limits(decoder):
    """An AttributeError for a plain number."""
    with pytest.raises(InputError, match=r"^limits: found 8; expected dspark_mlx.Limits"):
        decoder.limits = 8
