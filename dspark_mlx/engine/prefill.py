"""Runs the prompt in chunks and chooses a request's first token."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..caches import bytes_per_token, cache_arrays
from ..progress import ProgressCallback
from ..reuse.kept import Reading
from ..targets.tap import Forward
from ..types import Round
from ..vision.encoder import EmbeddedPrompt, ImagePrompt
from .faults import refuse_faults
from .group import Solo
from .verify import commit, start_verify

_LONG_CHUNK = 256


class Prefill:
    """Reads a new request's prompt, a chunk at a time, so that others need not wait for all of it.

    Args:
        group: the request alone.
        prompt: token ids, at least one.
        chunk_size: prompt tokens per forward.
        progress: called with prompt tokens done and prompt tokens in all; None for no calls.
        images: the prompt with its images, of the same tokens; None where it has none.
        kept: what is kept of the prompt, which the state holds already; None for nothing.
    """

    def __init__(
        self,
        group: Solo,
        prompt: Sequence[int],
        chunk_size: int,
        progress: ProgressCallback | None,
        images: ImagePrompt | None = None,
        kept: Reading | None = None,
    ) -> None:
        self._group = group
        self._tokens = mx.array(list(prompt), dtype=mx.int32)
        self.chunk_size = chunk_size
        self._progress = progress
        self._kept = kept
        self._read = self._read_before = kept.length if kept else 0
        self._images = images
        self._embedded: EmbeddedPrompt | None = None
        self._whole = group.engine.target.reads_by_chunk(len(prompt))

    def next_size(self, most: int) -> int:
        """Prompt tokens that the next step reads where it may read so many.

        A whole chunk where the text depends on how the prompt is cut, as it is cut alone.
        """
        size = self.chunk_size if self._whole else min(self.chunk_size, most)
        return max(min(size, self._tokens.size - 1 - self._read), 1)

    def step(self, most: int | None = None) -> Round | None:
        """Read a chunk; behind the last one choose the first token and return its round.

        Only the last row's logits are computed.

        Args:
            most: prompt tokens to read, see `next_size`; None for a whole chunk.

        Raises:
            InputError: see `faults.refuse_faults`.
        """
        last, start = self._tokens.size - 1, self._read
        target = self._group.engine.target
        if start < last:
            self._report(start)
            with target.turns:
                end = start + self.next_size(most or self.chunk_size)
                end, forward = self._next_chunk(start, end)
                self._read_chunk(self._tokens[start:end], forward)
                if self._kept:
                    self._kept.note(end, last=end == last)
            self._read = end
            if end < last:
                return None
        (state,) = self._group.states
        state.anchor_index, state.anchor = last, self._tokens[last:]
        state.prefix = self._tokens if state.sampler.needs_prefix else None
        with target.turns:
            (verdict,) = commit(self._group, start_verify(self._group))
        assert verdict is not None  # what fails alone is raised
        refuse_faults(self._group.engine, verdict.faults, last + 1)
        self._report(last + 1)
        speculation = state.speculation
        return Round(
            verdict.tokens,
            prefill=True,
            seconds=self._group.timer.seconds,
            logprobs=verdict.logprobs,
            cached_tokens=self._read_before,
            target_bytes_per_token=bytes_per_token(state.caches),
            drafter_bytes_per_token=speculation.context.bytes_per_token if speculation else 0,
        )

    def _next_chunk(self, start: int, end: int) -> tuple[int, Forward | None]:
        """Where the chunk ends that is to end at `end`, and its forward, if it has its own."""
        if self._images is None:
            return self._kept.next_stop(start, end) if self._kept else end, None
        if self._embedded is None:
            self._embedded = self._images.embed()
            self._group.states[0].forward = self._embedded.family.later
        end = min(self._embedded.family.end_of_chunk(end), self._tokens.size - 1)
        return end, self._embedded.forward(start, end)

    def _read_chunk(self, chunk: mx.array, forward: Forward | None) -> None:
        (state,) = self._group.states
        _, taps = self._group.engine.target(chunk, state.caches, forward)
        if state.speculation:
            drafter, context = state.speculation.drafter, state.speculation.context
            drafter.extend(context, taps, chunk)
            drafter.flush(context)
            mx.eval(context.arrays())
        mx.eval(cache_arrays(state.caches))
        # What a long chunk needed would stay in MLX's cache. That of a short one is soon used
        # again, and a GPU takes milliseconds to get memory anew.
        if chunk.size >= _LONG_CHUNK:
            mx.clear_cache()

    def _report(self, done: int) -> None:
        if self._progress:
            self._progress(done, self._tokens.size)
