"""What is converted and stored is what was published, bit for bit; quantised drafters draft on."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.packaged import PACKAGED
from safetensors.numpy import load_file

import dspark_mlx
from dspark_mlx.checkpoint.base_config import CanonicalConfig
from dspark_mlx.checkpoint.layout import check_tensors, stored_shapes
from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.drafters.dspark.config import DSparkConfig
from dspark_mlx.drafters.methods import read_config
from dspark_mlx.pairs.builtin import DRAFTER, builtin_target
from dspark_mlx.system.files import read_json

PROMPTS = Path(__file__).parent.parent / "data" / "evaluation_prompts.jsonl"


def published(folder: Path) -> dict[str, np.ndarray]:
    """The source's tensors under canonical names, in canonical conventions."""
    tensors = {}
    for name, array in load_file(folder / "model.safetensors").items():
        name = name.removeprefix("logit_head.")
        if name == "d2t":
            array = (array + np.arange(array.size)).astype(np.int32)
        if folder.name == "ornith" and name.endswith("norm.weight"):
            array = array + np.float32(1)
        if name.endswith(("_codebook", "transfer_codes")):
            name += ".weight"
        if name not in ("t2d", "mask_embedding", "transfer_ready"):
            tensors[name] = array
    return tensors


def loaded(folder: Path) -> tuple[CanonicalConfig, dict[str, mx.array]]:
    config = read_config(read_json(folder / "config.json"), folder)
    tensors = read_tensors(folder)
    check_tensors(config, tensors, folder)
    return config, tensors


@pytest.mark.parametrize("name", PACKAGED)
def test_what_is_loaded_is_what_was_published(tmp_path, name):
    """A tensor cast, dropped, or in another's place; a config that reads back as another."""
    source, out = tmp_path / name, tmp_path / "out"
    PACKAGED[name](source)
    written = convert_drafter(source, out, keep_embeddings=True, progress=False)
    config, tensors = loaded(out)
    expected = published(source)
    assert config == written and set(tensors) == set(expected)
    for key, array in expected.items():
        found = np.array(tensors[key])
        assert found.dtype == array.dtype and np.array_equal(found, array), key


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", PACKAGED)
def test_quantized_matrices_are_mlx_own(tmp_path, name, bits):
    """Parts of one matrix stored as another's; a matrix left plain that the config calls packed."""
    source, out = tmp_path / name, tmp_path / "out"
    PACKAGED[name](source)
    form = {"q_bits": bits, "q_group_size": 32}
    convert_drafter(source, out, quantize=True, keep_embeddings=True, progress=False, **form)
    config, tensors = loaded(out)
    assert {key: tensor.shape for key, tensor in tensors.items()} == stored_shapes(config)
    packed = 0
    for key, array in published(source).items():
        base = key.removesuffix(".weight")
        parts = [mx.array(array)]
        if f"{base}.scales" in tensors:
            parts = mx.quantize(parts[0], group_size=32, bits=bits)
            packed += 1
        names = (key, f"{base}.scales", f"{base}.biases")
        for part, stored in zip(parts, names, strict=False):
            assert mx.array_equal(tensors[stored], part), stored
    assert packed > 10


def plain_copy(folder: Path) -> Path:
    """The shipped drafter's values in float32, in the packaging of its training."""
    config, stored = loaded(DRAFTER)
    plain = {
        name: tensor.astype(mx.float32)
        for name, tensor in stored.items()
        if not name.endswith((".scales", ".biases"))
    }
    for name in list(plain):
        base = name.removesuffix(".weight")
        if f"{base}.scales" in stored:
            assert config.quantization is not None
            form = config.quantization.of(base)
            assert form is not None
            bits, group = form
            scales, biases = (
                stored[f"{base}.{x}"].astype(mx.float32) for x in ("scales", "biases")
            )
            plain[name] = mx.dequantize(stored[name], scales, biases, group_size=group, bits=bits)
    assert isinstance(config, DSparkConfig)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), plain)
    values = {
        "architectures": ["Qwen3DSparkModel"],
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "num_target_layers": config.target_num_layers,
        "target_layer_ids": list(config.taps),
        "block_size": config.block_size,
        "mask_token_id": config.mask_token_id,
        "markov_rank": config.head_rank,
        "markov_head_type": config.head,
        "enable_confidence_head": True,
    }
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def accepted_length(target: Path, drafter: Path, prompts: list[str]) -> float:
    """Tokens committed a round, over 128 greedy tokens of each prompt."""
    decoder = dspark_mlx.load(target, drafter, "full", precision="float32", draft_vocabulary="full")
    tokens = rounds = 0
    for prompt in prompts:
        ids = decoder.encode([{"role": "user", "content": prompt}])
        done = list(decoder.rounds(ids, 128))[1:]
        tokens += sum(len(one.tokens) for one in done)
        rounds += len(done)
    decoder.engine.target.close()
    return tokens / rounds


@pytest.fixture(scope="module")
def target() -> Path:
    """Of the module, so that it comes from the user's cache folder."""
    return builtin_target()


@pytest.mark.slow
def test_quantized_drafters_are_accepted_as_long(tmp_path, target):
    """8 bits within 1 %, 4 bits within 3 %, of the same drafter in float32. What is shipped was
    trained for 4 bits in groups of 32, which would lose nothing; so its float32 form is quantised
    in groups of 64."""
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines][::2][:16]
    source = plain_copy(tmp_path / "source")
    lengths = {}
    for bits in (0, 8, 4):
        out = tmp_path / f"bits{bits}"
        form = {"quantize": bool(bits), "q_bits": bits or 4, "q_group_size": 64}
        convert_drafter(source, out, progress=False, **form)
        lengths[bits] = accepted_length(target, out, prompts)
    print({bits: round(length, 4) for bits, length in lengths.items()})
    assert lengths[8] == pytest.approx(lengths[0], rel=0.01)
    assert lengths[4] == pytest.approx(lengths[0], rel=0.03)
