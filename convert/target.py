"""Converts a target model, a Hugging Face checkpoint or a GGUF file, to an MLX folder.

The folder has config.json, model*.safetensors and the tokenizer's files, as mlx-lm reads them.
Tensors are written as they are read: memory holds a shard of 512 MB and the largest tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlx_lm.convert import MODEL_CONVERSION_DTYPES

from ..checkpoint.hub import checkpoint_place, resolve
from ..checkpoint.quantization import GROUP_SIZES, QUANTIZED_BITS, check_quantization
from ..errors import InputError
from ..system.files import check_apart
from ..system.staging import staged_folder
from .deepseek_v4.forms import RECIPES, Form, Rules
from .deepseek_v4.run import convert_deepseek_v4, is_deepseek_v4
from .target_checkpoint import write_checkpoint
from .target_gguf import write_gguf


def convert_target(
    source: str | Path,
    destination: str | Path,
    *,
    quantize: bool = False,
    q_bits: int = 4,
    q_group_size: int = 64,
    q_exceptions: Mapping[str, int | None] | None = None,
    recipe: str | None = None,
    head_only: bool = False,
    dtype: str | None = None,
    overwrite: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """Convert a target model to an MLX folder, which appears whole or not at all.

    DeepSeek V4 comes with its head, and a conversion that was stopped goes on: see
    `convert_deepseek_v4`.

    Args:
        source: a Hugging Face folder, a Hub id (owner/name), a .gguf file, or a folder with exactly
            one .gguf file and no config.json.
        destination: the folder to write.
        quantize: whether to quantise the linear layers and the embedding. A GGUF file is
            dequantised first; without `quantize` its Q4_0, Q4_1 and Q8_0 tensors stay bit for bit.
        q_bits: bits per weight, with `quantize`.
        q_group_size: weights that share a scale, with `quantize` or in `q_exceptions`.
        q_exceptions: of DeepSeek V4: other bits, or None for plain, by parts of names; see `Rules`.
            Its experts keep their FP4, also with `quantize`, where no exception is for them.
        recipe: of DeepSeek V4: one of `RECIPES`, for what `q_exceptions` do not name.
        head_only: of DeepSeek V4: convert its head and leave the target out.
        dtype: type of all tensors that are not packed, scales included: "float16", "bfloat16" or
            "float32". None keeps the checkpoint's type (its config's torch_dtype, as in mlx-lm). A
            GGUF file stores its norms in float32, which makes MLX compute in float32: "float16" is
            faster on a GPU. With `quantize`, None gives a GGUF file's norms its matrices' type.
        overwrite: whether to replace an existing `destination`.
        finish: called with the complete folder before it gets its name; if it raises an exception,
            nothing is left behind.

    Returns:
        `destination`.

    Raises:
        InputError: the source is missing, is damaged, cannot be converted or needs code of its own;
            a setting is impossible; or the destination cannot be written.
    """
    if dtype not in (None, *MODEL_CONVERSION_DTYPES):
        raise InputError("dtype", repr(dtype), f"one of {', '.join(MODEL_CONVERSION_DTYPES)}")
    if quantize and (q_bits not in QUANTIZED_BITS or q_group_size not in GROUP_SIZES):
        found = f"{q_bits} bits in groups of {q_group_size}"
        raise InputError("quantize", found, f"bits of {QUANTIZED_BITS} and groups of {GROUP_SIZES}")
    path, destination = checkpoint_place(resolve(source)), Path(destination)
    check_apart(path, destination)
    if is_deepseek_v4(path):
        rules = _rules(quantize, q_bits, q_group_size, q_exceptions, recipe)
        about: dict[str, Any] = {"overwrite": overwrite, "finish": finish}
        convert_deepseek_v4(path, destination, rules, dtype=dtype, head_only=head_only, **about)
        return destination
    if q_exceptions or recipe or head_only:
        name = "head_only" if head_only else "recipe" if recipe else "q_exceptions"
        raise InputError(name, f"one for {path}", "a DeepSeek V4 checkpoint, which alone has them")
    quantization = {"group_size": q_group_size, "bits": q_bits} if quantize else None
    write = write_gguf if path.is_file() else write_checkpoint
    with staged_folder(destination, overwrite=overwrite) as staged:
        write(path, staged, quantization, dtype)
        if finish:
            finish(staged)
    return destination


def _rules(
    quantize: bool,
    bits: int,
    group_size: int,
    exceptions: Mapping[str, int | None] | None,
    recipe: str | None,
) -> Rules:
    """The forms that the arguments of `convert_target` ask for."""
    if recipe is not None and recipe not in RECIPES:
        raise InputError("recipe", repr(recipe), f"one of {', '.join(RECIPES)}")
    own: dict[str, Form | None] = {}
    for part, asked in (exceptions or {}).items():
        if asked is not None:
            check_quantization(f"quantisation exception {part}", asked, group_size)
        own[part] = None if asked is None else Form(asked, group_size)
    whole = Form(bits, group_size) if quantize else None
    return Rules(whole, own, RECIPES[recipe] if recipe else {})
