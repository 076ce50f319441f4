"""What the server allows and assumes, as its flags say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Options:
    """Limits and defaults of a server.

    Attributes:
        name: the served model's id in answers and in /v1/models.
        hosts: names that the Host header may have, without a port.
        origins: web origins that may call the server beside its own, as "http://localhost:3000".
        api_key: requests need it, as a bearer token or in x-api-key; None asks for none.
        max_body_bytes: longest body of a request.
        max_tokens: longest answer of a request that names no length.
        max_tokens_limit: longest answer of all.
        max_choices: number of answers that one request may ask for.
        timeout: seconds after which an answer ends where it is.
        body_timeout: seconds that a client gets to send its request's body.
        write_timeout: seconds that a client gets to take a part of its answer.
        keepalive: seconds of silence after which a stream sends a comment.
        settings: settings of requests that do not name them.
        template_kwargs: variables of the chat template, under those of a request.
    """

    name: str
    hosts: frozenset[str] = frozenset({"127.0.0.1", "localhost", "::1"})
    origins: frozenset[str] = frozenset()
    api_key: str | None = None
    max_body_bytes: int = 8 << 20
    max_tokens: int = 2048
    max_tokens_limit: int = 32768
    max_choices: int = 16
    timeout: float = 1800.0
    body_timeout: float = 30.0
    write_timeout: float = 60.0
    keepalive: float = 10.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
