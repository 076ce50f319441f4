"""Frozen records that modules pass to each other; their only behaviour is derived numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import mlx.core as mx


class Fault(IntEnum):
    """Why no token can be chosen from a row of logits; 0 where one can."""

    TARGET = 1
    """The target's logits are NaN, infinite, or all -inf."""
    PROCESSOR = 2
    """The target's logits are finite, but a logits processor returned NaN or +inf."""
    NOTHING_LEFT = 3
    """The logits processors set every token to -inf."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A drafted block, still on the device (paper, section 3.1).

    Attributes:
        tokens: proposed token ids, int32 `[gamma]`.
        base_logits: logits before the sequential head, `[gamma, size]`. The device computes them
            while Python builds the verify forward.
        logits: corrected logits (base + sequential bias), `[gamma, size]`.
        columns: the logits' column of each proposed token, int32 `[gamma]`.
        confidence_logits: confidence head's output before calibration, float32 `[gamma]`; None
            for a drafter without a confidence head.
        confidence: calibrated chance that each token survives given that its prefix did, float32
            `[gamma]`; None for a drafter without a confidence head.
        ids: token id of each of the `size` columns of the logits, int32 `[size]`, or
            `[gamma, size]` where each slot has columns of its own; None when the columns are the
            whole vocabulary.
        weights: log-weights that the tokens were sampled from, float32 `[gamma, size]`; their
            softmax is q. None for a greedy draft and under the rule of equality, which do not
            need q.
    """

    tokens: mx.array
    base_logits: mx.array
    logits: mx.array
    columns: mx.array
    confidence_logits: mx.array | None = None
    confidence: mx.array | None = None
    ids: mx.array | None = None
    weights: mx.array | None = None


@dataclass(frozen=True)
class TokenLogProb:
    """The target's log-probabilities at the position of a committed token.

    They are taken after the logits processors and before temperature and filters.

    Attributes:
        token: id of the committed token.
        logprob: log-probability of the committed token.
        top: ids and log-probabilities of the likeliest tokens, the likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The outcome of a verify forward, read back to the host.

    Attributes:
        accepted: how many drafted tokens survived, 0..scheduled.
        tokens: the committed tokens: the accepted ones, then the correction or the bonus.
        confidence: per drafted token, the chance that it survives given that its prefix
            did; empty without a confidence head.
        logprobs: log-probabilities at the committed tokens; empty unless the request asks for them.
        faults: a `Fault` for the row that each committed token was chosen from; 0 for a sound row.
        drafts_finite: False where the logits of a verified draft are not finite, or a confidence is
            NaN.
    """

    accepted: int
    tokens: tuple[int, ...]
    confidence: tuple[float, ...]
    logprobs: tuple[TokenLogProb, ...] = ()
    faults: tuple[int, ...] = ()
    drafts_finite: bool = True


@dataclass(frozen=True)
class Decision:
    """Why a scheduler chose a round's verify length.

    Attributes:
        reason: why it drafts, or why it does not.
        survival: chances that the target accepts the block's first k tokens, for each k that could
            be verified; empty for a plain step.
        milliseconds: what the round was expected to take for each verify length from 0 on; empty
            for a plain step.
        seconds: what the round was expected to take.
    """

    reason: str
    survival: tuple[float, ...]
    milliseconds: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Round:
    """One round: draft, schedule, verify, commit.

    Attributes:
        tokens: token ids committed, in order; never past `max_tokens` or a stop token.
        drafted: tokens the drafter proposed (gamma, or 0 for a plain step and for the prefill).
        scheduled: proposed tokens that were verified.
        accepted: verified tokens that survived and were committed.
        confidence: per drafted token, the chance that it survives given that its prefix did; empty
            without a confidence head.
        prefill: True for the first round of a request, which holds the prefill's token and does
            not count in the accepted length.
        seconds: wall-clock seconds of the round (of the prefill for the first one).
        steady: False for a plain step that was not started before the last one was read, or did not
            start the next one before it was read itself. Its seconds are those of two forwards, or
            of none, and say nothing of what a step takes.
        host_seconds: the part of `seconds` that Python spends on draft, head, accept, commit and
            context update; building the target's own forward does not count.
        logprobs: log-probabilities at the committed tokens; empty unless the request asks for them.
        drafts_finite: False when some of the drafter's numbers are NaN or infinite. Such drafts
            are rejected, and such confidences are 0.
        rollback_seconds: the part of `host_seconds` that cutting the target's caches back took.
            Where states run again over the kept rows, most of that is in it on MLX's CPU backend;
            a GPU computes them while Python goes on, and the speed profile has their time.
        target_bytes_per_token, drafter_bytes_per_token: bytes that each further position of the
            context takes in their caches, in a prefill's round; windows and recurrent states stop
            growing and do not count.
        proposer: name of what proposed the tokens; "" for a plain step.
        decision: why the verify length was chosen; None where the scheduler does not say.
        cached_tokens: in a prefill's round, tokens of the prompt that were kept from earlier
            requests and not read again.
    """

    tokens: tuple[int, ...]
    drafted: int = 0
    scheduled: int = 0
    accepted: int = 0
    confidence: tuple[float, ...] = ()
    prefill: bool = False
    seconds: float = 0.0
    steady: bool = True
    host_seconds: float = 0.0
    logprobs: tuple[TokenLogProb, ...] = ()
    drafts_finite: bool = True
    rollback_seconds: float = 0.0
    target_bytes_per_token: int = 0
    drafter_bytes_per_token: int = 0
    proposer: str = ""
    decision: Decision | None = None
    cached_tokens: int = 0


