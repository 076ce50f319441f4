"""Requests that are refused before they reach the decoder, and bodies that cannot be used."""

from __future__ import annotations

import json

import pytest
from helpers.http_served import BASE, MESSAGES, client, is_refusal

from dspark_mlx import Limits
from dspark_mlx.serving.admission import Admission
from dspark_mlx.system.memory import Memory

pytest.importorskip("starlette", reason="the extra server is not installed")
pytest.importorskip("prometheus_client", reason="the extra server is not installed")
CHAT, MESSAGE, RESPONSE, TEXTS = (
    *("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"),
)
IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
FILE = {"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}
KEY = "correct horse"
ANY = {"type": "any"}
TOOL = {"type": "function", "function": {"name": "weather"}}
OTHER = {"type": "function", "function": {"name": "other"}}
JSON = {"response_format": {"type": "json_object"}}


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    with client(tmp_path_factory.mktemp("served"), max_body_bytes=4000) as (made, _):
        yield made


@pytest.mark.parametrize("path", [CHAT, MESSAGE])
@pytest.mark.parametrize(
    "headers, status",
    [
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:8080"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=application/json"}, 415),
        ({"content-encoding": "gzip"}, 415),
    ],
)
def test_what_a_foreign_page_can_send_is_refused(http, path, headers, status):
    """A web site that uses its visitor's model, by its own name or by one that points here."""
    content = json.dumps({"messages": MESSAGES, "max_tokens": 5})
    sent = {"content-type": "application/json", **headers}
    found = http.post(path, content=content, headers=sent)
    assert found.status_code == status and is_refusal(path, status, found.json())
    assert not [name for name in found.headers if name.startswith("access-control")]
    ((name, value),) = headers.items()
    said = found.json()["error"]["message"].lower()
    assert said.startswith(f"{name}: found {value.partition(';')[0] or 'none'}")


@pytest.mark.parametrize("host", ["localhost", "localhost:80", "[::1]:8080", "LOCALHOST:1"])
def test_this_machine_by_its_names(http, host):
    """A client of this machine that is taken for a foreign one."""
    assert http.get("/v1/models", headers={"host": host}).status_code == 200
    same = http.get("/health", headers={"origin": BASE})
    assert same.status_code == 200


def test_no_page_is_let_in_by_cors(http):
    """A browser that is told that any page may call."""
    asks = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    found = http.options(CHAT, headers=asks)
    assert found.status_code == 403
    assert not [name for name in found.headers if name.startswith("access-control")]


def test_a_named_origin_may_call(tmp_path):
    """A front end of the user's own that no flag can let in; a star for all."""
    mine = "http://localhost:3000"
    with client(tmp_path, origins=frozenset({mine}), api_key=KEY) as (http, _):
        asks = {"origin": mine, "access-control-request-method": "POST"}
        found = http.options(CHAT, headers=asks)
        assert found.status_code == 200
        assert found.headers["access-control-allow-origin"] == mine
        other = http.options(CHAT, headers=asks | {"origin": "http://localhost:3001"})
        assert other.status_code == 403
        assert http.get("/v1/models", headers={"origin": mine}).status_code == 401


def test_the_key_is_asked_for(tmp_path):
    """A path without the key; a key in the form of one dialect alone."""
    with client(tmp_path, api_key=KEY) as (http, _):
        body = {"messages": MESSAGES, "max_tokens": 2}
        wrong = ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"})
        for headers in (*wrong, {"x-api-key": "wrong"}, {"authorization": f"Bearer {KEY}é"}):
            sent = {name: value.encode() for name, value in headers.items()}
            for path in (CHAT, MESSAGE):
                found = http.post(path, json=body, headers=sent)
                assert found.status_code == 401 and is_refusal(path, 401, found.json())
            assert http.get("/metrics", headers=sent).status_code == 401
        for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
            assert http.post(MESSAGE, json=body, headers=headers).status_code == 200
        assert http.get("/health").status_code == 200


