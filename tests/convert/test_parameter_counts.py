"""The canonical layout has as many numbers as the published files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dspark_mlx.checkpoint.layout import stored_shapes
from dspark_mlx.convert.packagings import gemma4_assistant
from dspark_mlx.convert.packagings.names import canonical_name
from dspark_mlx.drafters.dflash2.config import DFlash2Config
from dspark_mlx.drafters.dspark.config import DSparkConfig
from dspark_mlx.drafters.eagle3.config import Eagle3Config


def shaped(hidden, inner, heads, kv_heads, head_dim, vocab, taps, **others) -> DSparkConfig:
    """A drafter of five layers and rank 256, as all of these are."""
    settings = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_layers": 5,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": 1e-6,
        "vocab_size": vocab,
        "target_hidden_size": hidden,
        "target_num_layers": 0,
        "taps": tuple(range(taps)),
        "block_size": 7,
        "logits_start": 0,
        "mask_token_id": 0,
        "rope_theta": 1e6,
        "head": "vanilla",
        "head_rank": 256,
        "confidence": "hidden+markov",
        "owns_embedding": True,
        "owns_head": True,
        "target": "",
    }
    return DSparkConfig.from_dict(DSparkConfig(**(settings | others)).to_dict(), "test")


SHARED = {"owns_embedding": False, "owns_head": False}
GEMMA = {"values": "keys", "sandwich_norms": True, "layer_scalars": True}
PUBLISHED = {
    "dspark_qwen3_4b": (shaped(2560, 9728, 32, 8, 128, 151936, 5), 1_393_133_569, 64),
    "dspark_qwen3_8b": (shaped(4096, 12288, 32, 8, 128, 151936, 5), 2_371_081_729, 64),
    "dspark_qwen3_14b": (shaped(5120, 17408, 40, 8, 128, 151936, 5), 3_416_263_169, 64),
    "dspark_gemma4_12b": (shaped(3840, 15360, 16, 1, 512, 262144, 5, **GEMMA), 3_430_444_550, None),
    "LFM2.5-1.2B": (shaped(2048, 6144, 32, 8, 64, 65536, 5, **SHARED), 295_725_953, 62),
    "Kimi-K3 (SpecForge)": (
        shaped(7168, 14336, 64, 16, 64, 163840, 5, **SHARED),
        2_249_289_601,
        62,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name):
    """A matrix of another width, a norm or a scalar that is missing from the layout."""
    config, values, tensors = PUBLISHED[name]
    shapes = stored_shapes(config)
    assert sum(math.prod(shape) for shape in shapes.values()) == values
    assert tensors in (None, len(shapes))


def test_dflash2_total():
    """A kernel or a codebook of another size; published as 3.85 GB of bfloat16 in 81 tensors."""
    sizes = shaped(5120, 17408, 32, 8, 128, 248320, 5, **SHARED).to_dict()
    own = ("head", "head_rank", "confidence", "noise_width", "format", "format_version", "method")
    kept = {name: value for name, value in sizes.items() if name not in own}
    selector = {"selector_rank": 256, "selector_top_k": 16}
    block = {"block_size": 8, "logits_start": 1, "conv_kernel_size": 2, "conv_group_size": 16}
    config = DFlash2Config(**(kept | block | selector))
    shapes = stored_shapes(config)
    values = sum(math.prod(shape) for shape in shapes.values())
    assert (len(shapes), values) == (81, 1_924_404_480)
    assert round(2 * values / 1e9, 2) == 3.85


def eagle3(hidden, inner, heads, kv_heads, head_dim, vocab, **others) -> Eagle3Config:
    settings = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": 1e-6,
        "vocab_size": vocab,
        "target_hidden_size": hidden,
        "target_num_layers": 0,
        "taps": (1, 9, 17, 25, 33),
        "rope_theta": 1e6,
        "owns_embedding": True,
        "owns_head": True,
        "target": "",
        "steps": 7,
    }
    return Eagle3Config.from_dict(Eagle3Config(**settings, **others).to_dict(), "test")


def test_eagle3_totals():
    """As above; nobody published a total, so it is summed from the specification's table."""

    def total(config):
        return sum(math.prod(shape) for shape in stored_shapes(config).values())

    h, i, v = 2560, 9728, 151936
    attention = 2 * h * (32 * 128 + 2 * 8 * 128) + 32 * 128 * h + 2 * 128
    qwen3 = 2 * v * h + 5 * h * h + h + 3 * h + attention + 3 * h * i
    assert total(eagle3(h, i, 32, 8, 128, v)) == qwen3
    h, i, v = 3840, 15360, 262144
    attention = 2 * h * (16 * 512 + 512) + 16 * 512 * h + 2 * 512
    gemma4 = 2 * v * h + 5 * h * h + h + 5 * h + 1 + attention + 3 * h * i
    conventions = {"values": "keys", "sandwich_norms": True, "layer_scalars": True}
    assert total(eagle3(h, i, 16, 1, 512, v, **conventions)) == gemma4


