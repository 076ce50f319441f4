"""Opens a target's folder as mlx-lm's model; no other module calls mlx-lm's loader.

The files are checked before mlx-lm reads them, and its exceptions become one InputError that names
the folder.
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

from ..caches import CacheSettings, new_caches
from ..checkpoint.number_ranges import all_finite, check_numbers
from ..checkpoint.safetensors import TensorHeader, tensor_headers
from ..checkpoint.size_limits import check_sizes
from ..deepseek_v4.config import ModelArgs, checked_args
from ..deepseek_v4.weights import as_mlx_quantization
from ..errors import InputError
from ..system.files import read_json
from .deepseek_v4.model import Model
from .tap_check import PROBE, check_logits, probe_logits

# Exceptions of Python, MLX, mlx-lm and transformers for a checkpoint that contradicts itself.
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
# Names of families that published files have and mlx-lm does not.
_NAMES = {"lfm2_vl": "lfm2-vl"}
# Families that mlx-lm has no class for: the model, its arguments, their check, and how config.json
# would say in MLX's words what its quantization_config says.
_OWN = {"deepseek_v4": (Model, ModelArgs, checked_args, as_mlx_quantization)}
_DRAFTERS = ("fc.weight", "model.fc.weight")
# mlx-lm reads end tokens and other software's description of quantised weights in these files.
_BESIDE = ("generation_config.json", "hf_quant_config.json")


def open_network(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A target's model, whose weights are not read yet, and its config as mlx-lm completes it.

    Raises:
        InputError: the folder is not a target, is damaged, has code of its own, or cannot be loaded
            by mlx-lm.
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
    own, classes = _OWN.get(str(config.get("model_type"))), {}
    if own is not None:
        model_class, arguments, check, quantization = own
        check(where, config)
        config = quantization(config)
        classes = {"get_model_classes": lambda config: (model_class, arguments)}
    with refusing(folder), _as_mlx_lm_reads(folder, config, headers) as view:
        model, config = load_model(view, lazy=True, **classes)
        _check_types(model, headers, folder)
    return model, config


@contextmanager
def refusing(folder: Path, does: str = "load", library: str = "mlx-lm") -> Iterator[None]:
    """Turn what mlx-lm raises in the block into one line; a first forward may raise as well.

    Args:
        folder: the target's.
        does: what the library is asked to do with it, as an infinitive.
        library: the one that is asked.

    Raises:
        InputError: it names the folder and what was raised.
    """
    try:
        yield
    except InputError:
        raise
    except REFUSALS as error:
        raise refusal(folder, error, does, library) from error


def refusal(
    folder: Path, error: BaseException, does: str = "load", library: str = "mlx-lm"
) -> InputError:
    """The InputError for an exception that mlx-lm raised on a folder.

    Args:
        folder: the target's.
        error: what was raised.
        does: what the library was asked to do with it, as an infinitive.
        library: the one that was asked.
    """
    reason = f"{type(error).__name__}: {error}"
    found = f"a checkpoint that {library} cannot {does} ({reason})"
    return InputError(folder, found, f"one that {library} can {does}")


def evaluate(model: nn.Module, folder: Path) -> None:
    """Read the weights of an opened model, one at a time, and check that all are finite.

    Raises:
        InputError: a weight holds NaN or infinity, or a quantised weight's scales or biases do.
    """
    try:
        for name, array in tree_flatten(model.parameters()):
            mx.eval(array)
            if not all_finite(array):
                raise InputError(folder, f"NaN or infinity in {name}", "finite numbers")
    except RuntimeError as error:
        raise refusal(folder, error) from error


def check_quantized(model: nn.Module, folder: Path, settings: CacheSettings) -> None:
    """Run a few tokens with a quantized cache, which not every family's attention can read.

    Raises:
        InputError: the model cannot compute them, or its heads have no whole number of groups.
    """
    settings = settings.quantized_at_once
    if settings.kv_bits is None:
        return
    does = f"run with kv_bits {settings.kv_bits}, kv_group_size {settings.kv_group_size}"
    caches = new_caches(model, folder, settings)
    with refusing(folder, does):
        for rows in PROBE[:, :2], PROBE[:, 2:]:
            logits = model(rows, cache=caches)
            mx.eval(logits)
            settings.refuse_head_sizes(caches, folder)
            settings.quantize(caches)


def first_logits(model: nn.Module, folder: Path) -> mx.array:
    """Logits of a few fixed tokens: the first forward, which meets settings of a wrong type.

    Raises:
        InputError: the model cannot compute them, or they are not finite.
    """
    with refusing(folder, "run"):
        logits = probe_logits(model)
        mx.eval(logits)
    check_logits(logits, folder)
    return logits


@contextmanager
def _as_mlx_lm_reads(
    folder: Path, config: dict[str, Any], headers: dict[str, TensorHeader]
) -> Iterator[Path]:
    """A temporary folder of links to the checkpoint's files, under names that mlx-lm finds.

    mlx-lm finds only `model*.safetensors`, finds no file under a path with glob characters, and
    cannot read a config.json with a byte-order mark or another spelling of the family. MLX's arrays
    keep their files open, so the links can be removed before the weights are read.
    """
    with tempfile.TemporaryDirectory(prefix="dspark-mlx-") as name:
        view = Path(name)
        kind = config.get("model_type")
        config = config | {"model_type": _NAMES[kind]} if kind in _NAMES else config
        (view / "config.json").write_text(json.dumps(config), encoding="utf-8")
        files = dict.fromkeys(header.path for header in headers.values())
        for number, file in enumerate(files):
            (view / f"model-{number:05d}.safetensors").symlink_to(file.resolve())
        for beside in _BESIDE:
            if (folder / beside).exists():
                (view / beside).symlink_to((folder / beside).resolve())
        yield view


def _check_types(model: nn.Module, headers: dict[str, TensorHeader], folder: Path) -> None:
    """Refuse FP8 or integer weights in a layer that would compute with them as plain numbers.

    MLX reads FP8 as bytes, and layers compute with bytes without an error. Such weights belong to a
    quantisation that config.json does not declare.
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
