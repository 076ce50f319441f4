"""DeepSeek V4.1's embedded head: its layers against mlx-lm's, and the head inside a checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.families import family
from helpers.golden_rounds import relative
from helpers.pairs import tokens_of
from mlx.utils import tree_flatten
from mlx_lm.models import deepseek_v41

import dspark_mlx
from dspark_mlx.checkpoint.block_floats import decode_fp8, repacked
from dspark_mlx.convert.packagings import find_packaging
from dspark_mlx.drafters.deepseek_v4.ring import LatentRing
from dspark_mlx.drafters.deepseek_v4.stages import Stages
from dspark_mlx.pairs.stored import read_drafter
from dspark_mlx.targets.hidden import leaving_hidden, of_copies

TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "o_groups": 2,
    "o_lora_rank": 16,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "gate_temp": 0.5,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 8,
    "compress_ratios": [0, 0, 0],
    "kv_source_layer_ids": [],
    "index_source_layer_ids": [],
    "index_n_heads": 2,
    "index_head_dim": 32,
    "index_topk": 8,
    "max_position_embeddings": 1000,
    "rope_theta": 10000.0,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-20,
    "dspark_block_size": 4,
    "dspark_noise_token_id": 95,
    "dspark_target_layer_ids": [1, 2],
    "dspark_markov_rank": 8,
    "dspark_n_routed_experts": 4,
    "dspark_num_experts_per_tok": 2,
}
CONFIG = {"architectures": ["DeepseekV41"], "model_type": "deepseek_v41", "text_config": TEXT}
STAGES = 2


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, mx.array]:
    """Weights of a size that keeps a stream as large as it is; norms near 1."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3)
        found[name] = mx.array((values + ("norm" in name)).astype(np.float32))
    return found


def renamed(name: str) -> str:
    """mlx-lm's name of a layer's tensor for ours."""
    for old, new in (
        ("self_attn.", "attn."),
        ("mlp.gate.e_score_correction_bias", "ffn.gate.bias"),
        ("mlp.experts.switch_mlp.", "ffn.experts."),
        ("mlp.", "ffn."),
        ("input_layernorm.", "attn_norm."),
        ("post_attention_layernorm.", "ffn_norm."),
        ("attn_hc.fn", "hc_attn.fn.weight"),
        ("ffn_hc.fn", "hc_ffn.fn.weight"),
        ("attn_hc.", "hc_attn."),
        ("ffn_hc.", "hc_ffn."),
        ("q_a_proj", "wq_a"),
        ("q_b_proj", "wq_b"),
        ("kv_proj", "wkv"),
        ("o_a_proj", "wo_a"),
        ("o_b_proj", "wo_b"),
        ("q_a_norm", "q_norm"),
        ("sinks", "attn_sink"),
    ):
        name = name.replace(old, new)
    return name


@pytest.fixture
def exact_keys(monkeypatch):
    """mlx-lm's layers without their rounding of keys."""
    monkeypatch.setattr(deepseek_v41, "_fake_quant_fp8", lambda x, block_size=32: x)


def test_its_stages_are_mlx_lms_layers(exact_keys):
    """The weights of another sublayer, a norm of the queries, logits of another temperature: a
    block of one row is a row of a target's layer that sees its window only."""
    args = deepseek_v41.ModelArgs(**{k: v for k, v in TEXT.items() if "dspark" not in k})
    theirs = [deepseek_v41.DecoderLayer(args, i) for i in range(STAGES)]
    config = head_config()
    ours = Stages(config.args)
    weights = {}
    for i, layer in enumerate(theirs):
        shapes = {name: array.shape for name, array in tree_flatten(layer.parameters())}
        own = random_weights(shapes, i)
        layer.load_weights(list(own.items()))
        weights |= {f"layers.{i}.{renamed(name)}": array for name, array in own.items()}
    ours.load(weights)

    x = mx.array(np.random.default_rng(5).standard_normal((6, 64)).astype(np.float32))
    rings = [LatentRing(8) for _ in range(STAGES)]
    caches = [deepseek_v41.LayerCache(8) for _ in range(STAGES)]
    for i in range(6):
        streams = mx.broadcast_to(x[None, i : i + 1, None], (1, 1, 4, 64))
        mix = mx.array([[[1.0, 0.0, 0.0, 0.0]]])
        index = deepseek_v41._window_indices(previous=i, length=1, window=8)[None]
        for layer, cache in zip(theirs, caches, strict=True):
            streams, mix = layer(
                streams, mix, start_pos=i, window_idx=index, cache=cache, shared={}
            )
        expected = (mix[..., None] * streams).sum(axis=2)[0]
        assert relative(ours.block(rings, x[i : i + 1]), expected) < 1e-5
        for ring, cache in zip(rings, caches, strict=True):
            ring.append(cache.window[:, -1:], 0)


