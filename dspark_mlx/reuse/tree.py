"""A radix tree over token ids, whose nodes hold the caches' rows of their own tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import numpy as np

from .parts import Border, Layout, Rows

Tokens = np.ndarray
"""Token ids, int32 `[tokens]`."""


@dataclass(eq=False)
class Node:
    """Tokens that follow those of the parent.

    Attributes:
        tokens: at least one, except of the root.
        start: number of tokens before them.
        rows: the rows of these tokens, never written to.
        border: what belongs to all tokens up to the last of these; None where it is not kept.
        parent: the node before; None of the root.
        children: by their first token.
        used: time of the last request that had the rows, or gave them.
        border_used: time of the last request that began at the border, or gave it.
        file: where it is stored; None where it is not.
    """

    tokens: Tokens
    start: int
    rows: Rows
    border: Border | None = None
    parent: Node | None = None
    children: dict[int, Node] = field(default_factory=dict)
    used: int = 0
    border_used: int = 0
    file: Path | None = None

    def prefix(self) -> Tokens:
        """All tokens up to the last of these."""
        parts, node = [self.tokens], self.parent
        while node is not None:
            parts.append(node.tokens)
            node = node.parent
        return np.concatenate(parts[::-1])

    @property
    def end(self) -> int:
        """Number of tokens up to the last of these."""
        return self.start + len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        border = self.border.nbytes if self.border else 0
        return self.tokens.nbytes + sum(array.nbytes for array in self.rows) + border

    @property
    def count(self) -> int:
        """Number of its arrays."""
        return len(self.rows) + (len(self.border.arrays()) if self.border else 0)


@dataclass(frozen=True)
class Hit:
    """What the tree holds of a prompt.

    Attributes:
        length: number of tokens that need not be read.
        shared: number of tokens that the tree has in common with the prompt, at least as many;
            another prompt may part from them there too.
        rows: for each node on the way its rows of those tokens.
        border: what is not rows; None where everything is.
    """

    length: int
    shared: int
    rows: tuple[Rows, ...] = ()
    border: Border | None = None


class Tree:
    """Prefixes of one layout.

    Args:
        layout: of every request that is kept in it.

    Attributes:
        layout: the argument.
        changed: nodes that have other content than before; the disk's store empties it.
        dropped: nodes that are in the tree no more; emptied likewise.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.changed: set[Node] = set()
        self.dropped: set[Node] = set()
        self._root = Node(np.zeros(0, np.int32), 0, [])

    def __iter__(self) -> Iterator[Node]:
        """Every node but the root, parents first."""
        found = list(self._root.children.values())
        while found:
            node = found.pop()
            found += node.children.values()
            yield node

    @property
    def nbytes(self) -> int:
        """Bytes of all nodes."""
        return sum(node.nbytes for node in self)

    @property
    def count(self) -> int:
        """Number of arrays of all nodes."""
        return sum(node.count for node in self)

    def find(self, tokens: Tokens, limit: int, now: int) -> Hit:
        """The longest prefix of at most `limit` tokens that a request can begin with.

        Args:
            tokens: the prompt.
            limit: number of tokens that may be left out.
            now: the time, a number that grows.
        """
        path, shared = self._walk(tokens)
        shared = min(shared, limit)
        if self.layout.cuts_anywhere:
            length, border = shared, None
        else:
            ends = [node for node in path if node.border and node.end <= shared]
            if not ends:
                return Hit(0, shared)
            length, border = ends[-1].end, ends[-1].border
            ends[-1].border_used = now
        if not length or length < self.layout.quantized_from:
            return Hit(0, shared)
        taken = []
        for node in path:
            if node.start < length:
                node.used = now
                count = min(node.end, length) - node.start
                taken.append([array[..., :count, :] for array in node.rows])
        return Hit(length, shared, tuple(taken), border)

    def add(self, tokens: Tokens, rows: Rows, borders: Mapping[int, Border], now: int) -> None:
        """Keep a request.

        Args:
            tokens: what it has read and written.
            rows: of at least these tokens; copied where they are kept.
            borders: by number of tokens; what lies behind the last one is kept only where the
                layout can be cut anywhere.
            now: see `find`.
        """
        if not self.layout.cuts_anywhere:
            tokens = tokens[: max(borders, default=0)]
        for end in sorted({*borders, len(tokens)}):
            if 0 < end <= len(tokens):
                node = self._reach(tokens[:end], rows)
                if end in borders and not self.layout.cuts_anywhere:
                    self._set_border(node, borders[end], now)
        for node in self._walk(tokens)[0]:
            node.used = now

    def add_stored(
        self, tokens: Tokens, start: int, rows: Rows, border: Border | None, now: int
    ) -> Node | None:
        """Add the content of a file.

        Args:
            tokens: all tokens up to its last.
            start: number of tokens before the first row.
            rows: of the tokens from `start` on.
            border: of all tokens; None where none is kept.
            now: see `find`.

        Returns:
            The node; None where the tree has not the tokens before `start`.
        """
        if self._walk(tokens)[1] < start:
            return None
        node = self._reach(tokens, rows, start)
        node.used = now
        if border is not None:
            self._set_border(node, border, now)
        return node

    def evict(self) -> int | None:
        """Drop what was used longest ago; the time of that use, None where nothing is left.

        It is the end of a branch, or a border inside one.
        """
        oldest = self.oldest()
        if oldest is None:
            return None
        used, node = oldest
        if node.children:
            node.border = None
            self.changed.add(node)
            return used
        while node.parent is not None and not node.children:
            parent = node.parent
            del parent.children[int(node.tokens[0])]
            self.dropped.add(node)
            # What no border follows serves nobody.
            if self.layout.cuts_anywhere or parent.border is not None:
                break
            node = parent
        return used

    def oldest(self) -> tuple[int, Node] | None:
        """What `evict` drops next, and the time of its last use."""
        # Of several that one request used, borders inside go before the end.
        found = [
            (node.border_used if node.children else node.used, not node.children, node.start, node)
            for node in self
            if not node.children or node.border is not None
        ]
        if not found:
            return None
        used, _, _, node = min(found, key=lambda item: item[:3])
        return used, node

    def _walk(self, tokens: Tokens) -> tuple[list[Node], int]:
        """The nodes that begin as the tokens go on, and how many tokens they share."""
        path: list[Node] = []
        node, length = self._root, 0
        while length < len(tokens) and int(tokens[length]) in node.children:
            node = node.children[int(tokens[length])]
            path.append(node)
            length += _shared(node.tokens, tokens[length:])
            if length < node.end:
                break
        return path, length

    def _set_border(self, node: Node, border: Border, now: int) -> None:
        node.border, node.border_used = border, now
        self.changed.add(node)

    def _reach(self, tokens: Tokens, rows: Rows, start: int = 0) -> Node:
        """The node that ends with these tokens, made where there is none; `rows` begin at
        `start`."""
        path, length = self._walk(tokens)
        if path and path[-1].end > length:
            second, path[-1] = path[-1], _split(path[-1], length)
            self.changed |= {path[-1], second}
        node = path[-1] if path else self._root
        if length == len(tokens):
            return node
        cut = _copies(rows, length - start, len(tokens) - start)
        made = Node(tokens[length:].copy(), length, cut, parent=node)
        node.children[int(tokens[length])] = made
        self.changed.add(made)
        return made


def _shared(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    count = min(len(a), len(b))
    differ = np.flatnonzero(a[:count] != b[:count])
    return int(differ[0]) if differ.size else count


def _split(node: Node, end: int) -> Node:
    """Cut a node in two at a number of tokens; the first part, which is new."""
    parent, count = node.parent, end - node.start
    assert parent is not None and 0 < count < len(node.tokens)
    first = Node(node.tokens[:count], node.start, _copies(node.rows, 0, count), parent=parent)
    first.used = node.used
    parent.children[int(node.tokens[0])] = first
    first.children[int(node.tokens[count])] = node
    node.rows = _copies(node.rows, count, len(node.tokens))
    node.tokens, node.start, node.parent = node.tokens[count:], end, first
    return first


def _copies(rows: Sequence[mx.array], start: int, end: int) -> Rows:
    """Rows from `start` to `end`; copies, since a view would keep the memory of all rows."""
    made = [mx.contiguous(array[..., start:end, :]) for array in rows]
    mx.eval(made)
    return made
