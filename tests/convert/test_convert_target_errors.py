"""Targets that cannot be converted: one error that names the file, and nothing left behind."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.gguf_fixtures import checkpoint, load_gguf
from helpers.gguf_writer import (
    HIDDEN,
    MERGES,
    TOKENS,
    VOCAB,
    Raw,
    gguf_tensors,
    llama,
    metadata,
    quantize,
    write,
    write_gguf,
)

from dspark_mlx.convert.gguf.header import read_header
from dspark_mlx.convert.target import convert_target
from dspark_mlx.errors import InputError


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in gguf_tensors(llama()).items() if key != name}


def changed(name: str, array: np.ndarray, kind: str = "F32") -> dict[str, Any]:
    return gguf_tensors(llama()) | {name: (array, kind)}


def spoiled(name: str, value: float, kind: str = "F32") -> dict[str, Any]:
    tensors = gguf_tensors(llama(), kind)
    array, kind = tensors[name]
    if kind == "Q8_0":
        data = bytearray(quantize(array, kind))
        data[34:36] = struct.pack("<e", value)
        return tensors | {name: Raw(8, bytes(data), array.shape)}
    array = array.copy()
    array.flat[5] = value
    return tensors | {name: (array, kind)}


BAD_METADATA: list[tuple[dict[str, Any], str]] = [
    ({"general.architecture": "gemma3"}, "general.architecture 'gemma3'"),
    ({"llama.block_count": 3}, "9 missing"),
    ({"llama.block_count": 4_000_000_000}, "block_count 4000000000.*below 2"),
    ({"llama.block_count": 2_000_000_000}, "2000000000 layers"),
    ({"llama.rope.freq_base": -1.0}, "freq_base -1.0"),
    ({"llama.rope.freq_base": math.inf}, "freq_base inf"),
    (
        {"some.key": Raw(9, struct.pack("<IQ", 0, 2**25) + b"\0" * 2**25)},
        "33554432 values in some.key",
    ),
    ({"some.key": Raw(9, struct.pack("<IQ", 9, 1))}, "metadata type 9 in some.key"),
    ({"some.key": Raw(8, struct.pack("<Q", 2**63))}, "ending inside some.key"),
    ({"tokenizer.chat_template": 7}, "chat_template 7"),
    ({"llama.block_count": None}, "llama.block_count None"),
    ({"llama.block_count": "two"}, "llama.block_count 'two'"),
    ({"llama.embedding_length": 32, "llama.rope.dimension_count": 8}, "token_embd.weight F32"),
    ({"llama.attention.head_count_kv": [2, 2]}, r"head_count_kv \[2, 2\]"),
    ({"llama.attention.head_count_kv": 3}, "3 key heads"),
    ({"llama.rope.dimension_count": 8}, "dimension_count 8"),
    ({"llama.vocab_size": VOCAB + 1}, f"vocab_size {VOCAB + 1}"),
    ({"llama.expert_count": 8}, "8 experts"),
    ({"llama.attention.layer_norm_rms_epsilon": math.nan}, "rms_epsilon nan"),
    ({"llama.rope.scale_linear": 2.0}, "llama.rope.scale_linear"),
    ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "'longrope'"),
    ({"general.alignment": 0}, "general.alignment 0"),
    ({"some.key": Raw(13, struct.pack("<d", 1.0))}, "metadata type 13 in some.key"),
    ({"general.name": Raw(8, struct.pack("<Q", 2) + b"\xff\xfe")}, "not UTF-8"),
    ({"tokenizer.ggml.model": "bert"}, "'bert'"),
    ({"tokenizer.ggml.pre": "tekken"}, "tekken.*gpt-2, llama-bpe, qwen2, smollm"),
    ({"tokenizer.ggml.pre": 7}, "pre-tokenizer 7"),
    ({"tokenizer.ggml.eos_token_id": 2**32 - 2}, "eos token 4294967294"),
    ({"tokenizer.ggml.tokens": TOKENS[:-1]}, f"{VOCAB - 1} tokens"),
    ({"tokenizer.ggml.tokens": [*TOKENS[:-1], "hello"]}, rf"\({VOCAB - 1} different\)"),
    ({"tokenizer.ggml.tokens": [7] * VOCAB}, "other values in tokenizer.ggml.tokens"),
    ({"tokenizer.ggml.merges": [*MERGES, "hello x"]}, "the merge 'hello x'"),
    ({"tokenizer.ggml.merges": None}, "no tokenizer.ggml.merges"),
    ({"tokenizer.ggml.eos_token_id": VOCAB}, f"eos token {VOCAB}"),
    ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None}, "a bos_token"),
]


BAD_TENSORS: list[tuple[Any, str]] = [
    (lambda: without("blk.1.ffn_up.weight"), "1 missing.*blk.1.ffn_up.weight"),
    (lambda: without("token_embd.weight"), "no token_embd.weight"),
    (lambda: changed("blk.0.extra.weight", np.ones((4, 4))), "1 unknown.*blk.0.extra.weight"),
    (lambda: changed("blk.0.attn_v.weight", np.ones((HIDDEN, HIDDEN))), r"attn_v.*\(64, 64\)"),
    (lambda: changed("output_norm.weight", np.ones(HIDDEN), "Q8_0"), "output_norm.weight Q8_0"),
    (lambda: changed("rope_freqs.weight", np.ones(3)), r"rope_freqs.weight F32 \(3,\)"),
    (lambda: changed("rope_freqs.weight", np.arange(1, 9)), "rope_freqs.weight from 1 to 8"),
    (lambda: spoiled("blk.1.ffn_norm.weight", math.nan), "NaN.*blk.1.ffn_norm.weight"),
    (lambda: spoiled("blk.0.attn_q.weight", math.inf, "F16"), "NaN.*blk.0.attn_q.weight"),
    (lambda: spoiled("blk.0.attn_q.weight", math.nan, "BF16"), "NaN.*blk.0.attn_q.weight"),
    (lambda: spoiled("blk.0.attn_q.weight", math.nan, "Q8_0"), "NaN.*blk.0.attn_q.scales"),
    (lambda: gguf_tensors(llama()) | {"x": Raw(4, b"\0" * 64, (2, 32))}, "ggml type 4 for x"),
    (lambda: gguf_tensors(llama()) | {"x": Raw(99, b"\0" * 64, (2, 32))}, "ggml type 99 for x"),
    (lambda: gguf_tensors(llama()) | {"x": Raw(8, b"\0" * 64, (2, 33))}, r"shape \(2, 33\)"),
    (lambda: gguf_tensors(llama()) | {"x": Raw(0, b"", (0, 32))}, r"shape \(0, 32\)"),
    (lambda: gguf_tensors(llama()) | {"x": Raw(0, b"", (2**40, 32))}, "ending inside x"),
]


def refused(source: Path, pattern: str, **options: Any) -> None:
    """`convert_target` raises one error that names the source, and leaves no file behind."""
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(InputError, match=pattern) as caught:
        convert_target(source, source.parent / "out", **options)
    assert str(source.parent) in caught.value.where
    assert sorted(source.parent.rglob("*")) == before


@pytest.mark.parametrize(("changes", "pattern"), BAD_METADATA)
def test_bad_metadata_is_refused(tmp_path: Path, changes: dict[str, Any], pattern: str) -> None:
    refused(write(tmp_path / "m.gguf", **changes), pattern)


@pytest.mark.parametrize(("tensors", "pattern"), BAD_TENSORS)
def test_bad_tensors_are_refused(tmp_path: Path, tensors: Any, pattern: str) -> None:
    refused(write_gguf(tmp_path / "m.gguf", metadata(), tensors()), pattern)


def test_files_that_are_no_gguf_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    for content, pattern in [
        (b"", "an empty file"),
        (b"GG", "2 bytes"),
        (b"PK\3\4" + b"\0" * 99, "starts with b'PK"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "GGUF version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "ending inside the tensor table"),
    ]:
        file.write_bytes(content)
        refused(file, pattern)
    split = write(tmp_path / "m-00001-of-00003.GGUF")
    refused(split, "part 1 of a GGUF split in 3")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Every length is checked: in the header, in each table, at the last tensor's last byte."""
    file = write(tmp_path / "m.gguf")
    whole = file.read_bytes()
    cuts = [*range(0, 400, 7), *range(400, len(whole), 997), len(whole) - 1]
    for cut in cuts:
        file.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"bytes|empty"):
            load_gguf(file)


