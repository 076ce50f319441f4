"""The canonical layout has as many numbers as the published files."""

from __future__ import annotations

import math

import pytest

from dspark_mlx.checkpoint.layout import stored_shapes
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
