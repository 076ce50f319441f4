"""The canonical drafter configuration: one strict schema in which every convention is explicit.

A converter writes it, everything else reads it, and no other place knows a packaging's habits.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError
from .quantization import Quantization, read_quantization

FORMAT = "dspark_mlx"
FORMAT_VERSION = 1
HEADS = ("none", "vanilla", "gated", "rnn")
CONFIDENCE = ("none", "hidden", "hidden+markov")
ACTIVATIONS = ("silu", "gelu_tanh")
VALUES = ("projected", "keys")
ROPE_SCALINGS = ("yarn", "proportional")


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


@dataclass(frozen=True)
class DrafterConfig:
    """A drafter of the DSpark family (paper section 3.1; DeepSpec's Qwen3 draft model).

    Attributes:
        hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim: backbone.
        rms_norm_eps: of every norm.
        vocab_size: rows of the target's head.
        target_hidden_size: width of one tap.
        target_num_layers: depth of the target it was trained on; 0 where it does not say.
        taps: target layers whose output it reads, ascending; -1 is the embedding output.
        block_size: rows of a block, the anchor's included.
        logits_start: first row that is read out. 0 is anchor-first (row k predicts position
            p+k+1, gamma = block_size); 1 is bonus-anchor (gamma = block_size - 1).
        mask_token_id: id that fills the rows after the anchor.
        rope_theta: base of the rotary embedding.
        head: sequential head, one of HEADS.
        head_rank: rank of its embedding; 0 without a head.
        confidence: what the confidence head reads, one of CONFIDENCE.
        owns_embedding, owns_head: True where the folder stores its own copy instead of sharing the
            target's.
        target: id or name of the target it was trained for, for messages only.
        quantization: of the stored weights; None for plain ones.
        rope_dims: dimensions of a head that are rotated, from its start; 0 for all.
        rope_interleaved: True where pairs are neighbours, False where they are half a head apart.
        rope_scaling: what mlx-lm's `initialize_rope` takes ("yarn" or "proportional"); None for
            none.
        windows: of each layer, committed rows before the anchor that it attends to, 0 for all; ()
            where no layer has a window.
        window_by_row: True where a window is measured from each row's position, else from the
            anchor's.
        causal: of each layer, whether the block's rows attend to no later row; () where none is.
        gated_queries: True where the query projection has each head's output gate behind it.
        values: "projected", or "keys" where the unrotated key projection is the value, normed
            without weights.
        attention_scale: of the scores; 0 for head_dim ** -0.5.
        sandwich_norms: True where the sublayers' outputs are normed as well.
        layer_scalars: True where each layer's output is multiplied by a stored number.
        activation: of the gated MLP, one of ACTIVATIONS.
        embedding_scale: multiplies the block's embeddings.
        softcap: cap of the base logits, before the sequential bias; 0 for none.
        draft_vocab_size: tokens that it can propose; 0 for the whole vocabulary. Otherwise the
            tensor `d2t` holds their ids.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    vocab_size: int
    target_hidden_size: int
    target_num_layers: int
    taps: tuple[int, ...]
    block_size: int
    logits_start: int
    mask_token_id: int
    rope_theta: float
    head: str
    head_rank: int
    confidence: str
    owns_embedding: bool
    owns_head: bool
    target: str
    quantization: Quantization | None = None
    rope_dims: int = 0
    rope_interleaved: bool = False
    rope_scaling: dict[str, Any] | None = None
    windows: tuple[int, ...] = ()
    window_by_row: bool = False
    causal: tuple[bool, ...] = ()
    gated_queries: bool = False
    values: str = "projected"
    attention_scale: float = 0.0
    sandwich_norms: bool = False
    layer_scalars: bool = False
    activation: str = "silu"
    embedding_scale: float = 1.0
    softcap: float = 0.0
    draft_vocab_size: int = 0

    @property
    def gamma(self) -> int:
        """Tokens proposed per round."""
        return self.block_size - self.logits_start

    @property
    def output_size(self) -> int:
        """Tokens that it can propose."""
        return self.draft_vocab_size or self.vocab_size

    def attention_of(self, layer: int) -> Attention:
        """What the rows of a layer attend to."""
        window = self.windows[layer] if self.windows else 0
        causal = self.causal[layer] if self.causal else False
        return Attention(window, causal, self.window_by_row)

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **dataclasses.asdict(self),
            **{name: list(getattr(self, name)) for name in ("taps", "windows", "causal")},
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: Path | str) -> DrafterConfig:
        """Read config.json strictly; `where` names it in errors.

        Raises:
            InputError: another format or version, a key missing, unknown, of the wrong type or
                outside its range.
        """
        found = (data.get("format"), data.get("format_version"))
        if found != (FORMAT, FORMAT_VERSION):
            raise InputError(where, f"format {found}", f"{(FORMAT, FORMAT_VERSION)}")
        values = {k: v for k, v in data.items() if k not in ("format", "format_version")}
        fields = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        if missing := sorted(required - set(values)):
            raise InputError(where, f"no {', '.join(missing)}", "every key of the format")
        if unknown := sorted(set(values) - set(fields)):
            raise InputError(where, f"unknown keys {', '.join(unknown)}", "the format's keys only")
        for name, value in values.items():
            _check_type(where, name, value, fields[name])
        for name in ("taps", "windows", "causal"):
            values[name] = tuple(values.get(name, ()))
        if (quantization := values.get("quantization")) is not None:
            values["quantization"] = read_quantization(where, quantization)
        config = cls(**values)
        config._check(where)
        return config

    def _check(self, where: Path | str) -> None:
        sizes = (
            "hidden_size intermediate_size num_layers num_heads num_kv_heads head_dim vocab_size "
            "target_hidden_size block_size rms_norm_eps rope_theta"
        )
        for name in sizes.split():
            if getattr(self, name) <= 0:
                raise InputError(where, f"{name} {getattr(self, name)}", "a positive number")
        if self.num_heads % self.num_kv_heads:
            found = f"num_heads {self.num_heads} with num_kv_heads {self.num_kv_heads}"
            raise InputError(where, found, "a whole number of query heads per K/V head")
        if self.head_dim % 2:
            raise InputError(where, f"head_dim {self.head_dim}", "an even number")
        if self.logits_start not in (0, 1) or self.gamma < 1:
            found = f"logits_start {self.logits_start} with block_size {self.block_size}"
            raise InputError(where, found, "0 or 1, and a row left to read out")
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise InputError(
                where, f"mask_token_id {self.mask_token_id}", "an id of the vocabulary"
            )
        if self.target_num_layers < 0:
            found = f"target_num_layers {self.target_num_layers}"
            raise InputError(where, found, "0 where it is not known, or more")
        last = self.target_num_layers - 1 if self.target_num_layers else 1 << 30
        ascending = all(a < b for a, b in zip(self.taps, self.taps[1:], strict=False))
        if not self.taps or not ascending or self.taps[0] < -1 or self.taps[-1] > last:
            raise InputError(where, f"taps {list(self.taps)}", f"ascending layers in -1..{last}")
        if self.head not in HEADS or (self.head == "none") != (self.head_rank == 0):
            found = f"head {self.head!r} of rank {self.head_rank}"
            raise InputError(where, found, f"one of {HEADS}, of rank 0 exactly when 'none'")
        if self.confidence not in CONFIDENCE:
            raise InputError(where, f"confidence {self.confidence!r}", f"one of {CONFIDENCE}")
        if self.confidence == "hidden+markov" and self.head == "none":
            raise InputError(where, "confidence 'hidden+markov' without a head", "a head to read")
        self._check_conventions(where)

    def _check_conventions(self, where: Path | str) -> None:
        for name in ("windows", "causal"):
            found = getattr(self, name)
            if len(found) not in (0, self.num_layers):
                raise InputError(where, f"{name} {list(found)}", f"none, or {self.num_layers}")
        if any(window < 0 for window in self.windows):
            raise InputError(where, f"windows {list(self.windows)}", "0 or more rows")
        if not 0 <= self.rope_dims <= self.head_dim or self.rope_dims % 2:
            found = f"rope_dims {self.rope_dims} of head_dim {self.head_dim}"
            raise InputError(where, found, "an even part of the head")
        if self.activation not in ACTIVATIONS or self.values not in VALUES:
            found = f"activation {self.activation!r}, values {self.values!r}"
            raise InputError(where, found, f"one of {ACTIVATIONS}, one of {VALUES}")
        if min(self.attention_scale, self.softcap) < 0 or self.embedding_scale <= 0:
            found = f"scales {self.attention_scale}, {self.softcap}, {self.embedding_scale}"
            raise InputError(where, found, "0 or more, and an embedding_scale above 0")
        kind = (self.rope_scaling or {}).get("rope_type")
        if self.rope_scaling is not None and kind not in ROPE_SCALINGS:
            raise InputError(where, f"rope_scaling {kind!r}", f"one of {ROPE_SCALINGS}")
        if not 0 <= self.draft_vocab_size < self.vocab_size:
            found = f"draft_vocab_size {self.draft_vocab_size}"
            raise InputError(where, found, f"less than the vocabulary of {self.vocab_size}")
        if self.draft_vocab_size and not self.owns_head:
            raise InputError(where, "a draft vocabulary without a head", "a head of its own")


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "tuple[int, ...]": (list,),
    "tuple[bool, ...]": (list,),
    "dict[str, Any] | None": (dict, type(None)),
    "Quantization | None": (dict, type(None)),
}


def _check_type(where: Path | str, name: str, value: object, annotation: str) -> None:
    allowed = _TYPES[annotation]
    wrong_bool = isinstance(value, bool) and bool not in allowed
    item_type = bool if annotation == "tuple[bool, ...]" else int
    wrong_item = isinstance(value, list) and not all(type(item) is item_type for item in value)
    if wrong_bool or wrong_item or not isinstance(value, allowed):
        raise InputError(where, f"{name} {value!r}", f"a value of type {annotation}")
