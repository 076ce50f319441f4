"""Answers of every dialect, whole and streamed, against the decoder's own."""

from __future__ import annotations

import json

import pytest
from helpers.http_served import MESSAGES, TOOLS, WEATHER, client, events
from helpers.served import CALL, TEXT

pytest.importorskip("starlette", reason="the extra server is not installed")
pytest.importorskip("prometheus_client", reason="the extra server is not installed")
CHAT, TEXTS, MESSAGE, RESPONSE = (
    *("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"),
)
SAMPLED = {"temperature": 4.0, "seed": 7, "max_tokens": 30}
ANTHROPIC_TOOL = {"name": "weather", "input_schema": {"type": "object"}}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with client(tmp_path_factory.mktemp("served")) as made:
        yield made


@pytest.fixture
def post(served):
    def send(path: str, body: dict, status: int = 200):
        found = served[0].post(path, json=body)
        assert found.status_code == status, found.text
        if found.headers["content-type"].startswith("text/event-stream"):
            return events(found.text)
        return found.json()

    return send


@pytest.fixture
def decoder(served):
    return served[1]


def text_of(decoder, prompt=MESSAGES, **settings) -> str:
    """What the decoder writes: to messages, the part for the user; to others, all of it."""
    chunks = list(decoder.stream(prompt, **settings))
    return "".join(chunk.content if prompt is MESSAGES else chunk.text for chunk in chunks)


