"""Sequential heads by name; each is one file with its tensors and its arithmetic.

To add a head, add a file beside this one and a line to `HEADS`, which configurations, the
checkpoint's layout, loading, training and the help texts read.
"""

from __future__ import annotations

from .base import W1, W2, HeadSizes, HeadTensors, SequentialHead
from .gated import GatedHead
from .rnn import RNNHead
from .vanilla import VanillaHead

HEADS: dict[str, type[SequentialHead]] = {
    head.NAME: head for head in (VanillaHead, GatedHead, RNNHead)
}
NO_HEAD = "none"
"""The name in config.json and `--head` for a drafter without a head, which is DFlash."""


def head_names() -> tuple[str, ...]:
    """All values of `head` in config.json and of `--head`."""
    return (NO_HEAD, *HEADS)


def head_matrices(name: str, sizes: HeadSizes) -> dict[str, tuple[int, int]]:
    """Maps names without `.weight` to `[out, in]` for a head's matrices; {} for `NO_HEAD`."""
    if name == NO_HEAD:
        return {}
    shapes = {W1: (sizes.vocabulary, sizes.rank), W2: (sizes.output, sizes.rank)}
    return shapes | HEADS[name].matrices(sizes)


def head_vectors(name: str, sizes: HeadSizes) -> dict[str, tuple[int]]:
    """Maps names to `[length]` for a head's vectors; {} for `NO_HEAD`."""
    return {} if name == NO_HEAD else HEADS[name].vectors(sizes)


def load_head(name: str, tensors: HeadTensors) -> SequentialHead | None:
    """The head made of a drafter's tensors; None for `NO_HEAD`."""
    return None if name == NO_HEAD else HEADS[name].load(tensors)
