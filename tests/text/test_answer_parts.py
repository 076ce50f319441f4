"""Content, reasoning and tool calls of texts that arrive in pieces."""

from __future__ import annotations

import json

import pytest
from mlx_lm.tool_parsers import json_tools, mistral

from dspark_mlx.text.answer_parts import AnswerParts, Format, Parts
from dspark_mlx.text.tool_calls import parse_tool_calls

TOOLS = ({"type": "function", "function": {"name": "f", "parameters": {}}},)
EDGES = {
    "normal": [("<think>", "reasoning"), ("<tool_call>", "tool")],
    "reasoning": [("</think>", "normal"), ("<tool_call>", "tool")],
    "tool": [("</tool_call>", "normal")],
}
CALL = '{"name": "f", "arguments": {"x": [1, "</think>"]}}'


def split(text: str, size: int, start: str = "normal", edges=EDGES, parser=None) -> Parts:
    """The parts of a text pushed `size` characters at a time."""
    format = Format(edges, start, parser or json_tools.parse_tool_call, TOOLS)
    answer = AnswerParts(format)
    pieces = [answer.push(text[i : i + size]) for i in range(0, len(text), size)]
    pieces.append(answer.finish())
    calls = tuple(call for piece in pieces for call in piece.tool_calls)
    assert answer.called == bool(calls)
    return Parts(
        "".join(piece.content for piece in pieces),
        "".join(piece.reasoning for piece in pieces),
        calls,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "text, start, content, reasoning, calls",
    [
        ("plain < text </think>", "normal", "plain < text </think>", "", 0),
        ("\n\nplain", "normal", "\n\nplain", "", 0),
        ("<think>\nhm</think>\n\nyes", "normal", "yes", "hm", 0),
        ("hm</think>\n\nyes", "reasoning", "yes", "hm", 0),
        ("hm", "reasoning", "", "hm", 0),
        ("a <thin", "normal", "a <thin", "", 0),
        (f"<think>a</think>b<tool_call>\n{CALL}\n</tool_call>", "normal", "b", "a", 1),
        (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>\n", "normal", "", "", 2),
        (f"<think>a<tool_call>{CALL}</tool_call>b", "normal", "b", "a", 1),
        (f"<tool_call>{CALL}", "normal", "", "", 1),
        ("x<tool_call>{}</tool_call>y", "normal", "x<tool_call>{}</tool_call>y", "", 0),
        ('x<tool_call>{"na', "normal", 'x<tool_call>{"na', "", 0),
    ],
)
def test_parts_do_not_depend_on_the_pieces(size, text, start, content, reasoning, calls):
    """A marker cut by a token's end; text lost or doubled; a broken call that vanishes."""
    parts = split(text, size, start)
    assert (parts.content, parts.reasoning, len(parts.tool_calls)) == (content, reasoning, calls)
    assert all(call.arguments == {"x": [1, "</think>"]} for call in parts.tool_calls)


def test_a_parser_without_an_end_marker_reads_to_the_end():
    """Mistral's calls, which the end of the text ends."""
    edges = {"normal": [("[TOOL_CALLS]", "tool")]}
    text = 'ok[TOOL_CALLS]f[ARGS]{"x": 1}g[ARGS]{}'
    parts = split(text, 3, edges=edges, parser=mistral.parse_tool_call)
    assert parts.content == "ok"
    assert [(call.name, call.arguments) for call in parts.tool_calls] == [
        ("f", {"x": 1}),
        ("g", {}),
    ]
    assert len({call.id for call in parts.tool_calls}) == 2


def test_text_of_other_states_is_dropped():
    """A format's header shown to the user."""
    edges = {"header": [("<m>", "normal")], "normal": [("<e>", "header")]}
    parts = split("to=user<m>one<e>to=user<m>two", 4, "header", edges)
    assert parts == Parts("onetwo")


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]x", '"f"', "{}", '{"name": 3}', '{"name": ""}', "[" * 3000),
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "no json"}',
        '{"name": "f", "arguments": {"x": NaN}}',
        '[{"name": "f"}, {}]',
    ],
)
def test_text_that_is_no_call_gives_none(text):
    """An exception of a parser, or a call that JSON cannot carry to the client."""
    assert parse_tool_calls(text, json_tools.parse_tool_call, TOOLS) == ()


def test_a_call_is_plain_data():
    """Arguments in a string, as some templates show them; an id of the target lost."""
    text = json.dumps({"name": "f", "arguments": '{"x": 2}', "id": "own"})
    (call,) = parse_tool_calls(text, json_tools.parse_tool_call, TOOLS)
    assert (call.name, call.arguments, call.id) == ("f", {"x": 2}, "own")
    (call,) = parse_tool_calls('{"name": "f"}', json_tools.parse_tool_call, TOOLS)
    assert call.arguments == {} and call.id.startswith("call_")
