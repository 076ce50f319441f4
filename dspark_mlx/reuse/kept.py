"""The kept prompts of an engine: one store for all its requests, conversations and threads."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from ..caches import leaves
from ..caches.trimmable import is_unwritten
from ..drafters.base import Drafter, DrafterContext
from ..targets.model_arrays import ModelArrays
from .disk import Disk
from .parts import Border, Layout, border_of, layout_of, restore, rows_of
from .tree import Hit, Tokens, Tree

BORDER_STEP = 1024
"""The least number of prompt tokens between two borders that are kept for their own sake."""

MOST_ARRAYS = 100_000
"""The most arrays that are kept, however small: MLX has no more than 499,000 buffers at a time on
Metal, and raises an error then."""


@dataclass(frozen=True)
class Ended:
    """What a request leaves behind: its own arrays, which it has stopped to use."""

    layout: Layout
    tokens: Tokens
    rows: list[mx.array]
    borders: dict[int, Border]
    weights: ModelArrays


class KeptPrompts:
    """Prefixes that requests have read or written, within a number of bytes.

    Any thread may use it. What was used longest ago is dropped first, also where there are more
    than `MOST_ARRAYS`. Where the target's weights are exchanged, nothing of before serves the
    requests that begin then: all of it is dropped, and files stay for the weights that they are of.

    Args:
        max_bytes: bytes that are kept at most.
        quantized_from: number of tokens from which on the target's caches are quantized.
        disk: where they outlive the process; None for memory alone.
        weights: the target's, which what is on the disk is of; None for those that it has when the
            first request begins.

    Attributes:
        max_bytes, quantized_from: the arguments.
    """

    def __init__(
        self,
        max_bytes: int,
        quantized_from: int = 0,
        disk: Disk | None = None,
        weights: ModelArrays | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.quantized_from = quantized_from
        self._trees: dict[tuple[tuple[str, bool], ...], Tree] = {}
        self._clock = itertools.count(1)
        self._lock = threading.Lock()
        self._ended: deque[Ended] = deque()
        self._disk = disk
        self._weights = weights
        if disk is not None:
            self._read(disk)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept now."""
        self._take_in()
        with self._lock:
            return self._nbytes()

    def fresh(self) -> KeptPrompts:
        """An empty store of the same size, for another pair."""
        return KeptPrompts(self.max_bytes, self.quantized_from)

    def close(self) -> None:
        """Let another process use the files; from here on memory alone is used."""
        self._take_in()
        with self._lock:
            self._leave_disk()

    def clear(self) -> None:
        """Drop everything."""
        self._take_in()
        with self._lock:
            while self._evict_one():
                pass
            self._sync()

    def give_up(self, nbytes: int) -> None:
        """Drop so many bytes of what was used longest ago, or all there is."""
        self._take_in()
        with self._lock:
            wanted = self._nbytes() - nbytes
            while self._nbytes() > wanted and self._evict_one():
                pass
            self._sync()

    def begin(
        self,
        prompt: Sequence[int],
        caches: list[Any],
        drafter: Drafter | None,
        context: DrafterContext | None,
        model: nn.Module,
    ) -> Reading:
        """Fill a new request's caches and context with the longest kept part of its prompt.

        The last token is never left out, since the first token is chosen by its logits.

        Args:
            prompt: token ids.
            caches, context: empty; changed in place.
            drafter: whose context it is; None where there is none.
            model: the target's; no other thread runs it or changes it now.
        """
        tokens = np.array(prompt, dtype=np.int32)
        self._take_in()
        with self._lock:
            weights = self._follow(model)
            now = next(self._clock)
            found = [
                (tree.find(tokens, len(tokens) - 1, now), tree) for tree in self._trees.values()
            ]
        hit, tree = max(found, key=lambda pair: pair[0].length, default=(Hit(0, 0), None))
        shared = max((each.shared for each, _ in found), default=0)
        if tree is not None and hit.length:
            # Arrays in the tree are never written to, so that nothing has to be held here.
            rows = [mx.concatenate(list(parts), axis=2) for parts in zip(*hit.rows, strict=True)]
            mx.eval(rows)
            restore(caches, context, tree.layout, rows, hit.border)
        return Reading(self, caches, drafter, context, weights, hit.length, shared)

    def keep(self, ended: Ended) -> None:
        """Keep what a request leaves behind, now or before the next one begins.

        Garbage collection may end a request while its thread is in here, so nothing is waited for.
        """
        self._ended.append(ended)
        self._take_in()

    def _take_in(self) -> None:
        while self._ended and self._lock.acquire(blocking=False):
            try:
                with contextlib.suppress(IndexError):  # another thread took it
                    self._add(self._ended.popleft())
            finally:
                self._lock.release()

    def _follow(self, model: nn.Module) -> ModelArrays:
        """The weights that the model has, of which everything is that is kept from now on."""
        if self._weights is not None and not self._weights.unchanged:
            self._weights = None
            self._trees.clear()
            self._leave_disk()
        if self._weights is None:
            self._weights = ModelArrays(model)
        return self._weights

    def _leave_disk(self) -> None:
        disk, self._disk = self._disk, None
        if disk is not None:
            disk.close()

    def _add(self, ended: Ended) -> None:
        if ended.weights is not self._weights:
            return
        tree = self._tree(ended.layout)
        tree.add(ended.tokens, ended.rows, ended.borders, next(self._clock))
        self._fit()
        self._sync()

    def _tree(self, layout: Layout) -> Tree:
        return self._trees.setdefault(layout.kinds, Tree(layout))

    def _fit(self) -> None:
        while self._is_too_large() and self._evict_one():
            pass

    def _is_too_large(self) -> bool:
        count = sum(tree.count for tree in self._trees.values())
        return self._nbytes() > self.max_bytes or count > MOST_ARRAYS

    def _sync(self) -> None:
        for tree in self._trees.values():
            if self._disk is not None:
                self._disk.sync(tree)
            else:
                tree.changed.clear()
                tree.dropped.clear()

    def _read(self, disk: Disk) -> None:
        for path, stored in disk.read(self.max_bytes):
            tree = self._tree(stored.layout)
            parts = stored.tokens, stored.start, stored.rows, stored.border
            node = tree.add_stored(*parts, next(self._clock))
            if node is None:
                disk.remove([path])  # what came before it is gone
                continue
            node.file = path
            if node.start == stored.start:
                tree.changed.discard(node)
        self._fit()
        self._sync()

    def _nbytes(self) -> int:
        return sum(tree.nbytes for tree in self._trees.values())

    def _evict_one(self) -> bool:
        oldest = [(each[0], tree) for tree in self._trees.values() if (each := tree.oldest())]
        if not oldest:
            return False
        min(oldest, key=lambda pair: pair[0])[1].evict()
        return True


