"""The canonical drafter configurations, one strict schema a method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..checkpoint.base_config import MOST_TOKENS, CanonicalConfig, method_of
from ..checkpoint.number_ranges import check_within
from ..errors import InputError

HEADS = ("none", "vanilla", "gated", "rnn")
CONFIDENCE = ("none", "hidden", "hidden+markov")


@dataclass(frozen=True)
class Attention:
    """What the block's rows of a layer attend to.

    Attributes:
        window: committed rows before the anchor; 0 for all.
        causal: no later row of the block.
        by_row: the window is measured from each row's position, else from the anchor's.
    """

    window: int
    causal: bool
    by_row: bool


@dataclass(frozen=True, kw_only=True)
class DrafterConfig(CanonicalConfig):
    """A drafter of the DSpark family (paper section 3.1; DeepSpec's Qwen3 draft model).

    Attributes:
        num_layers: of the backbone.
        block_size: rows of a block, the anchor's included.
        logits_start: first row that is read out. 0 is anchor-first (row k predicts position
            p+k+1, gamma = block_size); 1 is bonus-anchor (gamma = block_size - 1).
        mask_token_id: id that fills the rows after the anchor.
        head: sequential head, one of HEADS.
        head_rank: rank of its embedding; 0 without a head.
        confidence: what the confidence head reads, one of CONFIDENCE.
        windows: of each layer, committed rows before the anchor that it attends to, 0 for all; ()
            where no layer has a window.
        window_by_row: True where a window is measured from each row's position, else from the
            anchor's.
        causal: of each layer, whether the block's rows attend to no later row; () where none is.
    """

    METHOD: ClassVar[str] = "dspark"

    num_layers: int
    block_size: int
    logits_start: int
    mask_token_id: int
    head: str
    head_rank: int
    confidence: str
    windows: tuple[int, ...] = ()
    window_by_row: bool = False
    causal: tuple[bool, ...] = ()

    @property
    def gamma(self) -> int:
        """Tokens proposed per round."""
        return self.block_size - self.logits_start

    @property
    def has_confidence(self) -> bool:
        """Whether it says how likely its tokens are to survive."""
        return self.confidence != "none"

    @property
    def summary(self) -> str:
        """What it is, in a few words."""
        head = f"{self.head} head" if self.head != "none" else "no sequential head"
        return f"{self.num_layers} layers, block of {self.block_size}, {head}"

    def attention_of(self, layer: int) -> Attention:
        """What the rows of a layer attend to."""
        window = self.windows[layer] if self.windows else 0
        causal = self.causal[layer] if self.causal else False
        return Attention(window, causal, self.window_by_row)

    def alternatives(self) -> dict[str, tuple[Any, ...]]:
        """See `CanonicalConfig.alternatives`."""
        starts = tuple(start for start in (0, 1) if self.block_size > start)
        return {"logits_start": starts, **super().alternatives()}

    def _check(self, where: Path | str) -> None:
        self._check_positive(where, "num_layers")
        check_within(where, "block_size", self.block_size, 1, MOST_TOKENS)
        super()._check(where)
        if self.logits_start not in (0, 1) or self.gamma < 1:
            found = f"logits_start {self.logits_start} with block_size {self.block_size}"
            raise InputError(where, found, "0 or 1, and a row left to read out")
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise InputError(
                where, f"mask_token_id {self.mask_token_id}", "an id of the vocabulary"
            )
        if self.head not in HEADS or (self.head == "none") != (self.head_rank == 0):
            found = f"head {self.head!r} of rank {self.head_rank}"
            raise InputError(where, found, f"one of {HEADS}, of rank 0 exactly when 'none'")
        if self.confidence not in CONFIDENCE:
            raise InputError(where, f"confidence {self.confidence!r}", f"one of {CONFIDENCE}")
        if self.confidence == "hidden+markov" and self.head == "none":
            raise InputError(where, "confidence 'hidden+markov' without a head", "a head to read")
        for name in ("windows", "causal"):
            found = getattr(self, name)
            if len(found) not in (0, self.num_layers):
                raise InputError(where, f"{name} {list(found)}", f"none, or {self.num_layers}")
        if any(window < 0 for window in self.windows):
            raise InputError(where, f"windows {list(self.windows)}", "0 or more rows")


@dataclass(frozen=True, kw_only=True)
class Eagle3Config(CanonicalConfig):
    """An Eagle3 drafter: one layer, run once a token (DeepSpec's Eagle3 draft models).

    Attributes:
        steps: tokens that it proposes.
    """

    METHOD: ClassVar[str] = "eagle3"

    steps: int

    @property
    def gamma(self) -> int:
        """Tokens proposed per round."""
        return self.steps

    @property
    def summary(self) -> str:
        """What it is, in a few words."""
        return f"Eagle3, 1 layer, {self.steps} steps"

    def _check(self, where: Path | str) -> None:
        check_within(where, "steps", self.steps, 1, MOST_TOKENS)
        super()._check(where)


METHODS: tuple[type[CanonicalConfig], ...] = (DrafterConfig, Eagle3Config)


def read_config(data: dict[str, Any], where: Path | str) -> CanonicalConfig:
    """Read the config.json of a canonical folder strictly, by the method that it names.

    Raises:
        InputError: an unknown method, or see `CanonicalConfig.from_dict`.
    """
    by_name = {method.METHOD: method for method in METHODS}
    method = method_of(data)
    if not isinstance(method, str) or method not in by_name:
        raise InputError(where, f"method {method!r}", f"one of {', '.join(by_name)}")
    return by_name[method].from_dict(data, where)
