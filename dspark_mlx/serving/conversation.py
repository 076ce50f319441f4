"""A conversation that an app holds: messages go in, chunks of answers come out."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..numbers import shown
from ..types import Chunk


class Conversation:
    """Keeps the messages of one conversation; `Decoder.conversation` makes one.

    What was read and written before is not read again where the decoder keeps prompts.

    Args:
        stream: `Decoder.stream` or a function like it.
        messages: what it begins with, a system message for example.
        settings: keyword arguments of `stream` for every answer.

    Raises:
        InputError: the messages are no list of messages.

    Attributes:
        messages: all messages so far, as chat templates take them.
    """

    def __init__(
        self,
        stream: Callable[..., Iterator[Chunk]],
        messages: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
    ) -> None:
        self.messages = _copied("messages", messages)
        self._stream, self._settings = stream, dict(settings)
        # Not held, so that an answer whose reader drops it ends there.
        self._answer: weakref.ref[Generator[Chunk, None, None]] | None = None

    def send(
        self, message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]], **settings: Any
    ) -> Generator[Chunk, None, None]:
        """Send a message and yield the answer, which becomes a message itself.

        An answer that is left early stays as far as it was read; the next message ends it.

        Args:
            message: the user's text; or a message, or several, as the results of tools are.
            settings: keyword arguments of `stream` for this answer.

        Raises:
            InputError: at once, for a message or setting that cannot be used; or while the answer
                is read. The messages stay as they were.
        """
        before = self._answer() if self._answer is not None else None
        if before is not None:
            before.close()
        if isinstance(message, str):
            message = {"role": "user", "content": message}
        several = [message] if isinstance(message, Mapping) else message
        new = _copied("message", several, "a text, a message, or a list of messages")
        if not new:
            raise InputError("message", "none", "at least one message")
        asked = [*self.messages, *new]
        answer = self._answered(asked, self._stream(asked, **{**self._settings, **settings}))
        self._answer = weakref.ref(answer)
        return answer

    def _answered(
        self, asked: list[dict[str, Any]], chunks: Iterator[Chunk]
    ) -> Generator[Chunk, None, None]:
        read: list[Chunk] = []
        counts = False
        try:
            for chunk in chunks:
                read.append(chunk)
                yield chunk
            counts = True
        except (GeneratorExit, KeyboardInterrupt):
            counts = True  # it is left early
            raise
        finally:
            if read and counts:
                self.messages = [*asked, message_of(read)]


def _copied(
    where: str, messages: Any, expected: str = "a list of messages"
) -> list[dict[str, Any]]:
    """Copies of messages, which are mappings, or objects of API clients."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes | bytearray):
        raise InputError(where, shown(messages), expected)
    found = []
    for index, each in enumerate(messages):
        message = each.model_dump() if hasattr(each, "model_dump") else each
        if not isinstance(message, Mapping):
            wanted = 'a message with "role" and "content"'
            raise InputError(f"{where}[{index}]", shown(each), wanted)
        found.append(dict(message))
    return found


def message_of(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """The assistant's message that chunks make, as chat templates take it."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(chunk.content for chunk in chunks),
    }
    if reasoning := "".join(chunk.reasoning for chunk in chunks):
        message["reasoning_content"] = reasoning
    if calls := [call for chunk in chunks for call in chunk.tool_calls]:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    return message
