"""Answers that are kept to a tool call, in the formats of mlx-lm's parsers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from helpers.served import served_decoder
from mlx_lm.tool_parsers import json_tools, mistral, qwen3_coder

from dspark_mlx import InputError
from dspark_mlx.sampling.tool_call import ToolCallGrammar

pytest.importorskip("llguidance", reason="the extra grammar is not installed")
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    made = served_decoder(tmp_path_factory.mktemp("served"))
    yield made
    made.engine.target.close()


def tool(name: str, **parameters) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Paris", "Rome"]}},
}
NUMBERS = {
    "properties": {"n": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2}},
    "required": ["n"],
    "additionalProperties": False,
}
TOOLS = [tool("weather", **CITY), tool('a "b"\\c', **NUMBERS)]


def with_parser(decoder, module) -> Any:
    """The tokenizer of a target whose calls another parser reads."""
    own = decoder.tokenizer
    return SimpleNamespace(
        hugging_face=own.hugging_face,
        wrapped=own.wrapped,
        has_tool_calling=True,
        tool_parser=module.parse_tool_call,
        tool_call_start=module.tool_call_start,
        tool_call_end=module.tool_call_end,
    )


@pytest.mark.parametrize("module", [json_tools, mistral])
@pytest.mark.parametrize("rule", [{}, {"temperature": 2.0}])
def test_an_answer_is_a_call_that_the_parser_reads(decoder, module, rule):
    """A marker as text, arguments of another tool, a name that breaks the grammar."""
    tools = TOOLS[:1] if module is mistral else TOOLS  # mistral's names are words
    size, stops = decoder.engine.target.vocab_size, decoder.stop_tokens
    grammar = ToolCallGrammar(tools, with_parser(decoder, module), size, stops)
    called = set()
    for seed in range(6 if rule else 1):
        settings = {"max_tokens": 200, "logits_processors": [grammar], "seed": seed, **rule}
        chunks = list(decoder.stream(MESSAGES, **settings))
        text = "".join(chunk.text for chunk in chunks)
        assert chunks[-1].finish_reason == "stop"
        assert text.startswith(module.tool_call_start) and text.endswith(module.tool_call_end)
        inner = text.removeprefix(module.tool_call_start).removesuffix(module.tool_call_end or "")
        found = module.parse_tool_call(inner, TOOLS)
        (call,) = found if isinstance(found, list) else [found]
        called.add(call["name"])
        if call["name"] == "weather":
            assert call["arguments"]["city"] in ("Paris", "Rome")
        else:
            assert call["name"] == 'a "b"\\c' and set(call["arguments"]["n"]) <= {1, 2}
    assert called


def test_a_call_is_written_as_templates_show_it(decoder):
    """Separators that the model would not write, or tokens over a separator that are forbidden."""
    grammar = decoder.tool_grammar([tool("weather", type="object")])
    chunks = list(decoder.stream(MESSAGES, 99, logits_processors=[grammar]))
    text = '<tool_call> {"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
    assert "".join(chunk.text for chunk in chunks) == text
    assert len(chunks) == 7  # the target's own tokens, and its end


def test_what_cannot_be_forced_is_refused(decoder):
    """A grammar of JSON for calls in XML; a grammar of thousands of tools."""
    size, stops = decoder.engine.target.vocab_size, decoder.stop_tokens
    for tokenizer, tools, match in (
        (with_parser(decoder, qwen3_coder), TOOLS, "writes calls as qwen3_coder"),
        (SimpleNamespace(has_tool_calling=False), TOOLS, "without tool calls"),
        (decoder.tokenizer, [tool(f"t{i}") for i in range(129)], "129 tools"),
        (decoder.tokenizer, [tool("a", properties={"x": {"pattern": "("}})], "tools"),
        (decoder.tokenizer, [], "^tools: found 0 tools; expected 1 to 128, to force a call.$"),
        (decoder.tokenizer, [{"name": "weather"}], "tools: found {'name'"),
    ):
        with pytest.raises(InputError, match=match):
            ToolCallGrammar(tools, tokenizer, size, stops)
    assert decoder.tool_grammar(TOOLS)
