"""/v1/completions: text that goes on, without a chat template."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ..decoder import Prompt
from ..errors import InputError
from ..serving.handle import Answer
from ..types import Chunk
from .asked import Asked
from .events import event
from .fields import Fields
from .generation import Generation
from .openai_input import sampling, schema_of, stops
from .openai_output import CompletionBase, completion_logprobs, usage
from .running import Running

_MOST_LOGPROBS = 20


def read(body: Fields, generation: Generation) -> Asked:
    """The request of a body."""
    body.refuse("suffix", "echo")
    most = generation.options.max_choices
    prompts, choices = _prompts(body), body.whole("n", 1, most) or 1
    if len(prompts) * choices > most:
        found = f"{len(prompts)} prompts with n of {choices}"
        raise InputError("prompt", found, f"{most} answers at most")
    if (best := body.whole("best_of")) not in (None, choices):
        raise InputError("best_of", best, "the same as n; the best of more is not looked for")
    settings = sampling(body)
    if (top := body.whole("logprobs", 0, _MOST_LOGPROBS)) is not None:
        settings["logprobs"] = top
    return Asked(
        prompts=prompts,
        settings=settings,
        max_tokens=body.whole("max_tokens"),
        stop=stops(body),
        choices=choices,
        schema=schema_of(body),
        raw=True,
        stream=body.flag("stream"),
    )


def _prompts(body: Fields) -> list[Prompt]:
    """The prompts: a text, several, token ids, or several lists of them."""
    value = body.get("prompt")
    if isinstance(value, str):
        prompts: list[Any] = [value]
    elif isinstance(value, list) and value:
        prompts = [value] if _is_ids(value) else value
    else:
        raise body.wrong("prompt", "text, token ids, or a list of either")
    for prompt in prompts:
        if not prompt or not (isinstance(prompt, str) or _is_ids(prompt)):
            raise body.wrong("prompt", "text, token ids, or a list of either")
    return prompts


def _is_ids(value: Any) -> bool:
    ids = isinstance(value, list) and bool(value)
    return ids and all(isinstance(each, int) and not isinstance(each, bool) for each in value)


class CompletionWriter(CompletionBase):
    """Writes completions; arguments as for `CompletionBase`."""

    def __init__(self, body: Fields, generation: Generation) -> None:
        super().__init__(body, generation, "cmpl-")
        self._head["object"] = "text_completion"

    def whole(self, running: Running, answers: list[Answer]) -> dict[str, Any]:
        """See `Writer`."""
        choices = [
            self._choice(index, answer.text, answer.chunks, answer.finish_reason)
            for index, answer in enumerate(answers)
        ]
        return {**self._head, "choices": choices, "usage": usage(running)}

    async def events(self, running: Running) -> AsyncIterator[bytes]:
        """See `Writer`."""
        offsets: dict[int, int] = {}
        async for index, chunk in running.chunks():
            offset = offsets.get(index, 0)
            choice = self._choice(index, chunk.text, (chunk,), chunk.finish_reason, offset)
            offsets[index] = offset + len(chunk.text)
            if chunk.text or choice["logprobs"] or chunk.finish_reason:
                yield event({**self._head, "choices": [choice]})
        for index in range(len(running.counts)):
            last = running.last.get(index)
            if last is None or last.finish_reason is None:
                ended = self._choice(index, "", (), running.reason(index))
                yield event({**self._head, "choices": [ended]})
        if self._with_usage:
            yield event({**self._head, "choices": [], "usage": usage(running)})
        yield event("[DONE]")

    def _choice(
        self,
        index: int,
        text: str,
        chunks: tuple[Chunk, ...],
        reason: str | None,
        offset: int = 0,
    ) -> dict[str, Any]:
        shown = self._reported(chunks)
        logprobs = None
        if shown is not None:
            logprobs = completion_logprobs(self._tokenizer, shown, offset)
        return {"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs}