def test_damaged_bytes_never_end_the_process(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", metadata(), gguf_tensors(llama(), "Q4_0", "Q8_0"))
    whole = file.read_bytes()
    first = min(row.start for row in read_header(file).tensors.values())
    table = whole.index(b"token_embd.weight") - 8
    rng = np.random.default_rng(3)
    refusals = 0
    for attempt in range(150):
        damaged = bytearray(whole)
        at = rng.integers(*((0, 24), (24, first), (table, first))[attempt % 3])
        damaged[at] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        try:
            load_gguf(file)
        except InputError:
            refusals += 1
    assert refusals > 50


def spoil_nothing(_: Path) -> None: ...


def to_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def drop_shard(folder: Path) -> None:
    names = dict.fromkeys(mx.load(str(folder / "model.safetensors")), "model.safetensors")
    names["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def put_nan(folder: Path) -> None:
    arrays: Any = mx.load(str(folder / "model.safetensors"))
    mx.eval(arrays)  # what is not read yet is in the file that is written
    arrays["model.norm.weight"] = arrays["model.norm.weight"] * math.nan
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)


def drop_tensor(folder: Path) -> None:
    arrays: Any = mx.load(str(folder / "model.safetensors"))
    mx.eval(arrays)  # what is not read yet is in the file that is written
    del arrays["model.norm.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)


@pytest.mark.parametrize(
    ("settings", "spoil", "pattern"),
    [
        ({"model_file": "modeling_tiny.py"}, spoil_nothing, "code of its own.*modeling_tiny.py"),
        ({"model_type": "tiny", "auto_map": {"AutoModel": "x.Y"}}, spoil_nothing, "code of its"),
        ({"model_type": "tiny"}, spoil_nothing, "model_type 'tiny'"),
        ({"model_type": "../llama"}, spoil_nothing, "model_type '../llama'"),
        ({"model_type": "base"}, spoil_nothing, "mlx-lm cannot load"),
        ({}, to_pickle, "pytorch_model.bin"),
        ({}, cut_short, "model.safetensors"),
        ({}, drop_shard, "model-00002-of-00002.*lm_head.weight"),
        ({}, put_nan, "NaN or infinity in model.norm.weight"),
        ({}, drop_tensor, "mlx-lm cannot load.*model.norm.weight"),
        ({"hidden_size": 32}, spoil_nothing, "mlx-lm cannot load"),
        ({}, lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (
            {},
            lambda folder: (folder / "tokenizer.json").write_text("{"),
            "tokenizer.json: found text that is not JSON",
        ),
    ],
)
def test_bad_checkpoints_are_refused(
    tmp_path: Path, settings: dict[str, Any], spoil: Any, pattern: str
) -> None:
    source = checkpoint(tmp_path / "hf", **settings)
    spoil(source)
    refused(source, pattern)


def test_bad_settings_and_places_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", llama(), "Q4_0")
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"dtype.*'int8'"):
        convert_target(file, out, dtype="int8")
    with pytest.raises(InputError, match="7 bits in groups of 64"):
        convert_target(file, out, quantize=True, q_bits=7)
    with pytest.raises(InputError, match="the source, or a folder around it"):
        convert_target(file, tmp_path, overwrite=True)
    with pytest.raises(InputError, match="nothing-here"):
        convert_target(tmp_path / "nothing-here", out)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"a \.txt file"):
        convert_target(tmp_path / "notes.txt", out)
    convert_target(tmp_path, out)  # the folder's one .gguf
    with pytest.raises(InputError, match="an existing file or non-empty folder"):
        convert_target(file, out)
    with pytest.raises(InputError, match="quantised already"):
        convert_target(out, tmp_path / "again", quantize=True)
    write(tmp_path / "second.gguf")
    with pytest.raises(InputError, match=r"no config.json and 2 \.gguf files"):
        convert_target(tmp_path, tmp_path / "third")
    big = spoiled("blk.0.ffn_norm.weight", 1e6)
    with pytest.raises(InputError, match=r"NaN or infinity in model.layers.0.post_attention"):
        convert_target(write_gguf(file, metadata(), big), tmp_path / "x", dtype="float16")
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["m.gguf", "notes.txt", "out", "second.gguf"]


def test_what_llama_cpp_writes_is_taken(tmp_path: Path) -> None:
    """A whole file named as a part, an upper-case ending, ids that say there is none, numbers of
    other types, no pre-tokenizer: each was refused."""
    plain = write(tmp_path / "plain.gguf", **{"tokenizer.ggml.pre": "default"})
    changes: dict[str, Any] = {
        "tokenizer.ggml.pre": None,
        "tokenizer.ggml.padding_token_id": Raw(5, struct.pack("<i", -1)),
        "tokenizer.ggml.unknown_token_id": 2**32 - 1,
        "llama.rope.freq_base": 50000,
        "llama.attention.layer_norm_rms_epsilon": Raw(12, struct.pack("<d", 1e-5)),
        "llama.context_length": 128.0,
        "llama.block_count": Raw(10, struct.pack("<Q", 2)),
    }
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "m-00001-of-00001.GGUF", **changes)
    made = convert_target(tmp_path / "folder", tmp_path / "out")
    expected = convert_target(plain, tmp_path / "expected")
    config, same = (json.loads((f / "config.json").read_text()) for f in (made, expected))
    assert same.pop("pad_token_id") == 2 and config == same
    tokenizers = [json.loads((f / "tokenizer.json").read_text()) for f in (made, expected)]
    assert tokenizers[0] == tokenizers[1]
