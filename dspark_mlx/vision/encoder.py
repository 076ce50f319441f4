"""The image encoder of a target: mlx-vlm's, loaded beside the target when the first image comes."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from ..checkpoint.linear import arrays_of
from ..checkpoint.precision import apply_precision, held_dtype
from ..checkpoint.safetensors import tensor_headers
from ..errors import InputError
from ..targets.network import evaluate, refusing
from ..targets.tables import find_embedding
from ..targets.tap import Forward
from .base import CausalImages
from .families import FAMILIES
from .images import check_installed

_TOKENS = ("image_token_id", "image_token_index")
# Arguments of mlx-lm's forwards, by the name that mlx-vlm's embeddings have.
_ARGUMENTS = {"inputs_embeds": "input_embeddings", "per_layer_inputs": "per_layer_inputs"}


class ImageEncoder:
    """Reads images for one target; its weights are read when the first image comes.

    mlx-vlm's model is opened without its language layers. Its embedding tables are the target's
    own, so that no weight is held twice.

    Args:
        folder: the target's.
        config: its config.json.
        precision: the type that weights are held in, as `choose_precision` returns it.
        network: mlx-lm's model of the target.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], precision: str, network: nn.Module
    ) -> None:
        self._folder, self._config = folder, config
        self._precision, self._network = precision, network
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None

    def read(self, text: str, images: Sequence[Any]) -> ImagePrompt:
        """The prompt that the processor makes of a text and its images.

        Args:
            text: what the chat template wrote, with a mark for each image.
            images: Pillow's.

        Raises:
            InputError: the target reads no images, its files lack the encoder or the processor, or
                the text has another number of marks.
        """
        from mlx_vlm.utils import prepare_inputs

        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            _, processor = self._loaded
            marks = text.count(processor.image_token)
            if marks != len(images):
                expected = f"as many marks {processor.image_token} as images, {len(images)}"
                raise InputError("messages", f"a prompt with {marks}", expected)
            with refusing(self._folder, "read these images with", "mlx-vlm"):
                inputs = prepare_inputs(processor, images=list(images), prompts=text)
                # Arrays of MLX belong to the thread that makes them.
                inputs = tree_map(_as_numpy, dict(inputs))
        ids = inputs.pop("input_ids")[0].tolist()
        return ImagePrompt(ids, inputs, self)

    def embed(self, prompt: ImagePrompt) -> EmbeddedPrompt:
        """Run the encoder; to be called under the target's turns.

        Raises:
            InputError: mlx-vlm cannot, or what it makes is more than embeddings.
        """
        assert self._loaded is not None
        encoder, _ = self._loaded
        tokens = mx.array([prompt.ids])
        inputs = tree_map(mx.array, prompt.inputs)
        mask = inputs.pop("attention_mask", None)
        with refusing(self._folder, "read these images with", "mlx-vlm"):
            made = encoder.get_input_embeddings(tokens, mask=mask, **inputs).to_dict()
            made = {name: value for name, value in made.items() if value is not None}
            mx.eval(list(made.values()))
            kind = FAMILIES[self._config["model_type"]]
            if more := made.keys() - kind.READS:
                found = f"embeddings with {', '.join(sorted(more))}"
                raise InputError(self._folder, found, "embeddings that mlx-lm's forward takes")
            is_image = np.array(prompt.ids) == self._image_token
            family = kind(self._network, self._config, is_image, made)
        rows = {argument: made[name] for name, argument in _ARGUMENTS.items() if name in made}
        return EmbeddedPrompt({"inputs": tokens, **rows}, family)

    @property
    def _image_token(self) -> int | None:
        return next((self._config[name] for name in _TOKENS if name in self._config), None)

    def _load(self) -> tuple[Any, Any]:
        """mlx-vlm's model without language layers, and its processor."""
        check_installed("messages")
        kind = self._config.get("model_type")
        if kind not in FAMILIES:
            expected = f"text, or a target of {', '.join(FAMILIES)}"
            raise InputError("messages", f"images for a target of {kind}", expected)
        headers = tensor_headers(self._folder)
        if not any("vision" in name for name in headers):
            hint = "mlx-lm's conversion leaves it out, mlx-vlm's keeps it."
            raise InputError(self._folder, "no image encoder", "a checkpoint with one", hint)
        # Only for images, since importing it takes seconds.
        from mlx_vlm.utils import load_model, load_processor

        with refusing(self._folder, "load", "mlx-vlm"):
            model = load_model(self._folder, lazy=True)
            text = model.language_model.model
            text.layers = []
            apply_precision(model, held_dtype(self._precision))
            text.embed_tokens = find_embedding(self._network, self._folder)
            own = {n.rpartition(".")[2]: m for n, m in self._network.named_modules()}
            if "embed_tokens_per_layer" in own:
                text.embed_tokens_per_layer = own["embed_tokens_per_layer"]
            # Gemma's processor makes an audio filter too, of which transformers warns.
            with warnings.catch_warnings(action="ignore", category=UserWarning):
                processor = load_processor(self._folder, False, trust_remote_code=False)
        evaluate(model, self._folder)
        mx.eval(arrays_of(model))
        return model, processor


@dataclass(frozen=True)
class ImagePrompt:
    """A prompt with images that are not encoded yet.

    Attributes:
        ids: its token ids, in which every row of an image has the image's token.
        inputs: what else the processor made, arrays of NumPy.
        encoder: the target's.
    """

    ids: list[int]
    inputs: dict[str, Any]
    encoder: ImageEncoder

    def embed(self) -> EmbeddedPrompt:
        """See `ImageEncoder.embed`."""
        return self.encoder.embed(self)


@dataclass(frozen=True)
class EmbeddedPrompt:
    """A prompt as embeddings.

    Attributes:
        rows: arguments of the network, each `[1, length, ...]`.
        family: runs the network.
    """

    rows: Mapping[str, mx.array]
    family: CausalImages

    def forward(self, start: int, stop: int) -> Forward:
        """The network's forward over a chunk."""
        rows = {name: value[:, start:stop] for name, value in self.rows.items()}
        return lambda tokens, caches: self.family.forward(rows, start, caches)


def _as_numpy(value: Any) -> Any:
    return np.array(value) if isinstance(value, mx.array) else value
