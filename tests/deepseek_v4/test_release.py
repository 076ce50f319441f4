"""What a release holds, known from its config: names, types and shapes of every tensor."""

from __future__ import annotations

import pytest
from helpers.deepseek_v4 import FOLDER, read

from dspark_mlx.checkpoint.safetensors import tensor_headers
from dspark_mlx.deepseek_v4.release import released_tensors
from dspark_mlx.system.files import DATA, read_json_list


def test_the_tiny_checkpoint_is_described():
    """A tensor that estimates leave out, or that no release has."""
    described = {n: (t.dtype, t.shape) for n, t in released_tensors(read("config"), 3).items()}
    stored = {n: (h.dtype, h.shape) for n, h in tensor_headers(FOLDER).items()}
    assert described == stored


@pytest.mark.parametrize(("index", "counts"), [(0, (1568, 1565, 1572)), (1, (2336, 2333, 2340))])
def test_published_heads_have_as_many_tensors(index, counts):
    """Another head than the one that was published: V4-Flash's stages, and V4-Pro's."""
    config = read_json_list(DATA / "deepseek_v4.json")[index]["config"]
    tensors = released_tensors(config, 3)
    assert tuple(sum(n.startswith(f"mtp.{s}.") for n in tensors) for s in range(3)) == counts
