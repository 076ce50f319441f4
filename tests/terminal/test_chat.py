"""The chat command: what it keeps of a conversation."""

from __future__ import annotations

import pytest
from helpers.served import TEXT, served_decoder

from dspark_mlx import InputError, chat
from dspark_mlx.terminal import flags


@pytest.fixture
def talk(tmp_path, monkeypatch, capsys):
    """A function: lines to what was printed, and the messages of every answer."""
    decoder = served_decoder(tmp_path / "served")
    asked: list[list[dict]] = []
    stream = decoder.stream

    def watched(messages, **settings):
        asked.append(messages)
        return stream(messages, **settings)

    monkeypatch.setattr(decoder, "stream", watched)
    monkeypatch.setattr(flags, "load_decoder", lambda args: decoder)

    def run(*lines, more=()):
        asked.clear()
        left = iter([*lines, None])
        monkeypatch.setattr(chat, "_read_line", lambda: next(left))
        assert chat.main(list(more)) == 0
        return capsys.readouterr(), list(asked)

    yield run
    decoder.close()
    decoder.engine.target.close()


def test_each_answer_reads_what_came_before(talk):
    """A turn that is forgotten; reasoning that goes back as if it were the answer."""
    said, asked = talk("hi", "and", "/reset", "so", more=["--system-prompt", "Be"])
    system = {"role": "system", "content": "Be"}
    hi = {"role": "user", "content": "hi"}
    answer = {"role": "assistant", "content": TEXT, "reasoning_content": "Let me see"}
    assert asked[0] == [system, hi]
    assert asked[1] == [system, hi, answer, {"role": "user", "content": "and"}]
    assert asked[2] == [system, {"role": "user", "content": "so"}]
    assert said.out.count(TEXT) == 3


def test_an_answer_that_was_stopped_stays_as_far_as_it_came(talk, monkeypatch):
    """Ctrl-C that ends the chat, or an answer that is lost with it."""
    paint, painted = chat.DraftPainter.paint, []

    def interrupting(self, chunk):
        painted.append(chunk)
        if len(painted) == 8:
            raise KeyboardInterrupt
        return paint(self, chunk)

    monkeypatch.setattr(chat.DraftPainter, "paint", interrupting)
    _, asked = talk("hi", "go on", more=["--show-drafts"])
    assert [message["role"] for message in asked[1]] == ["user", "assistant", "user"]
    content = asked[1][1]["content"]
    assert content and content != TEXT and TEXT.startswith(content)


def test_a_message_that_is_refused_is_not_added(talk):
    """A conversation that no message can go on."""
    said, asked = talk("hi", "x" * 600, "so")
    assert "The message was not added" in said.err
    assert [m["content"] for m in asked[-1] if m["role"] == "user"] == ["hi", "so"]
    said, _ = talk("/image none.png", "hi")
    assert "/image: found" in said.err and TEXT in said.out


def test_a_missing_image_ends_before_the_model_is_loaded(talk):
    with pytest.raises(InputError, match="--image"):
        talk("hi", more=["--image", "none.png"])
