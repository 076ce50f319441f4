"""A target's folder as it is read: what mlx-lm would crash on, or take for numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.gguf_fixtures import checkpoint
from helpers.packaged import PACKAGED

from dspark_mlx.checkpoint.number_ranges import all_finite
from dspark_mlx.checkpoint.quantization import group_sizes
from dspark_mlx.convert.target import convert_target
from dspark_mlx.convert.target_checkpoint import say_plain
from dspark_mlx.errors import InputError
from dspark_mlx.load import load
from dspark_mlx.targets.network import evaluate, open_network

WEIGHTS, CONFIG = "model.safetensors", "config.json"
NARROW = "model.layers.0.mlp.up_proj.weight"
_SIZES = {"F32": 4, "F8_E4M3": 1, "F8_E8M0": 1, "U8": 1, "I8": 1}


def write_raw(path: Path, tensors: dict[str, np.ndarray], kinds: dict[str, str]) -> None:
    """A safetensors file, float32 but for tensors of `kinds`, whose bytes are all zero."""
    header: dict[str, Any] = {}
    body = b""
    for name, array in tensors.items():
        kind = kinds.get(name, "F32")
        raw = array.astype("<f4").tobytes() if kind == "F32" else bytes(array.size)
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        body += raw
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + body)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {n: np.array(a) for n, a in mx.load(str(folder / WEIGHTS)).items()}  # type: ignore[union-attr]


def config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        held = json.loads((folder / CONFIG).read_text()) | changes
        (folder / CONFIG).write_text(json.dumps(held))

    return edit


def typed(kind: str) -> Callable[[Path], None]:
    return lambda folder: write_raw(folder / WEIGHTS, arrays(folder), {NARROW: kind})


def value(number: float) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        held = arrays(folder)
        held[NARROW].flat[7] = number
        write_raw(folder / WEIGHTS, held, {})

    return edit


def shards(folder: Path) -> None:
    """Two shards and their index, of which the second shard is missing."""
    held = arrays(folder)
    names, first = list(held), "model-00001-of-00002.safetensors"
    second = "model-00002-of-00002.safetensors"
    files = {name: first if i % 2 else second for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    write_raw(folder / first, {n: a for n, a in held.items() if files[n] == first}, {})
    (folder / WEIGHTS).unlink()


def numbered(folder: Path) -> None:
    shards(folder)
    (folder / "model.safetensors.index.json").unlink()


def index(weight_map: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = json.dumps({"weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text)

    return edit


def twice(folder: Path) -> None:
    entry = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    head = b"{" + entry + b"," + entry + b"}"
    (folder / WEIGHTS).write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))


def deep(folder: Path) -> None:
    head = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (folder / WEIGHTS).write_bytes(len(head).to_bytes(8, "little") + head)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    **{kind: (typed(kind), f"{NARROW} of type {kind}") for kind in _SIZES if kind != "F32"},
    "NaN": (value(math.nan), f"NaN or infinity in {NARROW}"),
    "infinity": (value(-math.inf), f"NaN or infinity in {NARROW}"),
    "missing shard": (shards, r"model-00002-of-00002.safetensors: found no such file.*repeat it"),
    "missing shard without an index": (numbered, "model-00002-of-00002.safetensors: found no such"),
    "index of another type": (index([1]), r"weight_map \[1\]"),
    "index of no file names": (index({"a": 7}), "weight_map"),
    "one name twice": (twice, "a twice in the header"),
    "deep header": (deep, "recursion limit"),
    "layers": (config(num_hidden_layers=10**9), "num_hidden_layers 1000000000; expected 1 to 20"),
    "vocabulary": (config(vocab_size=10**12), "vocab_size 1000000000000; expected"),
    "width": (config(hidden_size=10**9), "hidden_size 1000000000; expected"),
    "text_config": (config(text_config=[1]), r"text_config \[1\]; expected an object"),
    "quantization": (config(quantization=4), "quantization 4; expected an object"),
    "quantization without keys": (config(quantization={"bits": 4}), "mlx-lm cannot load.*KeyErr"),
    "norm epsilon": (config(rms_norm_eps=math.nan), "rms_norm_eps nan; expected a finite number"),
    "negative epsilon": (config(rms_norm_eps=-1.0), "rms_norm_eps -1.0"),
    "rope base": (
        config(rope_theta=10**400),
        "found rope_theta of 401 digits; expected a number within a float's range",
    ),
    "scaling": (
        config(rope_scaling={"rope_type": "linear", "factor": math.inf}),
        "rope_scaling.factor inf",
    ),
    "no heads": (config(num_attention_heads=0), "mlx-lm cannot load.*ZeroDivisionError"),
    "family of code": (config(model_file="x.py"), "no code in a checkpoint"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_target_is_refused(case, tmp_path):
    """A traceback of mlx-lm or MLX, a page of tensor names, a full memory, or bytes as weights."""
    edit, pattern = BROKEN[case]
    folder = checkpoint(tmp_path / "hf")
    edit(folder)
    with pytest.raises(InputError, match=pattern) as caught:
        evaluate(open_network(folder)[0], folder)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message and len(message) < 1000


def test_settings_that_only_a_forward_meets_are_refused(tmp_path):
    """TypeError of MLX's rope for a base in letters, which no loader looks at."""
    folder = checkpoint(tmp_path / "hf")
    config(rope_theta="ten thousand")(folder)
    with pytest.raises(InputError, match=r"mlx-lm cannot run.*TypeError") as caught:
        load(folder, False)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_drafter_given_as_a_target_is_named(tmp_path):
    """Pages of tensors that a target does not have."""
    PACKAGED["deepspec_qwen3"](tmp_path / "drafter")
    with pytest.raises(InputError, match=r"found a drafter.*--drafter"):
        open_network(tmp_path / "drafter")


