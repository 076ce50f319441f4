"""Starts the requests of all dialects on the decoder, within the server's limits."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict

from ..decoder import Decoder, Prompt
from ..errors import BusyError, ClosedError, InputError
from ..sampling.json_schema import Grammar
from ..serving.handle import RequestHandle
from .asked import Asked
from .metrics import Metrics
from .options import Options
from .refusals import Refused
from .running import Running

_GRAMMARS = 32


class Generation:
    """Starts requests on one decoder.

    Args:
        decoder: the decoder.
        options: limits and defaults.
    """

    def __init__(self, decoder: Decoder, options: Options) -> None:
        self.decoder, self.options = decoder, options
        self.metrics = Metrics(decoder)
        self._grammars: OrderedDict[str, Grammar] = OrderedDict()

    async def start(self, asked: Asked) -> Running:
        """Queue a request; encoding and grammars are made in a thread beside the event loop.

        Raises:
            InputError, BusyError, ClosedError: see `Decoder.submit`.
            Refused: the prompt leaves no room for an answer.
        """
        begun = time.monotonic()
        counts, handles = await asyncio.to_thread(self._submit, asked)
        return Running(asked, counts, handles, begun, self.options.timeout, self.metrics)

    def encode(self, asked: Asked, prompt: Prompt) -> list[int]:
        """Token ids of a prompt."""
        # A grammar begins with the answer's first token, where a target would think.
        thinking = False if asked.by_grammar else asked.thinking
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return self.decoder.encode(prompt)
        variables = {**self.options.template_kwargs, **asked.template_kwargs}
        if thinking is not None:
            variables.pop("enable_thinking", None)
        return self.decoder.encode(
            prompt, thinking=thinking, tools=asked.tools, chat_template_kwargs=variables
        )

    def _submit(self, asked: Asked) -> tuple[list[int], list[RequestHandle]]:
        settings = {**self.options.settings, **asked.settings}
        if asked.by_grammar:
            settings["logits_processors"] = (self._grammar(asked),)
        self._check_places(asked)
        samples = range(asked.choices)
        counts: list[int] = []
        handles: list[RequestHandle] = []
        try:
            for prompt in asked.prompts:
                ids = self.encode(asked, prompt)
                limit = self._longest(asked, len(ids))
                for sample in samples:
                    handle = self.decoder.submit(
                        ids,
                        limit,
                        stop=asked.stop,
                        tools=asked.tools,
                        parts=not asked.raw and asked.schema is None,
                        **{**settings, "sample": sample if settings.get("temperature") else 0},
                    )
                    handles.append(handle)
                    counts.append(len(ids))
        except (InputError, BusyError, ClosedError, Refused):
            for handle in handles:
                handle.cancel()
            raise
        return counts, handles

    def _check_places(self, asked: Asked) -> None:
        """Refuse more answers than there are places for, where no waiting helps.

        Raises:
            InputError: it names the limit.
        """
        limits, count = self.decoder.limits, len(asked.prompts) * asked.choices
        places = limits.active + limits.waiting
        if count > places:
            where = "prompt" if asked.choices == 1 else "n"
            hint = "The server's --decode-concurrency and --queue-size allow no more."
            raise InputError(where, f"{count} answers", f"{places} at most", hint)

    def _longest(self, asked: Asked, prompt_tokens: int) -> int:
        limit = min(asked.max_tokens or self.options.max_tokens, self.options.max_tokens_limit)
        positions = self.decoder.max_length
        if positions is None:
            return limit
        if prompt_tokens >= positions:
            message = f"prompt is too long: {prompt_tokens} tokens > {positions - 1} maximum"
            raise Refused(400, message, "context_length_exceeded", "messages")
        return min(limit, positions - prompt_tokens)

    def _grammar(self, asked: Asked) -> Grammar:
        """The processor of a schema or of forced calls; the last ones are kept, since agents send
        them every turn.

        Raises:
            InputError: see `Decoder.json_schema` and `Decoder.tool_grammar`; or both are asked for.
        """
        tools = [tool for tool in asked.tools or () if tool["function"]["name"] in asked.must_call]
        if asked.schema is not None and tools:
            raise InputError("tool_choice", "a forced call and a schema", "only one of the two")
        key = json.dumps([asked.schema, tools])
        made = self._grammars.pop(key, None)
        if made is None and asked.schema is not None:
            made = self.decoder.json_schema(asked.schema)
        self._grammars[key] = made = made or self.decoder.tool_grammar(tools)
        if len(self._grammars) > _GRAMMARS:
            self._grammars.popitem(last=False)
        return made
