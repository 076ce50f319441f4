"""The canonical drafter configuration: one strict schema in which every convention is explicit.

A converter writes it, everything else reads it, and no other place knows a packaging's habits.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError

FORMAT = "dspark_mlx"
FORMAT_VERSION = 1
HEADS = ("none", "vanilla", "gated", "rnn")
CONFIDENCE = ("none", "hidden", "hidden+markov")
QUANTISED_BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Quantization:
    """Affine quantisation of the stored weights, as MLX has it.

    Attributes:
        bits: bits per weight.
        group_size: weights that share a scale and a bias.
        exceptions: tensor name (without `.weight`) to its own `{"bits", "group_size"}`, or to None
            where the tensor is stored as it is.
    """

    bits: int
    group_size: int
    exceptions: dict[str, dict[str, int] | None] = dataclasses.field(default_factory=dict)

    def of(self, name: str) -> tuple[int, int] | None:
        """(bits, group size) of the tensor `name`, or None where it is not quantised."""
        entry: dict[str, int] | None = {"bits": self.bits, "group_size": self.group_size}
        entry = self.exceptions.get(name, entry)
        return None if entry is None else (entry["bits"], entry["group_size"])


@dataclass(frozen=True)
class DrafterConfig:
    """A drafter of the DSpark family (paper section 3.1; DeepSpec's Qwen3 draft model).

    Attributes:
        hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim: backbone.
        rms_norm_eps: of every norm.
        vocab_size: rows of the target's head.
        target_hidden_size: width of one tap.
        target_num_layers: depth of the target it was trained on.
        taps: target layers whose output it reads, ascending; -1 is the embedding output.
        block_size: rows of a block, the anchor's included.
        logits_start: first row that is read out. 0 is anchor-first (row k predicts position
            p+k+1, gamma = block_size); 1 is bonus-anchor (gamma = block_size - 1).
        mask_token_id: id that fills the rows after the anchor.
        rope_theta: base of the split-half rotary embedding over the whole head.
        head: sequential head, one of HEADS.
        head_rank: rank of its embedding; 0 without a head.
        confidence: what the confidence head reads, one of CONFIDENCE.
        owns_embedding, owns_head: True where the folder stores its own copy instead of sharing the
            target's.
        target: id or name of the target it was trained for, for messages only.
        quantization: of the stored weights; None for plain ones.
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

    @property
    def gamma(self) -> int:
        """Tokens proposed per round."""
        return self.block_size - self.logits_start

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **dataclasses.asdict(self),
            "taps": list(self.taps),
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
        required = set(fields) - {"quantization"}
        if missing := sorted(required - set(values)):
            raise InputError(where, f"no {', '.join(missing)}", "every key of the format")
        if unknown := sorted(set(values) - set(fields)):
            raise InputError(where, f"unknown keys {', '.join(unknown)}", "the format's keys only")
        for name, value in values.items():
            _check_type(where, name, value, fields[name])
        values["taps"] = tuple(values["taps"])
        if (quantization := values.get("quantization")) is not None:
            values["quantization"] = _read_quantization(where, quantization)
        config = cls(**values)
        config._check(where)
        return config

    def _check(self, where: Path | str) -> None:
        sizes = (
            "hidden_size intermediate_size num_layers num_heads num_kv_heads head_dim vocab_size "
            "target_hidden_size target_num_layers block_size rms_norm_eps rope_theta"
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
        last = self.target_num_layers - 1
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


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "tuple[int, ...]": (list,),
    "Quantization | None": (dict, type(None)),
}


def _check_type(where: Path | str, name: str, value: object, annotation: str) -> None:
    allowed = _TYPES[annotation]
    wrong_bool = isinstance(value, bool) and bool not in allowed
    wrong_item = isinstance(value, list) and not all(type(item) is int for item in value)
    if wrong_bool or wrong_item or not isinstance(value, allowed):
        raise InputError(where, f"{name} {value!r}", f"a value of type {annotation}")


def _read_quantization(where: Path | str, data: dict[str, Any]) -> Quantization:
    if set(data) != {"bits", "group_size", "exceptions"}:
        raise InputError(where, f"quantization {sorted(data)}", "bits, group_size, exceptions")
    exceptions = data["exceptions"]
    if not isinstance(exceptions, dict):
        raise InputError(where, f"quantization exceptions {exceptions!r}", "an object")
    check_quantization(where, data["bits"], data["group_size"])
    for name, entry in exceptions.items():
        if entry is None:
            continue
        if not isinstance(entry, dict) or set(entry) != {"bits", "group_size"}:
            found = f"quantization exception {name}: {entry!r}"
            raise InputError(where, found, "null, or an object of bits and group_size")
        check_quantization(where, entry["bits"], entry["group_size"])
    return Quantization(data["bits"], data["group_size"], exceptions)


def check_quantization(where: Path | str, bits: object, group_size: object) -> None:
    """Refuse bits and group sizes that MLX's affine quantisation lacks.

    Raises:
        InputError: `bits` or `group_size` is none of the supported ones.
    """
    if bits not in QUANTISED_BITS:
        raise InputError(where, f"{bits} bits", f"one of {QUANTISED_BITS}")
    if group_size not in GROUP_SIZES:
        raise InputError(where, f"group size {group_size}", f"one of {GROUP_SIZES}")
