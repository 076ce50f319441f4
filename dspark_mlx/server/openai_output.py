"""What OpenAI's dialects share in answers: ids, usage, log-probabilities."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from typing import Any

from ..text.tokenizer import Tokenizer
from ..types import Chunk, TokenLogProb
from .fields import Fields
from .generation import Generation
from .running import Running

_LOWEST = -9999.0
"""OpenAI's number for a token that cannot come."""


def new_id(prefix: str) -> str:
    """An id that no other answer has."""
    return f"{prefix}{secrets.token_hex(12)}"


class CompletionBase:
    """What writers of chat completions and of completions share.

    Args:
        body: the request's body, for what it wants streamed.
        generation: gives the model's name and the tokenizer.
        prefix: beginning of the answer's id.
    """

    def __init__(self, body: Fields, generation: Generation, prefix: str) -> None:
        options = body.object("stream_options")
        self._with_usage = options.flag("include_usage") if options else False
        self._tokenizer = generation.decoder.tokenizer
        self._ends = generation.decoder.stop_tokens
        self._head: dict[str, Any] = {
            "id": new_id(prefix),
            "created": int(time.time()),
            "model": generation.options.name,
        }

    def _reported(self, chunks: tuple[Chunk, ...]) -> list[TokenLogProb | None] | None:
        """Log-probabilities of the tokens that are text; None where they were not asked for."""
        if not any(chunk.logprobs for chunk in chunks):
            return None
        return [chunk.logprobs for chunk in chunks if chunk.token not in self._ends]


def totals(running: Running) -> tuple[int, int, int, int, int]:
    """Sums over a request's answers: prompt, cached, generated, accepted and rejected tokens.

    The answers to one prompt share it, so that it counts once. Rejected are drafted tokens that
    were verified and not accepted.
    """
    every = [running.statistics(index) for index in range(len(running.counts))]
    prompts = every[:: running.asked.choices]
    return (
        sum(one.prompt_tokens for one in prompts),
        sum(one.cached_tokens for one in prompts),
        sum(one.generation_tokens for one in every),
        sum(one.accepted for one in every),
        sum(one.scheduled - one.accepted for one in every),
    )


def usage(running: Running) -> dict[str, Any]:
    """The usage of chat completions and completions."""
    prompt, cached, generated, accepted, rejected = totals(running)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {
            "reasoning_tokens": running.reasoning_tokens,
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": rejected,
        },
    }


def chat_logprobs(tokenizer: Tokenizer, tokens: Iterable[TokenLogProb | None]) -> dict[str, Any]:
    """Log-probabilities of tokens as chat completions have them."""
    content = []
    for one in tokens:
        if one is not None:
            top = [_token(tokenizer, id_, value) for id_, value in one.top]
            content.append(_token(tokenizer, one.token, one.logprob) | {"top_logprobs": top})
    return {"content": content}


def completion_logprobs(
    tokenizer: Tokenizer, tokens: Iterable[TokenLogProb | None], offset: int = 0
) -> dict[str, Any]:
    """Log-probabilities of tokens as completions have them."""
    found: dict[str, Any] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for one in tokens:
        if one is None:
            continue
        text = tokenizer.decode([one.token])
        found["tokens"].append(text)
        found["token_logprobs"].append(_number(one.logprob))
        found["top_logprobs"].append({tokenizer.decode([id_]): _number(v) for id_, v in one.top})
        found["text_offset"].append(offset)
        offset += len(text)
    return found


def _token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    text = tokenizer.decode([token])
    # A token may be a part of a character, whose bytes its text does not show.
    whole = "\ufffd" not in text
    return {
        "token": text,
        "logprob": _number(logprob),
        "bytes": list(text.encode()) if whole else None,
    }


def _number(logprob: float) -> float:
    return max(logprob, _LOWEST)
