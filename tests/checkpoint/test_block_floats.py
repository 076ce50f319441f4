"""FP8 and FP4 of DeepSeek's releases, bit for bit."""

from __future__ import annotations

import hashlib

import mlx.core as mx
import numpy as np
import pytest
from helpers.deepseek_v4 import numbers, read

from dspark_mlx.checkpoint.block_floats import GROUP, decode_fp4, decode_fp8, is_fp4, repacked

VECTORS = numbers("decode_vectors")


@pytest.mark.parametrize(("kind", "decode"), [("fp8", decode_fp8), ("fp4", decode_fp4)])
def test_every_code_and_partial_block_is_decoded(kind, decode):
    """A table with a wrong sign, nibbles the wrong way round, a scale of the block beside."""
    found = decode(VECTORS[f"{kind}.weight"], VECTORS[f"{kind}.scale"])
    assert np.array_equal(np.array(found), np.array(VECTORS[f"{kind}.decoded"]))


def test_a_whole_checkpoint_decodes_to_the_references_bits():
    """A tensor of either kind that is taken for the other; 403 of 403 are equal."""
    stored = numbers("model")
    digests, expected = {}, read("decoded")["sha256"]
    for name in expected:
        tensor, scale = stored[name], stored.get(f"{name.removesuffix('.weight')}.scale")
        if scale is not None:
            tensor = (decode_fp4 if is_fp4(tensor) else decode_fp8)(tensor, scale)
        elif tensor.dtype != mx.int64:
            tensor = tensor.astype(mx.float32)
        digests[name] = hashlib.sha256(np.array(tensor).tobytes()).hexdigest()[:16]
    assert digests == expected and len(expected) == 403


def test_repacked_matrices_have_the_same_values():
    """A repack that rounds, or scales of other rows, in MLX's own decoding."""
    stored, kinds = numbers("model"), {"mxfp4": 0, "mxfp8": 0}
    for name, weight in stored.items():
        scale = stored.get(f"{name.removesuffix('.weight')}.scale")
        if not name.endswith(".weight") or scale is None:
            continue
        fp4 = is_fp4(weight)
        mode, bits, decode = ("mxfp4", 4, decode_fp4) if fp4 else ("mxfp8", 8, decode_fp8)
        words, scales = repacked(weight, scale)
        found = mx.dequantize(words, scales, None, GROUP, bits, mode)
        assert mx.array_equal(found.astype(mx.float32), decode(weight, scale)).item(), name
        kinds[mode] += 1
    assert kinds == {"mxfp4": 192, "mxfp8": 67}
