"""Reads a published checkpoint's config and the shapes of its tensors; all packagings use it.

Sizes that follow from tensor shapes are taken from the shapes, and a config that contradicts them
is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.layer_shapes import SINKS
from ...checkpoint.number_ranges import LARGEST, check_within
from ...drafters.dspark.config import DSparkConfig
from ...errors import InputError
from .names import COPIES

Config = TypeVar("Config", bound=CanonicalConfig)
Shapes = Mapping[str, tuple[int, ...]]
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Source:
    """A checkpoint's config and tensor shapes.

    Attributes:
        config: config.json, or the metadata of a GGUF file.
        shapes: shape of each tensor by its name without prefixes, see `names.canonical_name`.
        where: the folder or the GGUF file.
        name: the packaging's name, for messages.
    """

    config: Mapping[str, Any]
    shapes: Shapes
    where: Path
    name: str

    @property
    def path(self) -> Path:
        """The path of config.json or of the GGUF file, for messages."""
        return self.where if self.where.suffix.lower() == ".gguf" else self.where / "config.json"

    def need(self, key: str, values: Mapping[str, Any] | None = None) -> Any:
        """The value of a key that must be there.

        Raises:
            InputError: it is missing or null.
        """
        value = (self.config if values is None else values).get(key)
        if value is None:
            raise InputError(self.path, f"no {key}", f"the {self.name} key {key}")
        return value

    def number(
        self, key: str, values: Mapping[str, Any] | None = None, default: float | None = None
    ) -> float:
        """A finite number that must be there, unless it has a default.

        Raises:
            InputError: the value is missing, or is not a finite number.
        """
        if default is not None and (self.config if values is None else values).get(key) is None:
            return default
        value = self.need(key, values)
        check_within(self.path, key, value, -LARGEST, LARGEST)
        return float(value)

    def whole(self, key: str, values: Mapping[str, Any] | None = None) -> int:
        """A positive whole number that must be there.

        Raises:
            InputError: the value is missing, is not such a number, or is too large for MLX.
        """
        value = self.need(key, values)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise InputError(self.path, f"{key} {value!r}", "a positive whole number below 2**31")
        return value

    def nested(self, key: str) -> dict[str, Any]:
        """An object inside the config; {} when the key is missing.

        Raises:
            InputError: the value is not an object.
        """
        value = self.config.get(key) or {}
        if not isinstance(value, dict):
            raise InputError(self.path, f"{key} {value!r}", "an object")
        return value

    def layer_types(
        self, layers: int, values: Mapping[str, Any] | None = None, known: Sequence[str] = (FULL,)
    ) -> list[str]:
        """The kind of each layer; `FULL` for all when the config does not say.

        Args:
            layers: number of layers.
            values: the object with the key `layer_types`; None for the config.
            known: the kinds that are supported.

        Raises:
            InputError: a kind is not supported, or the number of kinds is not `layers`.
        """
        kinds = (self.config if values is None else values).get("layer_types") or [FULL] * layers
        if (
            not isinstance(kinds, list)
            or len(kinds) != layers
            or any(k not in known for k in kinds)
        ):
            self.refuse("layer_types", kinds, f"{layers} entries, each {' or '.join(known)}")
        return kinds

    def stated(self, key: str, values: Mapping[str, Any], found: int) -> int:
        """What the tensors say of a size.

        Raises:
            InputError: the config says otherwise.
        """
        if values.get(key) not in (None, found):
            raise InputError(self.where, f"{key} {values[key]!r}", f"{found}, as its tensors have")
        return found

    def refuse(self, key: str, value: object, expected: str) -> None:
        """Refuse a convention that is not supported.

        Raises:
            InputError: always.
        """
        raise InputError(self.path, f"{key} {value!r}", expected)

    def taps(self, ids: object, shift: int = 0, width: int | None = None) -> dict[str, Any]:
        """The canonical keys `taps` and `target_hidden_size`, checked against the width of `fc`.

        Args:
            ids: the packaging's list of tap ids.
            shift: added to each id to make it that of the layer whose output is tapped.
            width: width of a tap; None takes the config's `target_hidden_size`, or without one the
                drafter's hidden size.

        Raises:
            InputError: `ids` is not a list of whole numbers, or `fc` does not have one column per
                element of the taps.
        """
        if not isinstance(ids, list) or not ids or any(type(i) is not int for i in ids):
            raise InputError(self.path, f"taps {ids!r}", "a list of layer numbers")
        fc = self.shapes.get("fc.weight", ())
        if width is None and self.config.get("target_hidden_size") is not None:
            width = self.whole("target_hidden_size")
        width = width or (fc[0] if fc else 0)
        if len(fc) != 2 or fc[1] != len(ids) * width:
            found = f"fc.weight {list(fc)} with taps {ids}"
            raise InputError(self.where, found, f"{len(ids)} x {width} columns, the target's width")
        return {"taps": tuple(i + shift for i in ids), "target_hidden_size": width}

    def shape_of_backbone(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The canonical keys for the sizes of a Qwen3-shaped backbone; `values` as in `need`."""
        values = self.config if values is None else values
        if values.get("attention_bias"):
            self.refuse("attention_bias", True, "projections without bias")
        if (act := values.get("hidden_act", "silu")) != "silu":
            self.refuse("hidden_act", act, "'silu'")
        if values.get(SINKS) and f"layers.0.self_attn.{SINKS}" not in self.shapes:
            self.refuse(SINKS, values[SINKS], f"tensors layers.N.self_attn.{SINKS}")
        head_dim = self.whole("head_dim", values)
        num_heads = self.whole("num_attention_heads", values)
        if (layers := self.whole("num_hidden_layers", values)) > len(self.shapes):
            self.refuse("num_hidden_layers", layers, f"fewer than {len(self.shapes)} tensors")
        queries = self.shapes.get("layers.0.self_attn.q_proj.weight", (0,))[0]
        return {
            "gated_queries": queries == 2 * num_heads * head_dim,
            "sinks": f"layers.0.self_attn.{SINKS}" in self.shapes,
            "hidden_size": self.whole("hidden_size", values),
            "intermediate_size": self.whole("intermediate_size", values),
            "num_layers": layers,
            "num_heads": num_heads,
            "num_kv_heads": self.whole("num_key_value_heads", values),
            "head_dim": head_dim,
            "rms_norm_eps": self.number("rms_norm_eps", values),
            "vocab_size": self.whole("vocab_size", values),
        }

    @property
    def rank(self) -> int:
        """The sequential head's rank, from its tensors; 0 without a head."""
        w1 = self.shapes.get("markov_head.markov_w1.weight")
        return w1[1] if w1 and len(w1) == 2 else 0

    def heads(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The canonical keys `head`, `head_rank` and `confidence`, from the tensors.

        Raises:
            InputError: the config contradicts the tensors, or the confidence head's input is
                neither the hidden row nor the hidden row with the head's embedding.
        """
        values = self.config if values is None else values
        w1, fc = self.shapes.get("markov_head.markov_w1.weight"), self.shapes.get("fc.weight")
        rank, stated = self.rank, values.get("markov_rank") or 0
        if stated != rank:
            found = f"markov_rank {stated} with " + (f"markov_w1 {list(w1)}" if w1 else "no head")
            raise InputError(self.where, found, "the rank of its tensors")
        kind = values.get("markov_head_type") or "vanilla" if rank else "none"
        proj = self.shapes.get("confidence_head.proj.weight")
        if proj is None:
            if values.get("enable_confidence_head"):
                found = "enable_confidence_head with no confidence_head tensors"
                raise InputError(self.where, found, "a confidence head")
            return {"head": kind, "head_rank": rank, "confidence": "none"}
        hidden = fc[0] if fc else 0
        widths = {hidden: "hidden", hidden + rank: "hidden+markov"} if rank else {hidden: "hidden"}
        if len(proj) != 2 or proj[1] not in widths:
            found = f"confidence_head.proj.weight {list(proj)}"
            raise InputError(self.where, found, f"[1, {' or '.join(map(str, widths))}]")
        return {"head": kind, "head_rank": rank, "confidence": widths[proj[1]]}

    def copies(self, keep: bool) -> dict[str, Any]:
        """The canonical keys `owns_embedding` and `owns_head`, for copies of the target's tables.

        Args:
            keep: True makes stored copies the drafter's own; False shares the target's tables.
        """
        stored = [name in self.shapes for name in COPIES]
        return {"owns_embedding": keep and stored[0], "owns_head": keep and stored[1]}

    def block(self, values: Mapping[str, Any], keep: bool) -> dict[str, Any]:
        """The canonical keys of taps, block, mask token, target's depth and copied tables.

        All packagings but vLLM's have the same source keys for them.

        Args:
            values: the config, with its nested objects merged in.
            keep: see `copies`.
        """
        return {
            **self.taps(self.need("target_layer_ids", values)),
            **self.copies(keep),
            "target_num_layers": self.whole("num_target_layers", values),
            "block_size": self.whole("block_size", values),
            "mask_token_id": self.need("mask_token_id", values),
        }

    def finish(self, **values: Any) -> DSparkConfig:
        """The canonical DSpark configuration with these keys, fully checked."""
        return self.finish_as(DSparkConfig, **values)

    def finish_as(self, kind: type[Config], **values: Any) -> Config:
        """The canonical configuration of a method's class with these keys, fully checked."""
        names = ("target_model_name_or_path", "_name_or_path", "target_model_type")
        target = next((self.config[name] for name in names if self.config.get(name)), "")
        config = kind(**{"target": str(target), **values})
        return kind.from_dict(config.to_dict(), self.path)


def proposed(source: Source) -> int | None:
    """The tokens a round that vLLM's packaging says; None where it does not."""
    methods = source.nested("speculators_config").get("proposal_methods")
    first = methods[0] if isinstance(methods, list) and methods else None
    tokens = first.get("speculative_tokens") if isinstance(first, dict) else None
    return tokens if type(tokens) is int else None


def is_named(config: Mapping[str, Any], shapes: Shapes, architecture: str) -> bool:
    """Whether a checkpoint has an architecture's name and a drafter's tensors."""
    return config.get("architectures") == [architecture] and "fc.weight" in shapes
