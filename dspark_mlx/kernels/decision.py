"""What the guard finds for a network, and putting it in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeAlias

import mlx.nn as nn

from .attention import AppliedAttention, AttentionKernel, attention_taken
from .base import Kernel, Product
from .linears import Applied, Linear
from .siblings import AppliedSiblings, Siblings
from .store import Verdict

Chosen: TypeAlias = dict[Linear, dict[int, Kernel]]
"""For each shape the kernels by number of rows."""


class Undone(Protocol):
    """Something that is in a network until it is closed."""

    def close(self) -> None:
        """Leave the network as it was."""
        ...


@dataclass(frozen=True)
class Race:
    """What was found for one product.

    Attributes:
        product: the product.
        verdict: the winner and why.
        known: whether it was found in the store.
    """

    product: Product
    verdict: Verdict
    known: bool


@dataclass(frozen=True)
class Decision:
    """What was found for a network.

    Attributes:
        chosen: the kernels to apply.
        races: what was found for each product.
        forwards: what was found for whole forwards, by number of rows.
        attention: the kernel of attention to apply; None for MLX's.
        attentions: what was found for each kernel of attention, by its name.
        siblings: the modules to compute together.
        together: what was found for computing them so; None where no kernel can.
    """

    chosen: Chosen
    races: Sequence[Race]
    forwards: Mapping[int, Verdict]
    attention: AttentionKernel | None = None
    attentions: Mapping[str, Verdict] = field(default_factory=dict)
    siblings: Sequence[Siblings] = ()
    together: Verdict | None = None


def apply_decision(network: nn.Module, decision: Decision) -> list[Undone]:
    """Put what was chosen into a network; to be closed in the opposite order."""
    applied: list[Undone] = [Applied(network, decision.chosen)]
    if decision.attention:
        applied.append(apply_attention(network, decision.attention))
    if decision.siblings:
        applied.append(AppliedSiblings(decision.siblings))
    return applied


def apply_attention(network: nn.Module, kernel: AttentionKernel) -> AppliedAttention:
    """Put a kernel of attention into a network."""
    return AppliedAttention(network, kernel, partial(attention_taken, kernel), kernel.max_keys)