def head_config():
    shapes = {"mtp.0.main_proj.weight": (64, 128), "mtp.1.norm.weight": (64,)}
    where = Path("v41")
    packaging = find_packaging(CONFIG, shapes, where)
    return packaging.to_drafter_config(CONFIG, shapes, where, keep_embeddings=False)


_SHARED = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_HEAD = {
    "fc.weight": "mtp.0.main_proj.weight",
    "hidden_norm.weight": "mtp.0.main_norm.weight",
    "markov_head.markov_w1.weight": "mtp.1.markov_head.embed.weight",
    "markov_head.markov_w2.weight": "mtp.1.markov_head.head.weight",
}
_TARGET = {"lm_head.weight": "head.weight", "model.embed_tokens.weight": "embed.weight"}


def released(name: str) -> str:
    """The release's name of a layer's tensor."""
    name = re.sub(r"hc_(attn|ffn)\.(fn|base|scale)(\.weight)?$", r"hc_\1_\2", name)
    return re.sub(r"(gate|up|down)_proj", lambda match: _SHARED[match[0]], name)


def released_head(name: str) -> str:
    """The release's name of a canonical tensor, of stages 0 and 1."""
    if name in _HEAD:
        return _HEAD[name]
    stage = name.removeprefix("layers.")
    return f"mtp.{released(stage)}" if stage != name else f"mtp.1.{name}"


def released_target(name: str, tensor: mx.array) -> dict[str, mx.array]:
    """The release's tensors for one of mlx-lm's."""
    if name in _TARGET:
        return {_TARGET[name]: tensor}
    ours = renamed(name.removeprefix("model."))
    if ".experts." in ours:
        place, _, part = ours.partition(".experts.")
        return {f"{place}.experts.{e}.{released(part)}": w for e, w in enumerate(tensor)}
    return {released(ours): tensor.reshape(-1, tensor.shape[-1]) if "wo_a" in ours else tensor}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with a head inside, of random weights, under the names of a release."""
    folder = tmp_path_factory.mktemp("v41")
    config = head_config()
    shapes = {f"{name}.weight": shape for name, shape in config.matrix_shapes().items()}
    head = random_weights(shapes | config.vector_shapes(), 9)
    tensors = {released_head(name): array for name, array in head.items()}
    tensors["mtp.0.ffn.gate.bias_vl"] = mx.zeros((4,))
    settings = {k: v for k, v in TEXT.items() if "dspark" not in k}
    target = family("deepseek_v41", **settings)
    for name, array in tree_flatten(target.parameters()):
        tensors |= released_target(name, array)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_its_configuration_is_read(folder):
    """Layers that are tapped one too late, or the target's number of experts."""
    config = read_drafter(folder).config
    assert config.taps == (0, 1) and config.late_mixing and not config.query_norm
    assert (config.num_experts, config.experts_per_token, config.num_layers) == (4, 2, STAGES)
    assert config.gate_temperature == 0.5 and config.rms_norm_eps == 1e-20


def test_a_target_decodes_the_same_with_its_head(folder, exact_keys):
    decoder = dspark_mlx.load(folder, precision="float32", scheduler="full")
    plain = dspark_mlx.load(folder, precision="float32", drafter=False)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    expected = tokens_of(plain.rounds(prompt, 24, stop_tokens=()))
    rounds = list(decoder.rounds(prompt, 24, stop_tokens=()))
    assert tokens_of(rounds) == expected
    assert all(done.drafted == 4 for done in rounds[1:-1])


def test_blocks_of_32_are_decoded():
    """V4.1's scales read as those of blocks of 128."""
    rng = np.random.default_rng(0)
    codes = mx.array(rng.integers(0, 120, (70, 96)).astype(np.uint8))
    scale = mx.array(rng.integers(120, 130, (3, 3)).astype(np.uint8))
    found = np.array(decode_fp8(codes, scale))
    plain = np.array(mx.from_fp8(codes, mx.float32))
    for row, column in ((0, 0), (31, 95), (32, 64), (69, 33)):
        power = 2.0 ** (int(scale[row // 32, column // 32].item()) - 127)
        assert found[row, column] == plain[row, column] * power
    words, scales = repacked(codes, scale)
    mine = mx.dequantize(words, scales, None, 32, 8, "mxfp8").astype(mx.float32)
    assert np.array_equal(np.array(mine), found)


def test_taps_are_means_over_the_copies():
    """Taps of the row that the next layer reads, which the head was not trained with."""
    layer = family("deepseek_v41").layers[0]
    streams = mx.random.normal((1, 5, 4, 64), key=mx.random.key(0))
    left = leaving_hidden(layer, (streams, mx.random.uniform(shape=(1, 5, 4))))
    assert relative(of_copies(left, whole=False), streams.mean(axis=2)) < 1e-6
