"""The packages `openai` and `anthropic` against a server on a loopback port."""

from __future__ import annotations

import json

import pytest
from helpers.http_served import MESSAGES, TOOLS, WEATHER, listening
from helpers.served import TEXT

pytestmark = pytest.mark.slow
openai = pytest.importorskip("openai", reason="the extra dev-server is not installed")
anthropic = pytest.importorskip("anthropic", reason="the extra dev-server is not installed")
pytest.importorskip("uvicorn", reason="the extra server is not installed")
KEY = "a key"
ANY = {"type": "any"}
CITY = {"city": {"type": "string"}}
SCHEMA = {"type": "object", "properties": CITY, "required": ["city"], "additionalProperties": False}
STRICT = {"name": "weather", "parameters": SCHEMA}
INPUT_TOOL = {"name": "weather", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with listening(tmp_path_factory.mktemp("served"), api_key=KEY) as (made, _):
        yield made


@pytest.fixture(scope="module")
def of_openai(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def of_anthropic(address):
    with anthropic.Anthropic(base_url=address, api_key=KEY, max_retries=0) as made:
        yield made


def test_openai_chat(of_openai):
    """A field that the client's types do not take."""
    found = of_openai.chat.completions.create(model="toy", messages=MESSAGES, logprobs=True, n=2)
    assert [choice.message.content for choice in found.choices] == [TEXT, TEXT]
    assert found.usage.completion_tokens_details.accepted_prediction_tokens > 0
    pieces = of_openai.chat.completions.create(
        model="toy", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(pieces)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert chunks[-1].usage.total_tokens > 0


def test_openai_tools_and_back(of_openai):
    """A conversation with a tool, as agents hold it, streamed through the client's helper."""
    asked = {"model": "toy", "tools": TOOLS}
    with of_openai.chat.completions.stream(messages=MESSAGES, **asked) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    forced = {"tool_choice": {"type": "function", "function": {"name": "weather"}}}
    strict = {"model": "toy", "tools": [{"type": "function", "function": STRICT}]}
    for choice in ({"tool_choice": "required"}, forced):
        found = of_openai.chat.completions.create(messages=MESSAGES, **strict, **choice)
        assert found.choices[0].message.tool_calls[0].function.name == "weather"
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turns = [*MESSAGES, message.to_dict(), result]
    answer = of_openai.chat.completions.create(model="toy", messages=turns)
    assert answer.choices[0].message.content == TEXT


def test_openai_responses_completions_models(of_openai):
    """The client's newer and older forms."""
    assert of_openai.responses.create(model="toy", input="hi").output_text == TEXT
    tool = {"type": "function", "strict": False, **WEATHER}
    with of_openai.responses.stream(model="toy", input="hi", tools=[tool]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds and final.status == "completed"
    assert final.output[-1].name == "weather"
    plain = of_openai.completions.create(model="toy", prompt="Hello", max_tokens=4)
    assert plain.choices[0].finish_reason == "length"
    assert [model.id for model in of_openai.models.list()] == ["toy"]


def test_openai_errors(address, of_openai):
    """Errors that the client takes for the server's."""
    with pytest.raises(openai.BadRequestError, match="temperature"):
        of_openai.chat.completions.create(model="toy", messages=MESSAGES, temperature=-1)
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="no", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()


def test_anthropic_messages(of_anthropic):
    """Blocks and events of the client's types."""
    asked = {"model": "toy", "max_tokens": 60, "messages": MESSAGES}
    found = of_anthropic.messages.create(**asked)
    assert [block.text for block in found.content] == [TEXT] and found.stop_reason == "end_turn"
    thinking = {"type": "enabled", "budget_tokens": 1024}
    with of_anthropic.messages.stream(thinking=thinking, **asked | {"max_tokens": 2000}) as stream:
        assert "".join(stream.text_stream) == TEXT
        assert stream.get_final_message().content[0].thinking == "Let me see"
    assert of_anthropic.messages.count_tokens(model="toy", messages=MESSAGES).input_tokens > 0


def test_anthropic_tools_and_back(of_anthropic):
    """A conversation with a tool, streamed."""
    asked = {"model": "toy", "max_tokens": 60, "tools": [INPUT_TOOL]}
    with of_anthropic.messages.stream(messages=MESSAGES, **asked) as stream:
        message = stream.get_final_message()
    forced = of_anthropic.messages.create(
        model="toy",
        max_tokens=200,
        messages=MESSAGES,
        tools=[{"name": "weather", "input_schema": SCHEMA}],
        tool_choice=ANY,
    )
    assert forced.stop_reason == "tool_use" and forced.content[0].name == "weather"
    call = message.content[-1]
    assert call.input == {"city": "Paris"} and message.stop_reason == "tool_use"
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": message.content},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}],
        },
    ]
    del asked["tools"]
    assert of_anthropic.messages.create(messages=turns, **asked).content[0].text == TEXT
    with pytest.raises(anthropic.BadRequestError, match="tool_choice"):
        of_anthropic.messages.create(
            messages=MESSAGES,
            tools=[INPUT_TOOL],
            tool_choice={"type": "tool", "name": "other"},
            model="x",
            max_tokens=1,
        )
