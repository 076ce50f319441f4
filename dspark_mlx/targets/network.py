"""A target's folder to mlx-lm's model: the only place that calls its loader.

What it reads is checked first, and what it raises becomes one InputError that names the folder.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub.errors import StrictDataclassError
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from ..checkpoint.number_ranges import all_finite, check_numbers
from ..checkpoint.safetensors import TensorHeader, tensor_headers
from ..checkpoint.size_limits import check_sizes
from ..errors import InputError
from ..system.files import read_json

# What Python, MLX, mlx-lm and transformers raise for a checkpoint that contradicts itself.
REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    StrictDataclassError,
    SystemExit,
)
_OBJECTS = ("text_config", "quantization", "quantization_config")
_DRAFTERS = ("fc.weight", "model.fc.weight")
# Of other software's; mlx-lm reads how weights are quantised there.
_BESIDE = ("generation_config.json", "hf_quant_config.json")


def open_network(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A target's model, its weights not read yet, and its configuration as mlx-lm completes it.

    Raises:
        InputError: no target, a damaged one, one with code of its own, or one that mlx-lm cannot
            load.
    """
    where = folder / "config.json"
    config = read_json(where)
    if "model_file" in config:
        found = f"a model_file, {config['model_file']!r}"
        raise InputError(where, found, "no code in a checkpoint")
    headers = tensor_headers(folder)
    if any(name in headers for name in _DRAFTERS):
        kind = config.get("architectures") or config.get("format")
        raise InputError(
            folder, f"a drafter ({kind})", "a target; a drafter is passed as --drafter"
        )
    check_numbers(where, config)
    for key in _OBJECTS:
        if not isinstance(config.get(key, {}), dict | None):
            raise InputError(where, f"{key} {config[key]!r}", "an object")
    check_sizes(where, config, headers)
    with refusing(folder), _as_mlx_lm_reads(folder, config, headers) as view:
        model, config = load_model(view, lazy=True)
        _check_types(model, headers, folder)
    return model, config


@contextmanager
def refusing(folder: Path) -> Iterator[None]:
    """Turn what mlx-lm raises in the block into one line; a first forward may raise as well.

    Raises:
        InputError: it names the folder and what was raised.
    """
    try:
        yield
    except InputError:
        raise
    except REFUSALS as error:
        raise refusal(folder, error) from error


def refusal(folder: Path, error: BaseException) -> InputError:
    """What mlx-lm raised for a folder, as the one error."""
    reason = f"{type(error).__name__}: {error}"
    found = f"a checkpoint that mlx-lm cannot load ({reason})"
    return InputError(folder, found, "one that mlx-lm loads")


def evaluate(model: nn.Module, folder: Path) -> None:
    """Read the weights of an opened model, one at a time, and look at each.

    Raises:
        InputError: NaN or infinity; of quantised weights the scales and biases are looked at.
    """
    try:
        for name, array in tree_flatten(model.parameters()):
            mx.eval(array)
            if not all_finite(array):
                raise InputError(folder, f"NaN or infinity in {name}", "finite numbers")
    except RuntimeError as error:
        raise refusal(folder, error) from error


@contextmanager
def _as_mlx_lm_reads(
    folder: Path, config: dict[str, Any], headers: dict[str, TensorHeader]
) -> Iterator[Path]:
    """A folder of links to the checkpoint's files, under the names that mlx-lm looks for.

    It takes `model*.safetensors` only, none in a folder whose path has glob characters, and no
    config.json with a byte-order mark. Its arrays keep their files open, so that the links may go.
    """
    with tempfile.TemporaryDirectory(prefix="dspark-mlx-") as name:
        view = Path(name)
        (view / "config.json").write_text(json.dumps(config), encoding="utf-8")
        files = dict.fromkeys(header.path for header in headers.values())
        for number, file in enumerate(files):
            (view / f"model-{number:05d}.safetensors").symlink_to(file.resolve())
        for beside in _BESIDE:
            if (folder / beside).exists():
                (view / beside).symlink_to((folder / beside).resolve())
        yield view


def _check_types(model: nn.Module, headers: dict[str, TensorHeader], folder: Path) -> None:
    """Refuse FP8 or integer weights in a layer that takes them for numbers.

    MLX reads FP8 as bytes, and no layer minds: a quantisation that its config does not declare.
    """
    for path, module in model.named_modules():
        if "scales" in module or "weight_scale" in module:
            continue
        for part in ("weight", "bias"):
            array = module.get(part)
            if isinstance(array, mx.array) and not mx.issubdtype(array.dtype, mx.floating):
                name = f"{path}.{part}".lstrip(".")
                stored = headers.get(name)
                kind = stored.dtype if stored else str(array.dtype).removeprefix("mlx.core.")
                expected = "F32, F16 or BF16, or a quantization in config.json that mlx-lm reads"
                raise InputError(folder, f"{name} of type {kind}", expected)
