"""Converting takes memory for a shard, not for the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.gguf_drafters import gguf_name, metadata_of
from helpers.gguf_fixtures import checkpoint
from helpers.gguf_scalar import SIZES
from helpers.gguf_writer import GGUF_NAMES, VOCAB, Raw, metadata, write_gguf
from helpers.packaged_parts import DEEPSPEC, HEAD_KEYS, backbone
from safetensors.numpy import save_file

from dspark_mlx.convert.shards import ShardWriter
from dspark_mlx.system.files import read_json

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


def drafter_shapes(hidden: int, inner: int, layers: int, vocab: int, rank: int) -> dict:
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
    return shapes


def drafter(folder: Path, layers: int) -> tuple[dict, dict]:
    """The config and the shapes of a drafter of DeepSpec's packaging."""
    folder.mkdir()
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 4096}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128}
    config = backbone(["full_attention"] * layers, architectures=["Qwen3DSparkModel"])
    config |= sizes | heads | DEEPSPEC | HEAD_KEYS | {"markov_rank": 64, "mask_token_id": 1}
    return config, drafter_shapes(2048, 8192, layers, 4096, 64)


def drafter_folder(folder: Path) -> Path:
    """1.4 GB of float32 in safetensors."""
    config, shapes = drafter(folder, 6)
    (folder / "config.json").write_text(json.dumps(config))
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(arrays, folder / "model.safetensors")
    return folder


def drafter_file(folder: Path) -> Path:
    """1.3 GB of Q8_0 and F32 in a GGUF file."""
    config, shapes = drafter(folder, 20)
    tensors = {gguf_name(name): stored(shape) for name, shape in shapes.items()}
    return write_gguf(folder / "drafter.gguf", metadata_of(config, True), tensors)


def stored(shape: tuple[int, ...], kind: str = "Q8_0") -> Raw | tuple[np.ndarray, str]:
    """A matrix of zeros, or a vector of ones in F32."""
    if len(shape) == 1:
        return np.ones(shape, np.float32), "F32"
    number, weights, size = SIZES[kind]
    return Raw(number, bytes(int(np.prod(shape)) // weights * size), shape)


@large
@pytest.mark.parametrize("kind", ["plain", "q4"])
@pytest.mark.parametrize("write", [drafter_folder, drafter_file])
def test_drafters_stay_near_a_shard(tmp_path, write, kind):
    """Within the shard's 512 MB, the largest tensor and its checks."""
    source = write(tmp_path / "source")
    check_peak(source, tmp_path / "out", kind)


def check_peak(source: Path, out: Path, kind: str, *what: str) -> None:
    files = [source] if source.is_file() else list(source.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    assert size > 1000 * MIB
    peak = peak_of(source, out, kind, *what)
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


def gguf_mixed(folder: Path) -> Path:
    """One file of Q5_K, Q6_K and F32, of 1.3 GB."""
    return gguf(folder, 3, "Q5_K", "Q6_K")


def gguf(folder: Path, times: int = 2, kind: str = "Q8_0", down: str = "Q8_0") -> Path:
    """One file of Q8_0 and F32, of 1.2 GB in as many more layers; `down` is mlp.down_proj's."""
    layers, tensors = times * LAYERS, {}
    for name, shape in target_shapes().items():
        stem, prefix = name.removesuffix(".weight"), ""
        places = [""]
        if stem.startswith("model.layers."):
            layer, stem = stem.removeprefix("model.layers.").split(".", 1)
            places = [f"blk.{int(layer) + i * LAYERS}." for i in range(times)]
        for prefix in places:
            key = f"{prefix}{GGUF_NAMES[stem]}.weight"
            tensors[key] = stored(shape, down if "down" in name else kind)
    sizes = {"block_count": layers, "embedding_length": HIDDEN, "feed_forward_length": INNER}
    heads = {"attention.head_count": 16, "attention.head_count_kv": 4, "rope.dimension_count": 128}
    changes = {f"llama.{key}": value for key, value in (sizes | heads).items()}
    folder.mkdir()
    return write_gguf(folder / "model.gguf", metadata(**changes), tensors)


@large
@pytest.mark.parametrize("kind", ["plain", "q4"])
@pytest.mark.parametrize("write", [hugging_face, gguf, gguf_mixed])
def test_targets_stay_near_a_shard(tmp_path, write, kind):
    """mlx-lm's own writer holds shards of 5 GB, and MLX's GGUF reader holds the file."""
    source = write(tmp_path / "source")
    check_peak(source, tmp_path / "out", kind, "target")
