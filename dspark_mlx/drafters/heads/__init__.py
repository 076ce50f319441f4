"""Sequential heads by name: one file each, which owns its tensors and its arithmetic.

A new head is a file beside these and a line in `HEADS`; configurations, the checkpoint's layout,
loading, training and the help texts read it from there.
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
"""What config.json and `--head` say of a drafter without one, which is DFlash."""


def head_names() -> tuple[str, ...]:
    """What `head` and `--head` may say."""
    return (NO_HEAD, *HEADS)


def head_matrices(name: str, sizes: HeadSizes) -> dict[str, tuple[int, int]]:
    """Name (without `.weight`) and `[out, in]` of a head's matrices; none for `NO_HEAD`."""
    if name == NO_HEAD:
        return {}
    shapes = {W1: (sizes.vocabulary, sizes.rank), W2: (sizes.output, sizes.rank)}
    return shapes | HEADS[name].matrices(sizes)


def head_vectors(name: str, sizes: HeadSizes) -> dict[str, tuple[int]]:
    """Name and length of a head's vectors; none for `NO_HEAD`."""
    return {} if name == NO_HEAD else HEADS[name].vectors(sizes)


def load_head(name: str, tensors: HeadTensors) -> SequentialHead | None:
    """A head made of a drafter's tensors; None for `NO_HEAD`."""
    return None if name == NO_HEAD else HEADS[name].load(tensors)
