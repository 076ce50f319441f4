"""How each matrix of a DeepSeek V4 checkpoint is stored after a conversion."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...checkpoint.quantization import AFFINE, BYTE_SCALES, GROUP_SIZES
from ...errors import InputError


@dataclass(frozen=True)
class Form:
    """A quantisation of MLX's.

    Attributes:
        bits: bits per weight.
        group_size: weights that share a scale.
        mode: MLX's name of it.
    """

    bits: int
    group_size: int
    mode: str = AFFINE

    def entry(self) -> dict[str, int | str]:
        """The form as config.json has it."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


FP4, FP8 = (Form(*BYTE_SCALES[mode], mode) for mode in ("mxfp4", "mxfp8"))
"""The forms that hold a release's FP4 and FP8 bit for bit."""

RECIPES: dict[str, dict[str, Form | None]] = {
    # The stages' own experts stay: a head that drafts worse would cost more than its 5 GB.
    "experts_2": {
        f"layers.*.ffn.experts.{name}_proj": Form(2, 128) for name in ("gate", "up", "down")
    },
}
"""Forms of the matrices whose name fits a pattern, by the recipe's name; the others are kept."""

# What a release stores as FP8 or FP4, the tables and the Markov head. The numbers that mix copies,
# choose experts or entries, or compress are few, and their errors add up.
_QUANTIZED = re.compile(
    r"embed|lm_head|.*\.(attn\.(wq_a|wq_b|wkv|wo_a|wo_b|indexer\.wq_b)"
    r"|ffn\.(shared_)?experts\..+|main_proj|[eh]_proj|markov_head\.markov_w[12])"
)


@dataclass(frozen=True)
class Rules:
    """The form of each matrix, by its name.

    Attributes:
        whole: the form of matrices that are FP8 or plain; None keeps them.
        exceptions: other forms by parts of names, of which `*` stands for anything; None for plain.
            Where several are in a name, the longest counts.
        recipe: one of `RECIPES`, for what has no exception.
    """

    whole: Form | None = None
    exceptions: Mapping[str, Form | None] = field(default_factory=dict)
    recipe: Mapping[str, Form | None] = field(default_factory=dict)

    def of(self, name: str, columns: int, stored: Form | None) -> Form | None:
        """The form of a matrix; None for a plain one.

        Args:
            name: its name in the folder, without `.weight`.
            columns: length of its rows.
            stored: its form in the release.
        """
        if _QUANTIZED.fullmatch(name) is None:
            return stored
        for asked in (self.exceptions, self.recipe):
            if fitting := [part for part in asked if _holds(name, part)]:
                form = asked[max(fitting, key=len)]
                return form and _fitting(form, columns, stored)
        # Four bits with a scale for 32 weights are what other forms of four bits only come near.
        if self.whole is None or stored == FP4:
            return stored
        return _fitting(self.whole, columns, stored)

    def check(self, names: Sequence[str]) -> None:
        """Refuse an exception that no matrix has in its name.

        Raises:
            InputError: the first such exception.
        """
        matrices = [name for name in names if _QUANTIZED.fullmatch(name)]
        for part in (*self.exceptions, *self.recipe):
            if not any(_holds(name, part) for name in matrices):
                kinds = sorted({re.sub(r"\.\d+(?=\.)", ".N", name) for name in matrices})
                raise InputError("quantisation exception", part, f"part of {', '.join(kinds)}")


def _holds(name: str, part: str) -> bool:
    return re.search(re.escape(part).replace(r"\*", ".*"), name) is not None


def _fitting(asked: Form, columns: int, stored: Form | None) -> Form | None:
    """The form with the largest group that divides the rows; as stored where none does."""
    for size in sorted(GROUP_SIZES, reverse=True):
        if size <= asked.group_size and columns % size == 0:
            return Form(asked.bits, size, asked.mode)
    return stored