@pytest.mark.parametrize(
    "path, body, place",
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "hi"}, "messages"),
        (CHAT, {"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": [IMAGE]}]}, "image_url"),
        (CHAT, {"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        (CHAT, {"messages": MESSAGES, "temperature": -1}, "temperature"),
        (CHAT, {"messages": MESSAGES, "temperature": "hot"}, "temperature"),
        (CHAT, {"messages": MESSAGES, "top_k": [1]}, "top_k"),
        (CHAT, {"messages": MESSAGES, "seed": -1}, "seed"),
        (CHAT, {"messages": MESSAGES, "n": 10**6}, "n:"),
        (CHAT, {"messages": MESSAGES, "max_tokens": 0}, "max_tokens"),
        (CHAT, {"messages": MESSAGES, "stop": [1]}, "stop"),
        (CHAT, {"messages": MESSAGES, "logit_bias": {"a": 1}}, "logit_bias"),
        (CHAT, {"messages": MESSAGES, "logit_bias": {"999999": 1}}, "logit_bias"),
        (CHAT, {"messages": MESSAGES, "tools": [{"type": "web"}]}, "tools[0]"),
        (CHAT, {"messages": MESSAGES, "tool_choice": "required"}, "tool_choice"),
        (CHAT, {"messages": MESSAGES, "tool_choice": "sometimes"}, "tool_choice"),
        (CHAT, {"messages": MESSAGES, "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        (CHAT, {"messages": MESSAGES, "tools": [TOOL], "tool_choice": OTHER}, "the tool 'other'"),
        (CHAT, {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "required", **JSON}, "only"),
        (CHAT, {"messages": MESSAGES, "stream": "yes"}, "stream"),
        (CHAT, {"messages": MESSAGES, "functions": [{}]}, "functions"),
        (CHAT, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        (CHAT, {"messages": MESSAGES, "chat_template_kwargs": {"messages": []}}, "messages"),
        (CHAT, {"messages": MESSAGES, "chat_template_kwargs": {"tools": 1}}, "tools"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 600}]}, "too long"),
        (CHAT, [], "object"),
        (TEXTS, {}, "prompt"),
        (TEXTS, {"prompt": [[1, "a"]]}, "prompt"),
        (TEXTS, {"prompt": [10**6]}, "prompt"),
        (TEXTS, {"prompt": "a", "echo": True}, "echo"),
        (TEXTS, {"prompt": ["a"] * 17}, "prompt"),
        (MESSAGE, {"messages": MESSAGES}, "max_tokens"),
        (MESSAGE, {"messages": [], "max_tokens": 1}, "messages"),
        (MESSAGE, {"messages": [{"role": "user", "content": [FILE]}], "max_tokens": 1}, "image"),
        (MESSAGE, {"messages": MESSAGES, "max_tokens": 1, "tools": [{"name": 1}]}, "tools[0].name"),
        (
            MESSAGE,
            {"messages": MESSAGES, "max_tokens": 1, "tool_choice": {"type": "any"}},
            "a tool",
        ),
        (RESPONSE, {"input": []}, "input"),
        (RESPONSE, {"input": "hi", "previous_response_id": "resp_1"}, "previous_response_id"),
        (RESPONSE, {"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ],
)
def test_a_body_that_cannot_be_used_is_named(http, path, body, place):
    """A 500, or an error that does not say which field is wrong."""
    found = http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert found.status_code == 400, found.text
    assert is_refusal(path, 400, found.json())
    assert place in found.json()["error"]["message"]


@pytest.mark.parametrize(
    "content, status",
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe{}", 400),
        (b"[" * 3000, 400),
        (b'{"a": ' * 600, 400),
        (b'{"max_tokens": 1' + b"0" * 3000 + b"}", 400),
        (b'{"messages": NaN}', 400),
        (b'{"a": "' + b"x" * 5000 + b'"}', 413),
    ],
)
@pytest.mark.parametrize("path", [CHAT, MESSAGE])
def test_bodies_that_are_no_json(http, path, content, status):
    """A parser's exception as a 500; a body without end in memory."""
    found = http.post(path, content=content, headers={"content-type": "application/json"})
    assert found.status_code == status and is_refusal(path, status, found.json())


@pytest.mark.parametrize(
    "method, path, status, said",
    [
        ("GET", CHAT, 405, "method: found GET /v1/chat/completions; expected POST"),
        ("GET", MESSAGE, 405, "method: found GET /v1/messages; expected POST"),
        ("DELETE", "/v1/models", 405, "method: found DELETE /v1/models; expected"),
        ("OPTIONS", CHAT, 405, "method: found OPTIONS"),
        ("POST", "/v1/x", 404, "path: found /v1/x; expected one of /v1/chat/completions, "),
        ("POST", "/v1/messages/batches", 404, "path: found /v1/messages/batches; expected"),
        ("GET", "/", 404, "path: found /; expected"),
        ("GET", "/v1/%0d%0a" + "x" * 300, 404, "path: found /v1/x"),
    ],
)
def test_paths_and_methods(http, method, path, status, said):
    """Plain text, or Starlette's two words, where a client reads an error's shape."""
    found = http.request(method, path, headers={"content-type": "application/json"})
    assert found.status_code == status and is_refusal(path, status, found.json())
    message = found.json()["error"]["message"]
    assert message.startswith(said) and message.isprintable() and len(message) < 500
    assert ("allow" in found.headers) == (status == 405)


def test_a_slash_behind_a_path(http):
    """A redirect, which clients that post do not follow; a slash that changes the dialect."""
    asked = {"messages": MESSAGES, "max_tokens": 2}
    from dspark_mlx.server.guard import plain_path

    assert plain_path(f"http://localhost:8080{CHAT}") == CHAT and plain_path("http://x") == "/"
    for path in (CHAT, MESSAGE, "/chat/completions"):
        assert http.post(f"{path}/", json=asked, follow_redirects=False).status_code == 200
    assert http.get("/v1/models/", follow_redirects=False).json()["object"] == "list"


@pytest.mark.parametrize("path, body", [(CHAT, {"n": 3}), (TEXTS, {"n": 3}), (TEXTS, {})])
def test_more_answers_than_places_are_refused_for_good(tmp_path, path, body):
    """ "Try again later" for what never fits."""
    prompt = {"messages": MESSAGES} if path == CHAT else {"prompt": "a" if body else ["a"] * 3}
    with client(tmp_path, Limits(1, 1, 2)) as (http, decoder):
        found = http.post(path, json={**prompt, **body, "max_tokens": 2})
        place = "n" if body else "prompt"
        assert found.status_code == 400 and found.json()["error"]["param"] == place
        said = f"{place}: found 3 answers; expected 2 at most. The server's --decode-concurrency"
        assert found.json()["error"]["message"].startswith(said)
        two = {"n": 2} if body else {"prompt": ["a"] * 2}
        assert http.post(path, json={**prompt, **two, "max_tokens": 2}).status_code == 200
        assert decoder.requests_now == (0, 0)


def test_a_full_queue_and_a_late_answer(tmp_path):
    """A client that waits for ever; a refusal that no client tries again."""
    with client(tmp_path, Limits(1, 1, 2), timeout=0.8) as (http, decoder):
        forever = {"max_tokens": 400, "stop_tokens": (), "temperature": 4.0}
        held = [decoder.submit(MESSAGES, **forever) for _ in range(2)]
        found = http.post(CHAT, json={"messages": MESSAGES})
        assert found.status_code == 429 and is_refusal(CHAT, 429, found.json())
        assert found.headers["retry-after"] == "1"
        held[1].cancel()
        late = http.post(MESSAGE, json={"messages": MESSAGES, "max_tokens": 5})
        assert late.status_code == 503 and is_refusal(MESSAGE, 503, late.json())
        streamed = http.post(CHAT, json={"messages": MESSAGES, "stream": True})
        assert streamed.status_code == 200 and '"error"' in streamed.text.splitlines()[-2]
        held[0].cancel()
        assert http.post(CHAT, json={"messages": MESSAGES}).status_code == 200


def test_answers_end_at_a_shutdown(tmp_path):
    """A server that does not end while an answer runs, or a decoder that stays."""
    with client(tmp_path) as (_, decoder):
        handle = decoder.submit(MESSAGES, max_tokens=400, stop_tokens=(), temperature=4.0)
    assert handle.result(30).finish_reason == "cancelled"


@pytest.mark.parametrize("path, body", [(CHAT, {}), (MESSAGE, {"max_tokens": 400}), (RESPONSE, {})])
def test_a_request_without_memory_is_refused(tmp_path, path, body):
    """A machine that swaps, or a 500; a refusal that says neither number."""
    admission = Admission(lambda: Memory(10**6, 550_000, "a toy"))
    with client(tmp_path / "served", admission=admission) as (http, decoder):
        asked = {"input": "hi"} if path == RESPONSE else {"messages": MESSAGES}
        for more in ({}, {"stream": True}):
            found = http.post(path, json=asked | body | more)
            assert found.status_code == 413 and is_refusal(path, 413, found.json())
            message = found.json()["error"]["message"]
            assert "kB" in message and "550.0 kB, which is free of a toy" in message
        few = {("max_output_tokens" if path == RESPONSE else "max_tokens"): 20}
        assert http.post(path, json=asked | few).status_code == 200
        assert decoder.requests_now == (0, 0)
