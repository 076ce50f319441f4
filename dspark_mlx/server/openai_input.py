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
    return found


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
            texts.append(fields.text("text") or "")
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


def may_call(body: Fields) -> bool:
    """Whether tools may be called, of the field tool_choice.

    Raises:
        InputError: a call is demanded, which the decoder cannot force.
    """
    choice = body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise body.wrong("tool_choice", '"auto" or "none"; a call cannot be forced')
    return choice != "none"


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
