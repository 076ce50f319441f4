"""Reads what OpenAI's dialects share: sampling, tools, formats, and the text of content parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..numbers import shown
from ..text.messages import check_text
from .fields import Fields

SAME = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "xtc_probability", "xtc_threshold"),
    *("repetition_penalty", "repetition_context_size", "presence_penalty", "frequency_penalty"),
    *("presence_context_size", "frequency_context_size"),
)
"""Settings whose fields have this package's names; mlx_lm.server has the same ones."""
_MAX_STOPS = 16
_MAX_REFERENCE = 1 << 18
"""An index of references takes some hundred bytes a token, for each request that waits."""
_RESERVED = {
    *("self", "messages", "tools", "tokenize", "add_generation_prompt", "chat_template"),
    *("conversation", "documents", "return_dict", "tokenizer_kwargs"),
}
_TEXTS = ("text", "input_text", "output_text")


def sampling(body: Fields) -> dict[str, Any]:
    """The decoder's settings that a body names; the decoder checks them."""
    found = {name: body.get(name) for name in SAME if body.get(name) is not None}
    if (bias := body.object("logit_bias")) is not None:
        try:
            found["logit_bias"] = {int(token): value for token, value in bias.data.items()}
        except ValueError as error:
            raise body.wrong("logit_bias", "token ids as keys, numbers as values") from error
    return found | references(body)


def references(body: Fields) -> dict[str, Any]:
    """The decoder's setting `reference`: texts that an answer may quote.

    They are the field "reference", which other servers do not have, and OpenAI's "prediction".
    """
    given = body.get("reference")
    texts = [given] if isinstance(given, str) else given
    if texts is not None and not isinstance(texts, list):
        raise body.wrong("reference", "a text, or a list of texts")
    place = body.place("reference")
    found = [text_of(f"{place}[{index}]", text) for index, text in enumerate(texts or [])]
    prediction = body.object("prediction")
    if prediction is not None:
        found.append(text_of(prediction.place("content"), prediction.get("content")))
    length = sum(map(len, found))
    if length > _MAX_REFERENCE:
        raise InputError(place, f"{length} characters", f"{_MAX_REFERENCE} at most")
    return {"reference": [text for text in found if text]} if length else {}


def stops(body: Fields, name: str = "stop") -> tuple[str, ...]:
    """The strings that end an answer: none, one or several."""
    value = body.get(name)
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > _MAX_STOPS:
        raise body.wrong(name, f"a string, or a list of {_MAX_STOPS} at most")
    if not all(isinstance(each, str) for each in found):
        raise body.wrong(name, "strings")
    return tuple(each for each in found if each)


def text_of(where: str, content: Any) -> str:
    """The text of a content: text, or a list of parts of text.

    Raises:
        InputError: a part is an image, a file or anything else; none is ever fetched.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return check_text(where, content)
    if not isinstance(content, list):
        raise InputError(where, shown(content), "text, or a list of parts")
    texts = []
    for index, part in enumerate(content):
        fields = Fields(part, f"{where}[{index}]")
        kind = fields.get("type")
        if kind == "refusal":
            texts.append(fields.required_text("refusal"))
        elif kind in _TEXTS:
            texts.append(fields.given_text("text"))
        else:
            found = f"a part of type {shown(kind)}"
            raise InputError(
                fields.place("type"), found, "text; images, sound and files are not read"
            )
    return "".join(texts)


def function_tool(function: Fields, schema: str = "parameters") -> dict[str, Any]:
    """A tool in the form that chat templates take, from the fields of its function.

    Args:
        function: the fields.
        schema: the field with the JSON schema of the arguments.
    """
    name = function.required_text("name")
    parameters = function.object(schema)
    plain: dict[str, Any] = {"name": name, "description": function.text("description") or ""}
    plain["parameters"] = parameters.data if parameters else {"type": "object", "properties": {}}
    return {"type": "function", "function": plain}


def tool_choice(body: Fields, tools: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields of `Asked` that tools and the field tool_choice make.

    Args:
        body: of the request.
        tools: of the request, as `function_tool` makes them.
    """
    choice = body.get("tool_choice")
    if choice in (None, "auto", "none"):
        return {"tools": tools if tools and choice != "none" else None}
    name = None
    if isinstance(choice, dict):
        fields = Fields(choice, body.place("tool_choice"))
        if fields.get("type") != "function":
            raise fields.wrong("type", '"function"')
        name = (fields.object("function") or fields).required_text("name")
    elif choice != "required":
        raise body.wrong("tool_choice", '"auto", "none", "required", or a function by its name')
    return {"tools": tools, "must_call": must_call(tools, name)}


def must_call(tools: list[dict[str, Any]], name: str | None = None) -> tuple[str, ...]:
    """Names of the tools of which one must be called: all, or one.

    Raises:
        InputError: there is no tool, or none of this name.
    """
    known = [tool["function"]["name"] for tool in tools]
    if not known or (name is not None and name not in known):
        found = "a call without tools" if not known else f"the tool {shown(name)}"
        raise InputError("tool_choice", found, "a tool of this request")
    return tuple(known) if name is None else (name,)


def schema_of(body: Fields, name: str = "response_format") -> Mapping[str, Any] | None:
    """The JSON schema that an answer follows; None for text."""
    format = body.object(name)
    kind = format.choice("type", ("text", "json_object", "json_schema")) if format else None
    if format is None or kind in (None, "text"):
        return None
    if kind == "json_object":
        return {"type": "object"}
    # The chat dialect has the schema one level deeper than the responses dialect.
    inner = format.object("json_schema") or format
    schema = inner.object("schema")
    if schema is None:
        raise inner.wrong("schema", "a JSON schema")
    return schema.data


def template_variables(body: Fields) -> dict[str, Any]:
    """Variables of the chat template, without those that are the server's own."""
    variables = body.object("chat_template_kwargs")
    if variables is None:
        return {}
    taken = sorted(_RESERVED & set(variables.data))
    if taken:
        raise InputError(variables.place(taken[0]), "a name of the server's own", "another name")
    if not all(name.isidentifier() for name in variables.data):
        raise body.wrong("chat_template_kwargs", "names of variables")
    return dict(variables.data)


def thinking_of(effort: str | None) -> bool | None:
    """Whether a target thinks first, of a reasoning effort; None leaves that to the template."""
    return False if effort == "none" else None