@dataclass
class Reading:
    """One request's side of the kept prompts, from its first token to its last.

    Attributes:
        kept: where it began and is kept.
        caches: the request's, of which a forward may replace some.
        drafter, context: the request's; None without a drafter.
        weights: the target's when the request began.
        length: number of tokens of the prompt that need not be read.
        shared: number of tokens that other requests began with too.
        borders: what was noted, by number of tokens.
    """

    kept: KeptPrompts
    caches: list[Any]
    drafter: Drafter | None
    context: DrafterContext | None
    weights: ModelArrays
    length: int
    shared: int
    borders: dict[int, Border] = field(default_factory=dict)

    def next_stop(self, start: int, end: int) -> int:
        """Where a prefill forward from `start` to `end` should stop, for a border to be noted.

        Prompts that part from others there begin at that border the next time.
        """
        return self.shared if start < self.shared < end else end

    def note(self, length: int, last: bool = False) -> None:
        """Keep what belongs to this number of tokens alone, where such a thing is.

        Args:
            length: number of tokens that were read and flushed into the context.
            last: whether it is noted though the border before is near.
        """
        before = max((*self.borders, self.length))
        if not last and length != self.shared and length - before < BORDER_STEP:
            return
        if not layout_of(self.caches, self.context, length, 0).cuts_anywhere:
            border = border_of(self.caches, self.context, length)
            mx.eval(border.arrays())
            self.borders[length] = border

    def end(self, tokens: Sequence[int], length: int, caches: list[Any]) -> None:
        """Keep what the request has read and written; it must not go on.

        Nothing is kept where the target's weights were exchanged meanwhile.

        Args:
            tokens: of the prompt and the answer.
            length: how many of them the caches and the context hold.
            caches: the request's, which are others than at first where it was part of a batch.
        """
        if not self.weights.unchanged:
            return
        self.caches = caches
        written = [c for c in leaves(caches) if not is_unwritten(c)]
        # Caches of another moment would make later texts wrong, and nothing else would show it.
        kinds = KVCache, QuantizedKVCache
        assert caches and all(c.offset == length for c in written if type(c) in kinds)
        if self.drafter is not None and self.context is not None:
            self.drafter.flush(self.context)
        self.note(length, last=True)
        layout = layout_of(self.caches, self.context, length, self.kept.quantized_from)
        rows = rows_of(self.caches, self.context, layout)
        # Another thread may take them in, and cannot compute what this one has begun.
        mx.eval(rows)
        held = np.array(tokens[:length], dtype=np.int32)
        self.kept.keep(Ended(layout, held, rows, self.borders, self.weights))