def test_folders_that_mlx_lm_overlooks_are_loaded(tmp_path):
    """Glob characters in a path, and weights under another name: "No safetensors found"."""
    plain = checkpoint(tmp_path / "hf")
    odd = checkpoint(tmp_path / "a [4bit] *model?")
    (odd / WEIGHTS).rename(odd / "weights.00.safetensors")
    models = [open_network(folder)[0] for folder in (plain, odd)]
    for folder, model in zip((plain, odd), models, strict=True):
        evaluate(model, folder)
    tokens = mx.array([[1, 2, 3]])
    assert mx.array_equal(*(model(tokens) for model in models))


def test_an_unlimited_time_step_is_taken(tmp_path):
    """Published configs of state-space models hold infinity there."""
    folder = checkpoint(tmp_path / "hf")
    config(time_step_limit=[0.0, math.inf])(folder)
    open_network(folder)


def quantized(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    source = checkpoint(tmp_path / "hf", **changes)
    folder = convert_target(source, tmp_path / "out", quantize=True)
    evaluate(open_network(folder)[0], folder)
    made = json.loads((folder / CONFIG).read_text())["quantization"]
    assert isinstance(made, dict)
    return made


def test_rows_that_the_group_does_not_divide_get_a_smaller_one(tmp_path):
    """`-q` that leaves a matrix of rows of 96 plain, and of such a model alone everything."""
    made = quantized(tmp_path)
    down = made["model.layers.0.mlp.down_proj"]
    up = made.get("model.layers.0.mlp.up_proj", made)
    assert (down["group_size"], up["group_size"], up["bits"]) == (32, 64, 4)


def test_what_stays_plain_is_said(tmp_path, capsys):
    """`-q` that hardly quantises anything, without a word."""
    source = tmp_path / "m.gguf"
    rows = {"model.layers.0.mlp.up_proj": 64, "model.layers.0.mlp.down_proj": 100}
    say_plain(source, rows, group_sizes(source, rows, 64))
    said = capsys.readouterr().err
    assert "1 of 2 matrices stay plain" in said and "down_proj" in said and "up_proj" not in said


def test_nothing_that_could_be_quantized_is_refused():
    """`-q` that quantises nothing and says that all is well."""
    with pytest.raises(InputError, match="rows a of 48, b of 100; expected rows that 64 or 32"):
        group_sizes("model", {"a": 48, "b": 100}, 64)
    assert group_sizes("model", {"a": 48, "b": 128, "c": 96}, 64) == {"b": 64, "c": 32}


def test_finite_numbers_whose_sum_is_too_large_are_finite():
    """Weights refused for the sum that was only a shortcut."""
    assert all_finite(mx.full((64,), 60000.0, dtype=mx.float16))
    assert all_finite(mx.array([1, 2])) and all_finite(mx.array([-1e38] * 9))
    assert not any(all_finite(mx.array([1.0, bad, -bad])) for bad in (math.nan, math.inf))
