"""Random bodies: none is answered with a 5xx, and every refusal has its dialect's shape."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from helpers.http_served import MESSAGES, TOOLS, WEATHER, client, events, is_refusal

pytest.importorskip("starlette", reason="the extra server is not installed")
pytest.importorskip("prometheus_client", reason="the extra server is not installed")
SAMPLING = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "seed": 3,
    "stop": ["x"],
    "stream": True,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.1,
    "min_p": 0.1,
}
CALLED = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
ITEM = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "toy",
        "messages": [
            {"role": "system", "content": "Be."},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALLED]},
            {"role": "tool", "tool_call_id": "c", "content": "4"},
        ],
        "tools": TOOLS,
        "tool_choice": "auto",
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
        "max_tokens": 4,
        "logit_bias": {"3": 1},
        "chat_template_kwargs": {"enable_thinking": False},
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
        "stream_options": {"include_usage": True},
        **SAMPLING,
    },
    "/v1/completions": {"prompt": ["hi", "ho"], "max_tokens": 3, "n": 2, "logprobs": 1, **SAMPLING},
    "/v1/responses": {
        "input": [ITEM, {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}],
        "instructions": "Be.",
        "tools": [{"type": "function", **WEATHER}],
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}},
        "max_output_tokens": 3,
        "metadata": {"a": "b"},
        "stream": True,
    },
    "/v1/messages": {
        "model": "toy",
        "max_tokens": 4,
        "system": [{"type": "text", "text": "Be."}],
        "messages": [
            *MESSAGES,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "tool_use", "id": "t", "name": "weather", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t", "content": "4"}],
            },
        ],
        "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "enabled", "budget_tokens": 10},
        "stop_sequences": ["x"],
        "temperature": 1.0,
        "top_k": 3,
        "stream": True,
    },
    "/v1/messages/count_tokens": {"messages": MESSAGES, "system": "Be."},
}
NO_TEXT = {"content": [{"type": "text"}]}
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 1.5, -0.0, 1e308, float("nan")),
    *(float("inf"), "", "x", "\ud800", "\x00", "é" * 50, "<tool_call>", "{}", "null", [], [[]]),
    *({}, [None], [{}], {"": {}}, {"type": "text"}, {"type": []}, [1, "a", None], "/etc/passwd"),
    *("http://127.0.0.1:1/", {"type": "image_url", "image_url": "x"}, {"$ref": "#/x"}, "a" * 3000),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a body."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in inner:
            found += places(each, (*path, key))
    return found


def odd(rng: random.Random) -> Any:
    """One of the odd values, for this body alone."""
    return copy.deepcopy(rng.choice(ODD))


def damaged(rng: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """The body with one to three values replaced, removed, doubled or added."""
    body = copy.deepcopy(body)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        *before, last = rng.choice(places(body))
        holder = body
        for key in before:
            holder = holder[key]
        kind = rng.random()
        if kind < 0.7:
            holder[last] = odd(rng)
        elif kind < 0.85:
            del holder[last]
        elif isinstance(holder, list):
            holder.append(odd(rng))
        else:
            holder[rng.choice(["x", "content", "type", "role", "schema"])] = odd(rng)
        if not places(body):
            return body
    return body


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    with client(tmp_path_factory.mktemp("served")) as (made, _):
        yield made


@pytest.mark.parametrize("path", BODIES)
def test_the_bodies_are_good(http, path):
    """Damaged bodies that were never good, so that one refusal hides all others."""
    body = BODIES[path]
    found = http.post(path, json=body)
    assert found.status_code == 200 and '"error": {' not in found.text, found.text
    assert http.post(path, json=body | {"stream": False}).status_code == 200


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_body_breaks_the_server(http, request, count):
    """A KeyError or TypeError of a field of another type: a 500, or a connection that ends."""
    seed = request.config.getoption("--fuzz-seed")
    statuses: dict[int, int] = {}
    for number in range(count):
        rng = random.Random(seed * 1_000_003 + number)
        path = rng.choice(list(BODIES))
        content = json.dumps(damaged(rng, BODIES[path]))
        found = http.post(path, content=content, headers={"content-type": "application/json"})
        status = found.status_code
        statuses[status] = statuses.get(status, 0) + 1
        told = (
            f"case {number} of seed {seed}: {path} {content[:600]} -> {status} {found.text[:300]}"
        )
        assert status in (200, 400, 413), told
        assert status == 200 or is_refusal(path, status, found.json()), told
        if found.headers["content-type"].startswith("text/event-stream"):
            last = events(found.text)[-1]
            assert last == "[DONE]" or "error" not in last or is_refusal(path, 400, last), told
    print(statuses)
    assert statuses[200] > count // 20 and statuses[400] > count // 5


@pytest.mark.parametrize(
    ("path", "own", "named"),
    [
        ("/v1/responses", '"metadata": {"a": NaN}', "metadata.a"),
        ("/v1/responses", '"metadata": {"a": 1e999}', "metadata.a"),
        ("/v1/responses", '"metadata": {"a": "\\ud800"}', "metadata.a"),
        ("/v1/responses", '"metadata": {"\\ud800": "a"}', "metadata"),
        ("/v1/completions", '"frequency_context_size": 1099511627776', "frequency_context_size"),
        ("/v1/completions", '"repetition_context_size": 2147483648', "repetition_context_size"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_no_answer_can_hold_is_refused_before_it_is_made(http, path, own, named, stream):
    """A 500, or a stream without a byte, after the whole answer was computed."""
    body = json.dumps(BODIES[path] | {"stream": stream})
    content = f"{body[:-1]}, {own}}}"
    found = http.post(path, content=content, headers={"content-type": "application/json"})
    assert found.status_code == 400 and is_refusal(path, 400, found.json()), found.text
    assert named in found.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "field", "said", "named"),
    [
        ("/v1/chat/completions", "messages", {"role": "user"}, "messages[0].content"),
        ("/v1/chat/completions", "messages", {"role": "user", **NO_TEXT}, "text"),
        ("/v1/messages", "messages", {"role": "user", **NO_TEXT}, "text"),
        ("/v1/responses", "input", {"role": "user"}, "input[0].content"),
        ("/v1/responses", "input", {"role": "user", **NO_TEXT}, "text"),
    ],
)
def test_a_message_without_text_is_refused(http, path, field, said, named):
    """A client's slip in a name, answered as if an empty message had been sent."""
    found = http.post(path, json={field: [said], "max_tokens": 2})
    assert found.status_code == 400 and is_refusal(path, 400, found.json()), found.text
    assert f"{named}: found nothing" in found.json()["error"]["message"]


def test_a_tool_without_its_function_is_named(http):
    """'found function; expected function', of the field beside the one that is missing."""
    body = {"messages": MESSAGES, "tools": [{"type": "function"}]}
    found = http.post("/v1/chat/completions", json=body)
    assert found.status_code == 400
    assert found.json()["error"]["param"] == "tools[0].function"


def test_results_of_tools_and_messages_of_calls_may_be_without_text(http):
    """Agents send a call without text, and a tool that returns nothing, so."""
    answer = {"role": "assistant", "content": None, "tool_calls": [CALLED]}
    result = {"role": "tool", "tool_call_id": "c", "content": None}
    body = {"messages": [*MESSAGES, answer, result], "max_tokens": 2}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