SLIDING, FULL = "sliding_attention", "full_attention"


def assistant_tensors(target_hidden) -> dict[str, tuple[int, ...]]:
    """The tensors of E2B's and E4B's published assistants, which differ in their target's width."""
    h, inner, vocab, clusters, heads = 256, 2048, 262144, 2048, 4
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, h),
        "model.norm.weight": (h,),
        "pre_projection.weight": (h, 2 * target_hidden),
        "post_projection.weight": (target_hidden, h),
        "masked_embedding.centroids.weight": (clusters, h),
        "masked_embedding.token_ordering": (vocab,),
    }
    for i, head_dim in enumerate((256, 256, 256, 512)):
        layer = f"model.layers.{i}"
        tensors[f"{layer}.self_attn.q_proj.weight"] = (heads * head_dim, h)
        tensors[f"{layer}.self_attn.o_proj.weight"] = (h, heads * head_dim)
        tensors[f"{layer}.self_attn.q_norm.weight"] = (head_dim,)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            tensors[f"{layer}.{name}_layernorm.weight"] = (h,)
        for name in ("gate", "up"):
            tensors[f"{layer}.mlp.{name}_proj.weight"] = (inner, h)
        tensors[f"{layer}.mlp.down_proj.weight"] = (h, inner)
        tensors[f"{layer}.layer_scalar"] = (1,)
    return tensors


@pytest.mark.parametrize(
    "target_hidden, depth, shared, read, values",
    [(1536, 35, 20, (13, 14), 77_731_328), (2560, 42, 18, (22, 23), 78_517_760)],
    ids=["E2B", "E4B"],
)
def test_gemma4_assistant_totals(target_hidden, depth, shared, read, values):
    """A tensor of another size or left out. transformers counts neither the layers' scalars nor the
    ordering; of E4B nobody published a total, so it is summed from the tensors."""
    text = {
        "hidden_size": 256,
        "intermediate_size": 2048,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "global_head_dim": 512,
        "layer_types": [SLIDING] * 3 + [FULL],
        "sliding_window": 512,
        "vocab_size": 262144,
        "rms_norm_eps": 1e-6,
    }
    keys = {
        "model_type": "gemma4_assistant",
        "backbone_hidden_size": target_hidden,
        "use_ordered_embeddings": True,
        "num_centroids": 2048,
        "centroid_intermediate_top_k": 32,
        "text_config": text,
        "num_target_layers": depth,
        gemma4_assistant.KV_SHARED: shared,
    }
    published = {canonical_name(n): shape for n, shape in assistant_tensors(target_hidden).items()}
    assert gemma4_assistant.matches(keys, published)
    config = gemma4_assistant.to_drafter_config(keys, published, Path("E"), keep_embeddings=False)
    assert (config.sliding_layer, config.full_layer) == read
    assert config.taps == (read[0] - 1, read[1] - 1, depth - 1)
    names = gemma4_assistant.rename(config, list(published))
    shapes = stored_shapes(config)
    assert {names[name]: shape for name, shape in published.items()} == shapes
    assert len(shapes) == 50
    assert sum(math.prod(shape) for shape in shapes.values()) == values + 4 + 262144
