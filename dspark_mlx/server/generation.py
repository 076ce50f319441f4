"""Starts the requests of all dialects on the decoder, within the server's limits."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ..decoder import Decoder, Prompt
from ..errors import BusyError, ClosedError, InputError
from ..sampling.json_schema import JsonSchema
from ..serving.handle import RequestHandle
from .asked import Asked
from .metrics import Metrics
from .options import Options
from .refusals import Refused
from .running import Running

_SCHEMAS = 32


class Generation:
    """Starts requests on one decoder.

    Args:
        decoder: the decoder.
        options: limits and defaults.
    """

    def __init__(self, decoder: Decoder, options: Options) -> None:
        self.decoder, self.options = decoder, options
        self.metrics = Metrics(decoder)
        self._schemas: OrderedDict[str, JsonSchema] = OrderedDict()

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
        thinking = asked.thinking if asked.schema is None else False
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
        if asked.schema is not None:
            settings["logits_processors"] = (self._grammar(asked.schema),)
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

    def _longest(self, asked: Asked, prompt_tokens: int) -> int:
        limit = min(asked.max_tokens or self.options.max_tokens, self.options.max_tokens_limit)
        positions = self.decoder.max_length
        if positions is None:
            return limit
        if prompt_tokens >= positions:
            message = f"prompt is too long: {prompt_tokens} tokens > {positions - 1} maximum"
            raise Refused(400, message, "context_length_exceeded", "messages")
        return min(limit, positions - prompt_tokens)

    def _grammar(self, schema: Mapping[str, Any]) -> JsonSchema:
        """The processor of a schema; the last ones are kept, since agents send them every turn."""
        key = json.dumps(schema)
        made = self._schemas.pop(key, None) or self.decoder.json_schema(schema)
        self._schemas[key] = made
        if len(self._schemas) > _SCHEMAS:
            self._schemas.popitem(last=False)
        return made
