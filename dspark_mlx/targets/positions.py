"""The number of positions that a target was made for, the warning when a text fills them, and the
position from which several rows of a forward do not stand where single ones do."""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Collection, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.nn as nn

from ..errors import InputError
from ..numbers import plain, shown
from ..types import Round

# GPT-2's table of positions is as long as n_positions says, whatever n_ctx is. DBRX has
# max_seq_len, OLMo max_sequence_length, OpenELM max_context_length, ChatGLM seq_length, Lille
# block_size.
_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length",
    "max_context_length", "seq_length", "block_size")  # fmt: skip
# The only length of Kimi Linear. Beside a shorter max_position_embeddings, as in Command-R, it is
# the length that the model was trained up to.
_LONGEST = "model_max_length"
# Where each kind of layer has a scaling of its own, that of the layers without a window.
_UNWINDOWED = "full_attention"
# Kinds of rope scaling whose `factor` lengthens the context; other kinds keep it.
_LENGTHENING = ("linear", "dynamic", "yarn", "deepseek_yarn", "telechat3-yarn", "llama3",
    "longrope", "su")  # fmt: skip
_ORIGINAL = "original_max_position_embeddings"
# mlx-lm's ropes whose base follows the length of the text. InternLM 3's adds its heads, not rows.
_DYNAMIC, _MOST_HEADS = "DynamicNTKScalingRoPE", 128


def max_length(folder: Path, config: Mapping[str, Any]) -> int | None:
    """The number of positions that a target was made for; None when its config does not say.

    With rope scaling it is `factor` times `original_max_position_embeddings`, or times
    `max_position_embeddings` when the config gives no original length, as in vLLM. A config whose
    own `max_position_embeddings` or `model_max_length` is larger is believed.

    Args:
        folder: the target's folder, for errors.
        config: its config.json.

    Raises:
        InputError: a length is not a positive whole number.
    """
    text = config.get("text_config")
    for values in (config, text if isinstance(text, Mapping) else {}):
        said = [key for key in _KEYS if values.get(key) is not None][:1]
        lengths = [_scaled(values, _length(folder, key, values[key])) for key in said]
        if values.get(_LONGEST) is not None:
            lengths.append(_length(folder, _LONGEST, values[_LONGEST]))
        if lengths:
            return max(lengths)
    return None


def rows_alike_until(model: nn.Module) -> int:
    """The position up to which rows of one forward stand where each of them would stand alone.

    Behind it a dynamic rope turns all rows of a forward by the base of the last one's position.
    """
    ropes = (module for module in model.modules() if type(module).__name__ == _DYNAMIC)
    lengths = (rope.max_position_embeddings for rope in ropes)
    return min((n - min(n // 8, _MOST_HEADS) for n in lengths), default=sys.maxsize)


def _length(folder: Path, key: str, value: object) -> int:
    length = _number(value)
    if length is None or length < 1 or length != int(length):
        found = f'"{key}": {shown(value)}'
        raise InputError(folder / "config.json", found, "a whole number above 0, or null")
    return int(length)


def _scaled(config: Mapping[str, Any], length: int) -> int:
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(scaling, Mapping):
        return length
    by_kind = scaling.get(_UNWINDOWED)
    if isinstance(by_kind, Mapping):
        scaling = by_kind
    # Gemma 3's length includes the scaling already, without saying so.
    if str(config.get("model_type")).startswith("gemma3"):
        return length
    kind = scaling.get("type") or scaling.get("rope_type")
    factor = _number(scaling.get("factor"))
    if kind not in _LENGTHENING or factor is None or not 1 < factor < 1 << 20:
        return length
    original = _number(scaling.get(_ORIGINAL) or config.get(_ORIGINAL))
    if original is None and kind in ("llama3", "longrope", "su"):
        return length
    return max(length, int((original or length) * factor))


def _number(value: object) -> float | None:
    number = plain(value)
    if isinstance(number, str) and number.strip().isdecimal() and len(number) < 20:
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    return number if abs(number) < math.inf else None


def warn_when_cut(
    rounds: Iterator[Round], limit: int, asked: int, stop_tokens: Collection[int]
) -> Generator[Round, None, None]:
    """The rounds, with a warning when a text ends because the target has no position left.

    Args:
        rounds: the rounds of one request.
        limit: number of tokens that the target has positions for.
        asked: the request's `max_tokens`, which is more than `limit`.
        stop_tokens: ids that end a text by themselves, without a warning.
    """
    count = 0
    with contextlib.ExitStack() as stack:
        if isinstance(rounds, Generator):
            stack.callback(rounds.close)
        for round_ in rounds:
            count += len(round_.tokens)
            if count >= limit and round_.tokens[-1] not in stop_tokens:
                warnings.warn(
                    f"The text ends after {limit} of max_tokens {asked}: it fills the positions "
                    "that the target was made for.",
                    stacklevel=2,
                )
            yield round_