@dataclass(frozen=True)
class Statistics:
    """Totals of a request up to now.

    Attributes:
        prompt_tokens: tokens of the prompt.
        prompt_seconds: seconds until the first token.
        generation_tokens: tokens committed, the prefill's included.
        generation_seconds: seconds after the first token.
        rounds: rounds after the prefill.
        blocks: rounds that drafted; the other rounds were plain steps.
        drafted, scheduled, accepted: sums over the rounds.
        host_seconds, rollback_seconds: sums of the same of the rounds after the prefill.
        peak_memory: MLX's peak memory in bytes.
        target_bytes_per_token, drafter_bytes_per_token: see `Round`.
        blocks_by: blocks by the name of their proposer.
        predicted_seconds: what the scheduler expected the rounds to take that it predicted.
        taken_seconds: what those rounds took.
        cached_tokens: tokens of the prompt that were kept from earlier requests and not read again.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    generation_tokens: int = 0
    generation_seconds: float = 0.0
    rounds: int = 0
    blocks: int = 0
    drafted: int = 0
    scheduled: int = 0
    accepted: int = 0
    host_seconds: float = 0.0
    peak_memory: int = 0
    rollback_seconds: float = 0.0
    target_bytes_per_token: int = 0
    drafter_bytes_per_token: int = 0
    blocks_by: Mapping[str, int] = field(default_factory=dict)
    predicted_seconds: float = 0.0
    taken_seconds: float = 0.0
    cached_tokens: int = 0

    def cut(self, tokens: int, accepted: int) -> Statistics:
        """The totals of a text that ends before its last round does.

        Args:
            tokens: tokens of the text.
            accepted: those of them that were drafted; other drafts count as rejected.
        """
        return replace(self, generation_tokens=tokens, accepted=accepted)

    @property
    def parked_share(self) -> float:
        """Share of the rounds that were plain steps; 0 without rounds."""
        return 1 - self.blocks / self.rounds if self.rounds else 0.0

    @property
    def accepted_length(self) -> float:
        """Mean tokens committed per round after the prefill (tau); 0 without such rounds."""
        return (self.generation_tokens - 1) / self.rounds if self.rounds else 0.0

    @property
    def rollback_share(self) -> float:
        """The part of the generation's time that cutting the caches back took, see `Round`."""
        return self.rollback_seconds / self.generation_seconds if self.generation_seconds else 0.0

    @property
    def prompt_tps(self) -> float:
        """Prompt tokens that were read per second."""
        read = self.prompt_tokens - self.cached_tokens
        return read / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def generation_tps(self) -> float:
        """Tokens per second after the first one."""
        if not self.generation_seconds:
            return 0.0
        return (self.generation_tokens - 1) / self.generation_seconds


@dataclass(frozen=True)
class ToolCall:
    """A function that the target wants called.

    Attributes:
        name: the function's name, as the target wrote it.
        arguments: the arguments by name, plain JSON data.
        id: tells the call from the others of a conversation.
    """

    name: str
    arguments: dict[str, Any]
    id: str


@dataclass(frozen=True)
class Chunk:
    """One token's piece of streamed text; field names are mlx-lm's where both have one.

    Attributes:
        text: text that became final; may be empty while a character or a stop string is undecided.
        token: the token id.
        from_draft: True when the token was drafted and accepted.
        round: index of the round that committed it; 0 is the prefill.
        statistics: totals up to and including that round.
        finish_reason: None until the last chunk, then "stop", "length" or, after a tool call,
            "tool_calls".
        logprobs: the target's log-probabilities at this token; None unless the request asks for
            them.
        content: the part of the text that is for the user; all of it, where the target's format
            has no reasoning and the request no tools.
        reasoning: the part of the text that the target thinks in, without its markers.
        tool_calls: calls that became complete.
        stop_string: the stop string that ended the text, in the last chunk.
    """

    text: str
    token: int
    from_draft: bool
    round: int
    statistics: Statistics
    finish_reason: str | None = None
    logprobs: TokenLogProb | None = None
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    stop_string: str | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.statistics.prompt_tokens

    @property
    def prompt_tps(self) -> float:
        """Prompt tokens per second."""
        return self.statistics.prompt_tps

    @property
    def generation_tokens(self) -> int:
        """Tokens committed up to the end of this chunk's round."""
        return self.statistics.generation_tokens

    @property
    def generation_tps(self) -> float:
        """Generated tokens per second after the first one."""
        return self.statistics.generation_tps

    @property
    def peak_memory(self) -> float:
        """Peak memory in gigabytes."""
        return self.statistics.peak_memory / 1e9
