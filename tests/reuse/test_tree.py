"""The radix tree against a list of everything that was kept."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from dspark_mlx.reuse.parts import Border, Layout
from dspark_mlx.reuse.tree import Tree

EVERYWHERE = Layout((("KVCache", True),), 0, (None,))
AT_BORDERS = Layout((("KVCache", True), ("ArraysCache", False)), 0, (None, None))


def rows_for(tokens) -> list[mx.array]:
    """Keys and values that tell which prefix they belong to, `[1, 2, tokens, 1]`."""
    running = np.array([hash(tuple(tokens[: i + 1])) % 9973 for i in range(len(tokens))])
    row = mx.array(running.astype(np.float32))[None, None, :, None]
    return [mx.concatenate([row, row + 0.5], axis=1), -row]


def border_for(tokens) -> Border:
    return Border((mx.array([float(hash(tuple(tokens)) % 9973)]),), ())


def shared(a, b) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def drawn(rng, length: int) -> list[int]:
    return rng.integers(0, 3, length).tolist()


def check(tree: Tree, prompt: list[int], expected: int, now: int) -> None:
    hit = tree.find(np.array(prompt, np.int32), len(prompt) - 1, now)
    assert hit.length == expected
    if not expected:
        return
    found = [mx.concatenate(list(parts), axis=2) for parts in zip(*hit.rows, strict=True)]
    for array, right in zip(found, rows_for(prompt[:expected]), strict=True):
        assert mx.array_equal(array, right)
    if not tree.layout.cuts_anywhere:
        right = border_for(prompt[:expected]).caches[0]
        assert hit.border is not None and mx.array_equal(hit.border.caches[0], right)


@pytest.mark.parametrize("layout", [EVERYWHERE, AT_BORDERS], ids=["rows", "borders"])
def test_the_longest_prefix_is_found(layout):
    """A split that mixes rows up; an edge that is compared to its end; a border of another text."""
    rng = np.random.default_rng(0)
    for _ in range(12):
        tree, kept = Tree(layout), []
        for now in range(24):
            tokens = drawn(rng, int(rng.integers(1, 14)))
            ends = {int(end) for end in rng.integers(1, len(tokens) + 1, 2)}
            borders = {end: border_for(tokens[:end]) for end in ends}
            at_borders = not layout.cuts_anywhere
            tree.add(
                np.array(tokens, np.int32), rows_for(tokens), borders if at_borders else {}, now
            )
            kept += [tokens[:end] for end in ends] if at_borders else [tokens]
            for _ in range(4):
                prompt = drawn(rng, int(rng.integers(2, 16)))
                common = [(shared(prompt, each), len(each)) for each in kept]
                if at_borders:
                    fits = [n for n, end in common if n == end and n < len(prompt)]
                    expected = max(fits, default=0)
                else:
                    expected = min(max(n for n, _ in common), len(prompt) - 1)
                check(tree, prompt, expected, now)
            distinct = {tuple(each[:end]) for each in kept for end in range(1, len(each) + 1)}
            assert sum(len(node.tokens) for node in tree) == len(distinct)
            assert len({int(node.tokens[0]) for node in tree if node.start == 0}) <= 3


@pytest.mark.parametrize("layout", [EVERYWHERE, AT_BORDERS], ids=["rows", "borders"])
def test_what_was_used_longest_ago_goes_first(layout):
    """A prefix dropped below the text that needs it; bytes that never come back."""
    rng = np.random.default_rng(1)
    tree = Tree(layout)
    texts = [[i, *drawn(rng, 6)] for i in range(5)]
    for now, tokens in enumerate(texts):
        borders = {len(tokens): border_for(tokens)} if not layout.cuts_anywhere else {}
        tree.add(np.array(tokens, np.int32), rows_for(tokens), borders, now)
    check(tree, [*texts[0], 9], 7, 10)
    sizes = [tree.nbytes]
    for used in (1, 2, 3, 4, 10):
        assert tree.evict() == used
        sizes.append(tree.nbytes)
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 0 and tree.evict() is None


def test_borders_inside_go_before_the_end_of_their_text():
    """A long conversation that loses its newest turn while its first ones stay."""
    tree, tokens = Tree(AT_BORDERS), list(range(12))
    borders = {end: border_for(tokens[:end]) for end in (4, 8, 12)}
    tree.add(np.array(tokens, np.int32), rows_for(tokens), borders, 1)
    for _ in range(2):
        tree.evict()
        check(tree, [*tokens, 50], 12, 1)
    tree.evict()
    assert list(tree) == []
