"""Counters of the server in Prometheus' text format."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..decoder import Decoder
from ..types import Statistics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The metrics of one server, in a registry of their own.

    Args:
        decoder: asked for the requests that decode and that wait.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._registry = CollectorRegistry()
        named: dict[str, Any] = {"registry": self._registry, "namespace": "dspark"}
        self._responses = Counter(
            "http_responses", "HTTP responses by path and status", ["path", "status"], **named
        )
        self._ends = Counter("answers", "Answers by the reason of their end", ["reason"], **named)
        self._prompt = Counter("prompt_tokens", "Tokens of prompts", **named)
        self._cached = Counter("cached_tokens", "Tokens of prompts not read again", **named)
        self._tokens = Counter("generated_tokens", "Tokens of answers", **named)
        self._rounds = Counter("rounds", "Rounds after the prefill", **named)
        self._drafted = Counter("drafted_tokens", "Drafted tokens", **named)
        self._verified = Counter("verified_tokens", "Drafted tokens that were verified", **named)
        self._accepted = Counter("accepted_tokens", "Drafted tokens that were accepted", **named)
        self._first = Histogram(
            "first_token_seconds", "Seconds to the first token", buckets=_SECONDS, **named
        )
        active = Gauge("active_requests", "Requests that decode", **named)
        active.set_function(lambda: decoder.requests_now[0])
        waiting = Gauge("waiting_requests", "Requests that wait", **named)
        waiting.set_function(lambda: decoder.requests_now[1])

    def response(self, path: str, status: int) -> None:
        """Count a response."""
        self._responses.labels(path, str(status)).inc()

    def first_token(self, seconds: float) -> None:
        """Count the time from a request's arrival to its first token."""
        self._first.observe(seconds)

    def answer(self, statistics: Statistics, reason: str) -> None:
        """Count an answer that has ended."""
        self._ends.labels(reason).inc()
        self._prompt.inc(statistics.prompt_tokens)
        self._cached.inc(statistics.cached_tokens)
        self._tokens.inc(statistics.generation_tokens)
        self._rounds.inc(statistics.rounds)
        self._drafted.inc(statistics.drafted)
        self._verified.inc(statistics.scheduled)
        self._accepted.inc(statistics.accepted)

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self._registry)
