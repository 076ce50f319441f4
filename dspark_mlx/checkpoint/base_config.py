"""The fields that every drafter's canonical config.json has, and the strict reading of that file.

Each drafting method has a subclass, which stands beside its drafter. Every convention is a field:
a converter writes it and the rest of the package reads it, so that only the converters know how
the published packagings differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ..errors import InputError
from ..system.files import check_format
from .number_ranges import LARGEST, check_within
from .quantization import Quantization, read_quantization
from .rope_scaling import check_rope_scaling

FORMAT = "dspark_mlx"
FORMAT_VERSION = 1
ACTIVATIONS = ("silu", "gelu_tanh")
VALUES = ("projected", "keys")

# Layers may compute in float16, where a scale below this range is 0 and one above it is infinite.
_SCALES = (2.0**-14, 65504.0)
MAX_BLOCK = 256
"""Most tokens a block may have. Published drafters have up to 16; no tensor's shape shows it."""

DRAFT_IDS = "d2t"
"""Name of the tensor with a reduced draft vocabulary's token ids, int32 `[draft_vocab_size]`."""

Config = TypeVar("Config", bound="CanonicalConfig")


@dataclass(frozen=True, kw_only=True)
class CanonicalConfig:
    """The configuration that drafters of all methods share: their target and their layers.

    Attributes:
        METHOD: the method's name in config.json.
        EXAMPLE: the method's own fields in a small drafter, for measurements and tests.
        PROPOSES: what it drafts in a round, as a model card says it.
        READS_COPIES: whether it reads all copies of a target's stream that has several, side by
            side; False for their mean.
        hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim: sizes of a layer.
        rms_norm_eps: epsilon of every norm.
        vocab_size: rows of the target's head.
        target_hidden_size: width of one tap.
        target_num_layers: number of layers of the target that the drafter was trained on; 0 where
            the checkpoint does not say.
        taps: target layers whose output the drafter reads, ascending; -1 is the embedding output.
        rope_theta: base of the rotary embedding.
        owns_embedding, owns_head: True where the folder stores the drafter's own embedding or head;
            False where the drafter uses the target's.
        target: id or name of the target that the drafter was trained for; for messages only.
        quantization: how the stored weights are quantised; None where none is.
        rope_dims: dimensions of a head that are rotated, from its start; 0 for all.
        rope_interleaved: True where rotated pairs are neighbours, False where they are half a head
            apart.
        rope_scaling: the scaling as mlx-lm's `initialize_rope` takes it ("yarn", "llama3" or
            "proportional"); None for none.
        head_norms: True where each head's queries and keys are normed.
        sinks: True where each head of a layer has an attention sink: a stored logit that takes part
            in the softmax, without a value.
        gated_queries: True where the query projection has each head's output gate behind it.
        values: "projected", or "keys" where the unrotated key projection is the value, normed
            without weights.
        attention_scale: factor of the attention scores; 0 for head_dim ** -0.5.
        sandwich_norms: True where the sublayers' outputs are normed as well.
        layer_scalars: True where each layer's output is multiplied by a stored number.
        activation: activation of the gated MLP, one of ACTIVATIONS.
        embedding_scale: factor of the embeddings.
        output_multiplier: factor of the base logits, before the cap.
        softcap: cap of the base logits, before a sequential bias; 0 for none.
        draft_vocab_size: number of tokens that the drafter can propose, whose ids are in the tensor
            `d2t`; 0 where it can propose the whole vocabulary.
    """

    METHOD: ClassVar[str]
    EXAMPLE: ClassVar[dict[str, Any]]
    PROPOSES: ClassVar[str] = "blocks"
    READS_COPIES: ClassVar[bool] = False

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    vocab_size: int
    target_hidden_size: int
    target_num_layers: int
    taps: tuple[int, ...]
    rope_theta: float
    owns_embedding: bool
    owns_head: bool
    target: str
    quantization: Quantization | None = None
    rope_dims: int = 0
    rope_interleaved: bool = False
    rope_scaling: dict[str, Any] | None = None
    head_norms: bool = True
    sinks: bool = False
    gated_queries: bool = False
    values: str = "projected"
    attention_scale: float = 0.0
    sandwich_norms: bool = False
    layer_scalars: bool = False
    activation: str = "silu"
    embedding_scale: float = 1.0
    output_multiplier: float = 1.0
    softcap: float = 0.0
    draft_vocab_size: int = 0

    @property
    def gamma(self) -> int:
        """Tokens proposed per round."""
        raise NotImplementedError

    @property
    def has_confidence(self) -> bool:
        """Whether the drafter predicts how likely its tokens are to be accepted."""
        return False

    @property
    def depth(self) -> int:
        """Number of the drafter's layers; 0 for a method without layers."""
        return 0

    @property
    def convolved_rows(self) -> int:
        """Rows of a block along which its layers are convolved; 0 where they are not."""
        return 0

    @property
    def summary(self) -> str:
        """A few words that describe the drafter, for messages."""
        raise NotImplementedError

    @property
    def output_size(self) -> int:
        """Number of tokens that the drafter can propose."""
        return self.draft_vocab_size or self.vocab_size

    @property
    def can_be_cut(self) -> bool:
        """Whether a draft vocabulary may be cut out of its output, see `vocabulary.choose_size`."""
        return not self.draft_vocab_size

    @property
    def embedding_size(self) -> int:
        """Width of the embeddings that it reads."""
        return self.hidden_size

    @property
    def query_size(self) -> int:
        """Output features of a layer's query projection, gates included."""
        return self.num_heads * self.head_dim * (2 if self.gated_queries else 1)

    @property
    def attended(self) -> tuple[int, ...]:
        """How many committed positions before the anchor each layer attends to; 0 for all of them.

        Empty for a drafter whose layers have no windows.
        """
        return ()

    def with_window(self: Config, window: int) -> Config:
        """The configuration of a drafter that attends to the newest positions only.

        Args:
            window: how many committed positions before the anchor, at most.

        Raises:
            InputError: the method's drafters cannot.
        """
        found = f"{window} for a drafter of the method {self.METHOD}"
        raise InputError("draft_window", found, "none: it attends to all positions")

    def matrix_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name (without `.weight`) and `[out, in]` of every matrix of the folder, unquantised.

        A stack of matrices, such as experts, is `[n, out, in]`.
        """
        raise NotImplementedError

    def vector_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of what is never quantised: norms, biases, scalars, kernels."""
        raise NotImplementedError

    def id_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of what holds token ids, int32, each id once at most."""
        return {DRAFT_IDS: (self.draft_vocab_size,)} if self.draft_vocab_size else {}

    def alternatives(self) -> dict[str, tuple[Any, ...]]:
        """Fields whose wrong value only lowers acceptance and raises no error, with their values.

        `convert check` tries every value of each of them.
        """
        return {"rope_interleaved": (False, True)}

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json."""
        values = dataclasses.asdict(self)
        head = {"format": FORMAT, "format_version": FORMAT_VERSION, "method": self.METHOD}
        return head | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls: type[Config], data: dict[str, Any], where: Path | str) -> Config:
        """Read config.json strictly; `where` names it in errors.

        Raises:
            InputError: the file has another format, version or method, or a key is missing,
                unknown, of the wrong type or outside its range.
        """
        values = check_format(where, data, FORMAT, FORMAT_VERSION)
        if (method := method_of(data)) != cls.METHOD:
            raise InputError(where, f"method {method!r}", repr(cls.METHOD))
        values.pop("method", None)
        fields = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        if missing := sorted(required - set(values)):
            raise InputError(where, f"no {', '.join(missing)}", "every key of the format")
        if unknown := sorted(set(values) - set(fields)):
            raise InputError(where, f"unknown keys {', '.join(unknown)}", "the format's keys only")
        for name, value in values.items():
            _check_type(where, name, value, fields[name])
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if (quantization := values.get("quantization")) is not None:
            values["quantization"] = read_quantization(where, quantization)
        config = cls(**values)
        config._check(where)
        return config

    def _check(self, where: Path | str) -> None:
        """Refuse values outside their range.

        Raises:
            InputError: a value is outside its range; the first one is named.
        """
        self._check_positive(
            where,
            "hidden_size intermediate_size num_heads num_kv_heads head_dim vocab_size "
            "target_hidden_size",
        )
        self._check_within(where, "rms_norm_eps", 1e-20, 1.0)
        self._check_within(where, "rope_theta", 2.0, LARGEST)
        self._check_within(where, "embedding_scale", *_SCALES)
        self._check_within(where, "output_multiplier", *_SCALES)
        for name in ("attention_scale", "softcap"):
            if getattr(self, name) != 0:
                self._check_within(where, name, *_SCALES)
        if self.rope_scaling is not None:
            check_rope_scaling(where, self.rope_scaling)
        if self.num_heads % self.num_kv_heads:
            found = f"num_heads {self.num_heads} with num_kv_heads {self.num_kv_heads}"
            raise InputError(where, found, "a whole number of query heads per K/V head")
        if self.head_dim % 2:
            raise InputError(where, f"head_dim {self.head_dim}", "an even number")
        if self.target_num_layers < 0:
            found = f"target_num_layers {self.target_num_layers}"
            raise InputError(where, found, "0 where it is not known, or more")
        last = self.target_num_layers - 1 if self.target_num_layers else 1 << 30
        ascending = all(a < b for a, b in zip(self.taps, self.taps[1:], strict=False))
        if not self.taps or not ascending or self.taps[0] < -1 or self.taps[-1] > last:
            raise InputError(where, f"taps {list(self.taps)}", f"ascending layers in -1..{last}")
        if not 0 <= self.rope_dims <= self.head_dim or self.rope_dims % 2:
            found = f"rope_dims {self.rope_dims} of head_dim {self.head_dim}"
            raise InputError(where, found, "an even part of the head")
        if self.activation not in ACTIVATIONS or self.values not in VALUES:
            found = f"activation {self.activation!r}, values {self.values!r}"
            raise InputError(where, found, f"one of {ACTIVATIONS}, one of {VALUES}")
        if not 0 <= self.draft_vocab_size < self.vocab_size:
            found = f"draft_vocab_size {self.draft_vocab_size}"
            raise InputError(where, found, f"less than the vocabulary of {self.vocab_size}")
        if self.draft_vocab_size and not self.owns_head:
            raise InputError(where, "a draft vocabulary without a head", "a head of its own")

    def _check_within(self, where: Path | str, name: str, low: float, high: float) -> None:
        check_within(where, name, getattr(self, name), low, high)

    def _check_known(self, where: Path | str, **known: Collection[str]) -> None:
        """Refuse names that are not known; by field, those that are."""
        for name, values in known.items():
            if (found := getattr(self, name)) not in values:
                raise InputError(where, f"{name} {found!r}", f"one of {', '.join(values)}")

    def _check_token(self, where: Path | str, name: str) -> None:
        if not 0 <= (found := getattr(self, name)) < self.vocab_size:
            expected = f"an id of the vocabulary, below {self.vocab_size}"
            raise InputError(where, f"{name} {found}", expected)

    def _check_positive(self, where: Path | str, names: str) -> None:
        for name in names.split():
            if getattr(self, name) <= 0:
                raise InputError(where, f"{name} {getattr(self, name)}", "a positive number")


def method_of(data: dict[str, Any]) -> object:
    """The method that a config.json names; "dspark" for files older than the key."""
    return data.get("method", "dspark")


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "tuple[int, ...]": (list,),
    "tuple[bool, ...]": (list,),
    "dict[str, Any]": (dict,),
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
