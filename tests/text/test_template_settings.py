"""Thinking, tools, template variables and a beginning of the answer; whole texts."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest
from helpers.chat_toys import chat_decoder
from helpers.loadable import loadable

import dspark_mlx
from dspark_mlx import InputError, chat, generate

TEMPLATE = (
    "{% if tools %}T{% for t in tools %}{{ t['name'] }}{% endfor %}{% endif %}{{ mark }}"
    "{% for m in messages %}{{ ('/' if m['role'] == 'user' else '|') + m['content'] + '~' }}"
    "{% endfor %}{% if add_generation_prompt %}|{% if enable_thinking %}t{% else %}n{% endif %}"
    "{% endif %}"
)
MESSAGES = [{"role": "user", "content": "ab"}]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return chat_decoder(tmp_path_factory.mktemp("toy") / "chat", TEMPLATE)


def written(decoder, messages=MESSAGES, **settings) -> str:
    return decoder.tokenizer.decode(decoder.encode(messages, **settings))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "/ab~|n"),
        ({"thinking": True}, "/ab~|t"),
        ({"thinking": False}, "/ab~|n"),
        ({"thinking": np.bool_(True)}, "/ab~|t"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "/ab~|t"),
        ({"chat_template_kwargs": {"mark": "M"}, "thinking": True}, "M/ab~|t"),
        ({"tools": [{"name": "x"}, {"name": "y"}]}, "Txy/ab~|n"),
        ({"tools": []}, "/ab~|n"),
        ({"prefill_response": "c d"}, "/ab~|c d"),
        ({"prefill_response": "ab "}, "/ab~|ab "),
    ],
    ids=str,
)
def test_the_template_gets_them(decoder, settings, text):
    """A setting that the template never sees; an answer that is closed before it begins."""
    assert written(decoder, **settings) == text


def test_stream_and_generate_take_them(decoder):
    """`encode` with a setting and `stream` without it."""
    for settings in ({"thinking": True}, {"prefill_response": "Zq"}, {"tools": [{"name": "k"}]}):
        plain = decoder.generate(MESSAGES, 12, stop_tokens=())
        ids = decoder.encode(MESSAGES, **settings)
        whole = decoder.generate(MESSAGES, 12, stop_tokens=(), **settings)
        assert whole == decoder.generate(ids, 12, stop_tokens=())
        chunks = decoder.stream(MESSAGES, 12, stop_tokens=(), **settings)
        assert whole == "".join(chunk.text for chunk in chunks) and whole != plain


def test_generate_takes_what_stream_takes(decoder):
    """A second list of arguments that falls behind."""
    seen = []
    text = decoder.generate("abc", 6, temperature=1.0, seed=3, stop="q", on_round=seen.append)
    assert isinstance(text, str) and seen
    with pytest.raises(InputError, match="Did you mean temperature"):
        decoder.generate("abc", temp=1.0)


def test_generate_stays_the_command():
    """A function that hides the module, so that `python -m dspark_mlx.generate` warns."""
    assert dspark_mlx.generate is generate and callable(generate.main)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"thinking": "yes"}, "thinking"),
        ({"thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, "thinking"),
        ({"chat_template_kwargs": ["mark"]}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"mark": threading.Lock()}}, "chat_template_kwargs.mark"),
        ({"tools": "x"}, "tools"),
        ({"tools": ["x"]}, "tools[0]"),
        ({"tools": [print]}, "tools[0]"),
        ({"prefill_response": " "}, "prefill_response"),
        ({"prefill_response": 3}, "prefill_response"),
        ({"prefill_response": "\ud800"}, "prefill_response"),
    ],
    ids=str,
)
def test_what_no_template_takes_is_refused(decoder, settings, where):
    """Jinja's own error, an object whose methods a template could call, a setting without use."""
    with pytest.raises(InputError) as caught:
        decoder.encode(MESSAGES, **settings)
    assert caught.value.where == where


@pytest.mark.parametrize("prompt", ["ab", [3, 4]], ids=str)
def test_prompts_without_a_template_take_none(decoder, prompt):
    """--no-thinking that does nothing and says nothing; token ids may come with tools, by which
    calls in the answer are read."""
    tools: dict[str, Any] = {"tools": []} if isinstance(prompt, str) else {}
    for settings in ({"thinking": False}, {"prefill_response": "a"}, *([tools] if tools else [])):
        with pytest.raises(InputError) as caught:
            decoder.stream(prompt, 2, **settings)
        assert caught.value.where == next(iter(settings))


def test_a_template_that_changes_the_answer_is_refused(tmp_path):
    """A prompt that ends at the last place where the answer's words stood by chance."""
    upper = TEMPLATE.replace("m['content']", "(m['content'] | upper)")
    decoder = chat_decoder(tmp_path / "upper", upper)
    with pytest.raises(InputError, match="a chat template that changes it"):
        decoder.encode(MESSAGES, prefill_response="cd")


def test_a_beginning_is_continued_as_transformers_does(decoder):
    """Another place of the cut than mlx-lm's command has."""
    for answer in ("cd", "c d ", " cd", "ab"):
        messages = [*MESSAGES, {"role": "assistant", "content": answer}]
        theirs = decoder.tokenizer.hugging_face.apply_chat_template(
            messages, tokenize=False, continue_final_message=True, enable_thinking=False
        )
        assert written(decoder, prefill_response=answer) == theirs, answer


def test_the_commands_take_them(tmp_path, capsys, monkeypatch):
    """Flags that are parsed and not passed on; XTC and --compare with other end tokens."""
    target = str(loadable(tmp_path / "target", TEMPLATE))
    given: list[tuple] = []
    stream = dspark_mlx.Decoder.stream

    def watched(self, prompt, max_tokens=256, **settings):
        given.append((prompt, settings))
        return stream(self, prompt, max_tokens, **settings)

    monkeypatch.setattr(dspark_mlx.Decoder, "stream", watched)
    common = ["--model", target, "--no-drafter", "-m", "4", "--xtc-probability", "0.5"]
    config = ["--chat-template-config", json.dumps({"mark": "M"}), "--thinking"]
    ends = ["--extra-eos-token", "a", "7", "--extra-eos-token", "|"]
    prompt = ["--prompt", "ab", "--prefill-response", "cd", "--compare"]
    assert generate.main([*common, *config, *ends, *prompt]) == 0
    decoder = dspark_mlx.load(target, drafter=False)
    ids, settings = given.pop()
    assert decoder.tokenizer.decode(ids) == "M/ab~|cd"
    extra = {decoder.tokenizer.token_id(token) for token in "a|"} | {7}
    assert settings["stop_tokens"] == decoder.stop_tokens | extra
    assert extra <= set(settings["xtc_special_tokens"])
    lines = iter(["ab", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(lines))
    assert chat.main([*common, *config, *ends]) == 0
    messages, settings = given.pop()
    assert messages == MESSAGES and settings["thinking"] is True
    assert settings["chat_template_kwargs"] == {"mark": "M"} and extra <= settings["stop_tokens"]
    capsys.readouterr()
    for wrong, where in (
        (["--extra-eos-token", "no such token"], "--extra-eos-token"),
        (["--chat-template-config", "[1]"], "--chat-template-config"),
        (["--thinking", "--ignore-chat-template"], "thinking"),
    ):
        with pytest.raises(InputError, match=f"^{where}"):
            generate.main([*common, *wrong, "--prompt", "ab"])
