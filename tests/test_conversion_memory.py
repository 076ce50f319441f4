"""Converting takes memory for a shard, not for the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf_fixtures import checkpoint
from gguf_writer import GGUF_NAMES, VOCAB, Raw, metadata, write_gguf
from packaged_parts import DEEPSPEC, HEAD_KEYS, backbone
from safetensors.numpy import save_file

from dspark_mlx.convert.shards import ShardWriter
from dspark_mlx.files import read_json

MIB = 1 << 20


def test_shards_are_named_and_indexed(tmp_path):
    """A tensor lost at a shard's end, or an index that names another file."""
    writer = ShardWriter(tmp_path, limit=3000)
    tensors = {f"t{i}": mx.full((500,), i, dtype=mx.float32) for i in range(5)}
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = read_json(tmp_path / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == 5 * 2000
    for name, tensor in tensors.items():
        stored = mx.load(str(tmp_path / index["weight_map"][name]))[name]
        assert mx.array_equal(stored, tensor)


def test_one_shard_has_the_plain_name(tmp_path):
    writer = ShardWriter(tmp_path)
    writer.add("a", mx.ones((3,)))
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


# The peak of this process alone: getrusage's starts at what the parent held when it forked.
CONVERT = """
import sys
from pathlib import Path
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.convert.target import convert_target

def kib(name):
    line = next(l for l in open("/proc/self/status") if l.startswith(name))
    return int(line.split()[1])

before = kib("VmRSS")
convert = convert_target if sys.argv[4:] else convert_drafter
convert(Path(sys.argv[1]), Path(sys.argv[2]), quantize=sys.argv[3] == "q4")
print(kib("VmHWM") - before)
"""


def peak_of(*arguments: object) -> int:
    """Bytes that a conversion takes on top of what its process has at its start."""
    command = [sys.executable, "-c", CONVERT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) * 1024


def large(test):
    """Marks a test that measures a conversion of more than a gigabyte."""
    linux = sys.platform.startswith("linux")
    return pytest.mark.slow(pytest.mark.skipif(not linux, reason="reads /proc")(test))


@large
@pytest.mark.parametrize("kind", ["plain", "q4"])
def test_memory_stays_near_a_shard(tmp_path, kind):
    """1.9 GB of float32 converted within the shard's 512 MB, the largest tensor and its checks."""
    hidden, inner, layers, vocab, rank = 2048, 8192, 6, 4096, 64
    source = tmp_path / "source"
    source.mkdir()
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "vocab_size": vocab}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128}
    config = backbone(["full_attention"] * layers, architectures=["Qwen3DSparkModel"])
    config |= sizes | heads | DEEPSPEC | HEAD_KEYS | {"markov_rank": rank, "mask_token_id": 1}
    (source / "config.json").write_text(json.dumps(config))
    shapes = {"fc.weight": (hidden, 3 * hidden), "hidden_norm.weight": (hidden,)}
    shapes |= {"norm.weight": (hidden,), "confidence_head.proj.weight": (1, hidden + rank)}
    shapes |= {f"markov_head.markov_w{i}.weight": (vocab, rank) for i in (1, 2)}
    shapes["confidence_head.proj.bias"] = (1,)
    for i in range(layers):
        attention, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
        shapes |= {f"{attention}.{x}_norm.weight": (128,) for x in "qk"}
        shapes |= {f"{attention}.{x}_proj.weight": (512, hidden) for x in "kv"}
        shapes |= {f"{attention}.q_proj.weight": (2048, hidden)}
        shapes |= {f"{attention}.o_proj.weight": (hidden, 2048)}
        shapes |= {f"{mlp}.{x}_proj.weight": (inner, hidden) for x in ("gate", "up")}
        shapes |= {f"{mlp}.down_proj.weight": (hidden, inner)}
        names = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"layers.{i}.{name}.weight": (hidden,) for name in names}
    save_file({k: np.ones(s, np.float32) for k, s in shapes.items()}, source / "model.safetensors")
    size = (source / "model.safetensors").stat().st_size
    assert size > 1000 * MIB
    peak = peak_of(source, tmp_path / "out", kind)
    print(f"{size / MIB:.0f} MiB converted within {peak / MIB:.0f} MiB")
    assert 100 * MIB < peak < 900 * MIB


HIDDEN, INNER, LAYERS = 2048, 8192, 10


def target_shapes() -> dict[str, tuple[int, ...]]:
    """A tied llama of 680 million weights, by mlx-lm's names; the vocabulary is the tiny one."""
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        shapes |= {f"{attention}.{x}_proj.weight": (512, HIDDEN) for x in "kv"}
        shapes |= {f"{attention}.{x}_proj.weight": (HIDDEN, HIDDEN) for x in "qo"}
        shapes |= {f"{mlp}.{x}_proj.weight": (INNER, HIDDEN) for x in ("gate", "up")}
        shapes |= {f"{mlp}.down_proj.weight": (HIDDEN, INNER)}
        names = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"model.layers.{i}.{name}.weight": (HIDDEN,) for name in names}
    return shapes


def hugging_face(folder: Path) -> Path:
    """One file of 1.2 GB of float16."""
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "intermediate_size": INNER}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128}
    kinds = {"layer_types": ["full_attention"] * LAYERS}
    source = checkpoint(folder, **sizes, **heads, **kinds)
    arrays = {name: np.ones(shape, np.float16) for name, shape in target_shapes().items()}
    save_file(arrays, source / "model.safetensors")
    return source


def gguf(folder: Path) -> Path:
    """One file of Q8_0 and F32, of 1.2 GB in as many more layers."""
    layers, tensors = 2 * LAYERS, {}
    for name, shape in target_shapes().items():
        stem, prefix = name.removesuffix(".weight"), ""
        places = [""]
        if stem.startswith("model.layers."):
            layer, stem = stem.removeprefix("model.layers.").split(".", 1)
            places = [f"blk.{layer}.", f"blk.{int(layer) + LAYERS}."]
        for prefix in places:
            key = f"{prefix}{GGUF_NAMES[stem]}.weight"
            rows = Raw(8, bytes(int(np.prod(shape)) // 32 * 34), shape)
            tensors[key] = rows if len(shape) == 2 else (np.ones(shape, np.float32), "F32")
    sizes = {"block_count": layers, "embedding_length": HIDDEN, "feed_forward_length": INNER}
    heads = {"attention.head_count": 16, "attention.head_count_kv": 4, "rope.dimension_count": 128}
    changes = {f"llama.{key}": value for key, value in (sizes | heads).items()}
    folder.mkdir()
    return write_gguf(folder / "model.gguf", metadata(**changes), tensors)


@large
@pytest.mark.parametrize("kind", ["plain", "q4"])
@pytest.mark.parametrize("write", [hugging_face, gguf])
def test_targets_stay_near_a_shard(tmp_path, write, kind):
    """mlx-lm's own writer holds shards of 5 GB, and MLX's GGUF reader holds the file."""
    source = write(tmp_path / "source")
    files = [source] if source.is_file() else list(source.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    assert size > 1000 * MIB
    peak = peak_of(source, tmp_path / "out", kind, "target")
    print(f"{size / MIB:.0f} MiB converted within {peak / MIB:.0f} MiB")
    assert 100 * MIB < peak < 900 * MIB
