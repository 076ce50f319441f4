"""The canonical configurations of drafters of whole blocks: what they share, and DSpark's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from ...checkpoint.base_config import MAX_BLOCK, CanonicalConfig
from ...checkpoint.layer_shapes import layer_matrices, layer_vectors, shared_matrices
from ...checkpoint.number_ranges import check_within
from ...errors import InputError
from ..heads import NO_HEAD, head_matrices, head_names, head_vectors
from ..heads.base import HeadSizes
from ..heads.confidence import INPUTS, confidence_matrices, confidence_vectors
from .noise import noise_matrices, noise_vectors

_WIDEST = 1 << 20


@dataclass(frozen=True)
class Attention:
    """What the block's rows of a layer attend to.

    Attributes:
        window: how many committed rows before the anchor; 0 for all of them.
        causal: True when a row does not attend to the block's later rows.
        by_row: True when the window is measured from each row's position, False when it is
            measured from the anchor's.
    """

    window: int
    causal: bool
    by_row: bool


@dataclass(frozen=True, kw_only=True)
class BlockConfig(CanonicalConfig):
    """A drafter whose backbone reads a whole block at once (paper section 3.1.1).

    Attributes:
        num_layers: layers of the backbone.
        block_size: rows of a block, the anchor's included.
        logits_start: the first row that gives logits. 0 is anchor-first (row k predicts position
            p+k+1, gamma = block_size); 1 is bonus-anchor (gamma = block_size - 1).
        mask_token_id: id that fills the rows after the anchor.
        windows: for each layer, how many committed rows before the anchor it attends to, 0 for all
            of them; () when no layer has a window.
        window_by_row: True when a window is measured from each row's position, False when it is
            measured from the anchor's.
        causal: for each layer, True when a row does not attend to the block's later rows; () when
            no layer is causal.
    """

    num_layers: int
    block_size: int
    logits_start: int
    mask_token_id: int
    windows: tuple[int, ...] = ()
    window_by_row: bool = False
    causal: tuple[bool, ...] = ()

    @property
    def gamma(self) -> int:
        """Tokens proposed per round."""
        return self.block_size - self.logits_start

    @property
    def depth(self) -> int:
        """See `CanonicalConfig.depth`."""
        return self.num_layers

    def attention_of(self, layer: int) -> Attention:
        """What the block's rows attend to in a layer."""
        window = self.windows[layer] if self.windows else 0
        causal = self.causal[layer] if self.causal else False
        return Attention(window, causal, self.window_by_row)

    @property
    def attended(self) -> tuple[int, ...]:
        """See `CanonicalConfig.attended`."""
        return self.windows

    def with_window(self, window: int) -> Self:
        """See `CanonicalConfig.with_window`; a shorter window of a layer stays."""
        windows = self.windows or (0,) * self.num_layers
        return replace(self, windows=tuple(min(w or window, window) for w in windows))

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """See `CanonicalConfig.matrix_shapes`."""
        shapes = shared_matrices(self)
        for i in range(self.num_layers):
            shapes |= layer_matrices(self, f"layers.{i}", self.hidden_size)
        return shapes

    def vector_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.vector_shapes`."""
        hidden = (self.hidden_size,)
        shapes: dict[str, tuple[int, ...]] = {"hidden_norm.weight": hidden, "norm.weight": hidden}
        for i in range(self.num_layers):
            shapes |= layer_vectors(self, f"layers.{i}")
        return shapes

    def alternatives(self) -> dict[str, tuple[Any, ...]]:
        """See `CanonicalConfig.alternatives`."""
        starts = tuple(start for start in (0, 1) if self.block_size > start)
        return {"logits_start": starts, **super().alternatives()}

    def _check(self, where: Path | str) -> None:
        self._check_positive(where, "num_layers")
        check_within(where, "block_size", self.block_size, 1, MAX_BLOCK)
        super()._check(where)
        if self.logits_start not in (0, 1) or self.gamma < 1:
            found = f"logits_start {self.logits_start} with block_size {self.block_size}"
            raise InputError(where, found, "0 or 1, and at least one row that gives logits")
        self._check_token(where, "mask_token_id")
        for name in ("windows", "causal"):
            by_layer = getattr(self, name)
            if len(by_layer) not in (0, self.num_layers):
                expected = f"an empty list, or {self.num_layers} entries, one per layer"
                raise InputError(where, f"{name} {list(by_layer)}", expected)
        if any(window < 0 for window in self.windows):
            raise InputError(where, f"windows {list(self.windows)}", "0 or more rows")


@dataclass(frozen=True, kw_only=True)
class DSparkConfig(BlockConfig):
    """A drafter of the DSpark family, DFlash included (paper section 3.1; DeepSpec's Qwen3 draft).

    Attributes:
        head: sequential head, a name of `heads.HEADS` or "none".
        head_rank: rank of the sequential head's embedding; 0 without a head.
        confidence: what the confidence head reads, one of `heads.confidence.INPUTS`.
        noise_width: inner width of the network that embeds each row's noise level, see `noise`; 0
            without.
    """

    METHOD: ClassVar[str] = "dspark"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "num_layers": 1,
        "block_size": 4,
        "logits_start": 0,
        "mask_token_id": 0,
        "head": "vanilla",
        "head_rank": 8,
        "confidence": "hidden+markov",
    }

    head: str
    head_rank: int
    confidence: str
    noise_width: int = 0

    @property
    def has_confidence(self) -> bool:
        """True for a drafter with a confidence head."""
        return self.confidence != "none"

    @property
    def summary(self) -> str:
        """A description of the drafter in a few words."""
        head = f"{self.head} head" if self.head != NO_HEAD else "no sequential head"
        return f"{self.num_layers} layers, block of {self.block_size}, {head}"

    @property
    def head_sizes(self) -> HeadSizes:
        """The sizes that determine the shapes of the heads' tensors."""
        return HeadSizes(self.head_rank, self.hidden_size, self.vocab_size, self.output_size)

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """See `CanonicalConfig.matrix_shapes`."""
        shapes = super().matrix_shapes() | head_matrices(self.head, self.head_sizes)
        shapes |= noise_matrices(self.noise_width, self.hidden_size)
        return shapes | confidence_matrices(self.confidence, self.head_sizes)

    def vector_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.vector_shapes`."""
        shapes = super().vector_shapes()
        shapes |= head_vectors(self.head, self.head_sizes)
        shapes |= noise_vectors(self.noise_width, self.hidden_size)
        shapes |= confidence_vectors(self.confidence)
        return shapes

    def _check(self, where: Path | str) -> None:
        super()._check(where)
        check_within(where, "noise_width", self.noise_width, 0, _WIDEST)
        names = head_names()
        if self.head not in names or (self.head == NO_HEAD) != (self.head_rank == 0):
            found = f"head {self.head!r} of rank {self.head_rank}"
            raise InputError(where, found, f"one of {names}, of rank 0 exactly when 'none'")
        if self.confidence not in INPUTS:
            raise InputError(where, f"confidence {self.confidence!r}", f"one of {INPUTS}")
        if self.confidence == "hidden+markov" and self.head == NO_HEAD:
            found = "confidence 'hidden+markov' without a sequential head"
            raise InputError(where, found, "a sequential head")