def test_a_chat_is_answered(post, decoder):
    """Another text than the decoder's; usage that does not add up."""
    body = post(CHAT, {"model": "any", "messages": MESSAGES})
    (choice,) = body["choices"]
    assert choice["message"]["content"] == TEXT and choice["finish_reason"] == "stop"
    assert choice["message"]["reasoning_content"] == "Let me see"
    chunks = list(decoder.stream(MESSAGES))
    usage, statistics = body["usage"], chunks[-1].statistics
    assert usage["prompt_tokens"] == statistics.prompt_tokens
    assert usage["completion_tokens"] == len(chunks) == statistics.generation_tokens
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    details = usage["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == statistics.accepted > 0
    assert details["reasoning_tokens"] == sum(bool(chunk.reasoning) for chunk in chunks) > 0
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert body["model"] == "toy" and body["object"] == "chat.completion"


def test_seeds_and_sampling_are_the_decoders(post, decoder):
    """A setting that is dropped on the way: tokens other than those of stream."""
    wanted = text_of(decoder, thinking=False, **SAMPLED, top_p=0.9, logit_bias={70: 3.0})
    body = {"messages": MESSAGES, "reasoning_effort": "none", **SAMPLED, "top_p": 0.9}
    found = post(CHAT, body | {"logit_bias": {"70": 3.0}})
    assert found["choices"][0]["message"]["content"] == wanted
    assert wanted != text_of(decoder, thinking=False, **SAMPLED)


def test_choices_are_independent_samples(post, decoder):
    """n times the same text, or texts that cannot be had again."""
    found = post(
        CHAT,
        {
            "messages": MESSAGES,
            "n": 3,
            **SAMPLED,
            "chat_template_kwargs": {"enable_thinking": False},
        },
    )
    texts = [choice["message"]["content"] for choice in found["choices"]]
    assert texts == [text_of(decoder, thinking=False, **SAMPLED, sample=i) for i in range(3)]
    assert len(set(texts)) == 3
    greedy = post(CHAT, {"messages": MESSAGES, "n": 2})
    assert [each["message"]["content"] for each in greedy["choices"]] == [TEXT] * 2


def test_a_streamed_chat_has_the_same_text(post):
    """Pieces lost, doubled or of another choice; no end."""
    body = {"messages": MESSAGES, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    found = post(CHAT, body)
    assert found[-1] == "[DONE]" and found[-2]["choices"] == []
    assert found[-2]["usage"] == post(CHAT, {"messages": MESSAGES, "n": 2})["usage"]
    for index in range(2):
        choices = [c for e in found[:-2] for c in e["choices"] if c["index"] == index]
        assert "".join(c["delta"].get("content", "") for c in choices) == TEXT
        assert "".join(c["delta"].get("reasoning_content", "") for c in choices) == "Let me see"
        assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["stop"]
    assert len({each["id"] for each in found[:-1]}) == 1


def test_tools_are_called(post):
    """Calls as text; arguments that are no JSON; a call's id lost on the way back; tokens counted
    that come behind the only call."""
    body = {"messages": MESSAGES, "tools": TOOLS, "parallel_tool_calls": False}
    answer = post(CHAT, body)
    (choice,), usage = answer["choices"], answer["usage"]
    assert usage["completion_tokens"] == len(("I look.", *CALL, "</tool_call>"))
    accepted = usage["completion_tokens_details"]["accepted_prediction_tokens"]
    assert 0 < accepted < usage["completion_tokens"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    found = post(CHAT, body | {"stream": True})
    deltas = [c["delta"] for e in found[:-1] for c in e["choices"]]
    (calls,) = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["index"] == 0 and calls[0]["function"] == call["function"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    back = post(CHAT, {"messages": [*MESSAGES, choice["message"], result]})
    assert back["choices"][0]["message"]["content"] == TEXT
    none = post(CHAT, body | {"tool_choice": "none"})
    assert none["choices"][0]["finish_reason"] == "stop"


def test_a_call_can_be_forced(post):
    """An answer without a call, of a tool that was not named, or with arguments of another kind."""
    pytest.importorskip("llguidance", reason="the extra grammar is not installed")
    both = [function_tool("weather", "city"), function_tool("time", "zone")]
    body = {"messages": MESSAGES, "tools": both, "max_tokens": 200}
    named = {"type": "function", "function": {"name": "time"}}
    for choice, names in (("required", {"weather", "time"}), (named, {"time"})):
        (found,) = post(CHAT, body | {"tool_choice": choice})["choices"]
        (call,) = found["message"]["tool_calls"]
        assert found["finish_reason"] == "tool_calls" and call["function"]["name"] in names
        assert set(json.loads(call["function"]["arguments"])) < {"city", "zone"}
    flat = [{"type": "function", **tool["function"]} for tool in both]
    asked = {"input": "hi", "tools": flat, "max_output_tokens": 200}
    for choice in ("required", {"type": "function", "name": "time"}):
        (item,) = post(RESPONSE, asked | {"tool_choice": choice})["output"]
        assert item["type"] == "function_call"
    assert item["name"] == "time"
    own = [{"name": t["name"], "input_schema": t["parameters"]} for t in flat]
    asked = {"messages": MESSAGES, "tools": own, "max_tokens": 200}
    for choice in ({"type": "any"}, {"type": "tool", "name": "time"}):
        found = post(MESSAGE, asked | {"tool_choice": choice})
        (block,) = found["content"]
        assert block["type"] == "tool_use" and found["stop_reason"] == "tool_use"
    assert block["name"] == "time" and set(block["input"]) == {"zone"}
    streamed = post(CHAT, body | {"tool_choice": named, "stream": True})
    deltas = [c["delta"] for e in streamed[:-1] for c in e["choices"]]
    assert [d["tool_calls"][0]["function"]["name"] for d in deltas if "tool_calls" in d] == ["time"]


def function_tool(name: str, argument: str) -> dict:
    parameters = {
        "type": "object",
        "properties": {argument: {"$ref": "#/$defs/Word"}},
        "required": [argument],
        "additionalProperties": False,
        "$defs": {"Word": {"enum": ["one", "two"]}},
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_texts_to_quote_go_with_a_request(post, decoder, monkeypatch):
    """References that are left out, or that change the text."""
    given = []
    submit = type(decoder).submit

    def watched(self, *args, **settings):
        given.append(settings.get("reference"))
        return submit(self, *args, **settings)

    monkeypatch.setattr(type(decoder), "submit", watched)
    prediction = {"type": "content", "content": [{"type": "text", "text": "Hello"}]}
    for path, body, want in (
        (CHAT, {"messages": MESSAGES, "reference": ["a", "b"], "prediction": prediction}, 3),
        (TEXTS, {"prompt": "Hello", "reference": "Hello, world"}, 1),
        (RESPONSE, {"input": "hi", "reference": ["Hello, world"]}, 1),
        (MESSAGE, {"messages": MESSAGES, "max_tokens": 40, "reference": ["Hello"]}, 1),
    ):
        plain = {k: v for k, v in body.items() if k not in ("reference", "prediction")}
        assert text_in(post(path, body)) == text_in(post(path, plain))
        assert len(given[-2]) == want and given[-1] is None
    wrong = post(CHAT, {"messages": MESSAGES, "reference": {"a": 1}}, 400)
    assert "reference" in wrong["error"]["message"]
    post(CHAT, {"messages": MESSAGES, "prediction": "Hello"}, 400)


def text_in(body: dict) -> str:
    """The text of an answer of any dialect."""
    if "content" in body:
        return body["content"][-1]["text"]
    if "output" in body:
        return body["output"][-1]["content"][0]["text"]
    (choice,) = body["choices"]
    return choice.get("text") or choice["message"]["content"]


def test_stop_and_length_end_a_text(post):
    """A stop string that is shown, or a wrong reason."""
    plain = {"messages": MESSAGES, "reasoning_effort": "none"}
    (choice,) = post(CHAT, plain | {"stop": ["Bye"]})["choices"]
    assert choice["message"]["content"] == "Hello, world! " and choice["finish_reason"] == "stop"
    (choice,) = post(CHAT, plain | {"max_completion_tokens": 2})["choices"]
    assert choice["message"]["content"] == "Hello, " and choice["finish_reason"] == "length"


def test_logprobs_are_of_the_texts_tokens(post):
    """Tokens without numbers, numbers of other tokens, -inf that is no JSON."""
    body = {"messages": MESSAGES, "reasoning_effort": "none", "logprobs": True, "top_logprobs": 2}
    (choice,) = post(CHAT, body)["choices"]
    content = choice["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == TEXT
    assert bytes(b for each in content for b in each["bytes"]).decode() == TEXT
    assert all(each["logprob"] <= 0 and len(each["top_logprobs"]) == 2 for each in content)
    streamed = [c for e in post(CHAT, body | {"stream": True})[:-1] for c in e["choices"]]
    assert [x for c in streamed if c["logprobs"] for x in c["logprobs"]["content"]] == content


def test_an_answer_follows_a_schema(post):
    """A grammar that reasoning or the drafts break."""
    pytest.importorskip("llguidance", reason="the extra grammar is not installed")
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["a"],
        "additionalProperties": False,
    }
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": MESSAGES, "response_format": format, "max_tokens": 60}
    for _ in range(2):  # the second has a grammar that was kept
        (choice,) = post(CHAT, body)["choices"]
        assert 0 <= json.loads(choice["message"]["content"])["a"] <= 9
    of_responses = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    found = post(RESPONSE, {"input": "hi", "text": of_responses, "max_output_tokens": 60})
    assert set(json.loads(found["output"][0]["content"][0]["text"])) == {"a"}
    post(CHAT, body | {"response_format": {"type": "json_schema"}}, 400)
    wrong = {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}
    assert "JSON schema" in post(CHAT, body | {"response_format": wrong}, 400)["error"]["message"]


def test_completions_go_on_without_a_template(post, decoder):
    """A prompt put through the template; prompts and samples mixed up."""
    ids = decoder.encode("Hello")
    body = post(TEXTS, {"prompt": ["Hello", "Bye"], "n": 2, **SAMPLED})
    wanted = [text_of(decoder, p, **SAMPLED, sample=i) for p in ("Hello", "Bye") for i in range(2)]
    assert [choice["text"] for choice in body["choices"]] == wanted
    assert body["usage"]["prompt_tokens"] == len(ids) + len(decoder.encode("Bye"))
    same = post(TEXTS, {"prompt": ids, **SAMPLED, "logprobs": 1})["choices"][0]
    assert same["text"] == wanted[0]
    assert "".join(same["logprobs"]["tokens"]) == wanted[0]
    found = post(TEXTS, {"prompt": "Hello", **SAMPLED, "stream": True})
    assert "".join(each["choices"][0]["text"] for each in found[:-1]) == wanted[0]
    assert found[-2]["choices"][0]["finish_reason"] and found[-1] == "[DONE]"


def test_anthropics_messages(post, decoder):
    """Blocks, reasons and counts of Anthropic's form."""
    body = {"max_tokens": 50, "messages": MESSAGES, "system": [{"type": "text", "text": "Be."}]}
    found = post(MESSAGE, body | {"thinking": {"type": "enabled", "budget_tokens": 9}})
    assert [block["type"] for block in found["content"]] == ["thinking", "text"]
    assert found["content"][1]["text"] == TEXT and found["stop_reason"] == "end_turn"
    plain = post(MESSAGE, body)
    assert plain["content"] == [{"type": "text", "text": TEXT}]
    assert post("/v1/messages/count_tokens", body) == {
        "input_tokens": plain["usage"]["input_tokens"]
    }
    stopped = post(MESSAGE, body | {"stop_sequences": ["world"]})
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "world")
    assert post(MESSAGE, body | {"max_tokens": 1})["stop_reason"] == "max_tokens"


def test_anthropics_tools_and_events(post):
    """Events that do not rebuild the message; results of tools that do not reach the target."""
    body = {"max_tokens": 50, "messages": MESSAGES, "tools": [ANTHROPIC_TOOL]}
    whole = post(MESSAGE, body)
    assert [block["type"] for block in whole["content"]] == ["text", "tool_use"]
    assert whole["content"][1]["input"] == {"city": "Paris"} and whole["stop_reason"] == "tool_use"
    found = post(MESSAGE, body | {"stream": True})
    kinds = [each["type"] for each in found]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    deltas = [each["delta"] for each in found if each["type"] == "content_block_delta"]
    assert "".join(d.get("text", "") for d in deltas) == "I look."
    assert json.loads("".join(d.get("partial_json", "") for d in deltas)) == {"city": "Paris"}
    assert found[-2]["usage"] == whole["usage"]
    result = {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "text", "text": "4"}]}
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": whole["content"]},
        {"role": "user", "content": [result, {"type": "text", "text": "so?"}]},
    ]
    assert post(MESSAGE, {"max_tokens": 50, "messages": turns})["content"][0]["text"] == TEXT


def test_responses(post):
    """Items and events of OpenAI's newer form."""
    found = post(RESPONSE, {"input": "hi", "instructions": "Be."})
    assert [item["type"] for item in found["output"]] == ["reasoning", "message"]
    assert found["output"][1]["content"][0]["text"] == TEXT and found["status"] == "completed"
    tools = [{"type": "function", **WEATHER}]
    called = post(RESPONSE, {"input": "hi", "tools": tools})
    assert [item["type"] for item in called["output"]] == ["message", "function_call"]
    call = called["output"][1]
    turns = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        *called["output"],
        {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"},
    ]
    assert post(RESPONSE, {"input": turns})["status"] == "completed"
    streamed = post(RESPONSE, {"input": "hi", "tools": tools, "stream": True})
    assert [each["sequence_number"] for each in streamed] == list(range(len(streamed)))
    last = streamed[-1]
    assert last["type"] == "response.completed" and last["response"]["usage"] == called["usage"]
    assert [item["type"] for item in last["response"]["output"]] == ["message", "function_call"]
    cut = post(RESPONSE, {"input": "hi", "max_output_tokens": 1, "stream": True})[-1]
    assert cut["type"] == "response.incomplete"


def test_what_the_server_says_of_itself(served):
    """Models, health and metrics that no tool can read."""
    http, _ = served
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/v1/models").json()["data"][0]["id"] == "toy"
    assert http.get("/v1/models/toy").json()["id"] == "toy"
    assert http.get("/v1/models/other").status_code == 404
    http.post(CHAT, json={"messages": MESSAGES})
    text = http.get("/metrics").text
    assert 'dspark_http_responses_total{path="/v1/chat/completions",status="200"}' in text
    for name in ("accepted_tokens_total", "first_token_seconds_count", "active_requests"):
        (value,) = [
            line.split()[-1] for line in text.splitlines() if line.startswith(f"dspark_{name}")
        ]
        assert float(value) >= (0 if "active" in name else 1)
