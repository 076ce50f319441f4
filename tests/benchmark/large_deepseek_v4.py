"""Makes a DeepSeek V4 checkpoint of V4-Flash's shapes, of a few layers and random weights, and
measures its conversion.

    python tests/benchmark/large_deepseek_v4.py FOLDER --layers 1 --stages 1
    python tests/benchmark/large_deepseek_v4.py FOLDER --convert OUT [--recipe experts_2]

A layer has 3.6 GB, the tables 2.1 GB. The second command converts in a process of its own and
prints the most memory that it held.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np

from dspark_mlx.checkpoint.tensor_writer import Planned, TensorFile
from dspark_mlx.deepseek_v4.release import released_tensors
from dspark_mlx.system.files import DATA, read_json_list, write_json

_SHARD = 3 << 30


def config_of(layers: int, stages: int) -> dict:
    """V4-Flash's config with fewer layers, whose last and the embedding output the head taps."""
    config = read_json_list(DATA / "deepseek_v4.json")[0]["config"]
    ratios = [0, 4, 128, 4][:layers] if layers > 1 else [4]
    taps = list(range(-1, layers))[-3:]
    changes = {"num_hidden_layers": layers, "compress_ratios": ratios + [0] * stages}
    hashed = {"num_hash_layers": 1 if layers > 1 else 0, "dspark_target_layer_ids": taps}
    return config | changes | hashed


def numbers(name: str, planned: Planned, rng: np.random.Generator, config: dict) -> np.ndarray:
    """Random numbers of a tensor as bytes; small ones, so that a forward stays finite."""
    kind, shape = planned.dtype, planned.shape
    if kind == "F8_E8M0":
        return rng.integers(117, 121, shape, np.uint8)
    if kind in ("I8", "F8_E4M3"):
        codes = np.frombuffer(rng.bytes(planned.nbytes), np.uint8).reshape(shape)
        return codes if kind == "I8" else np.where(codes & 127 == 127, codes - 8, codes)
    if kind == "I64":
        experts = config["n_routed_experts"]
        return np.argsort(rng.random((shape[0], experts)), axis=1)[:, : shape[1]].astype(np.int64)
    values = rng.standard_normal(shape, np.float32) / 30
    if name.endswith("norm.weight"):
        values += 1
    bits = values.view(np.uint32) >> 16
    return bits.astype(np.uint16) if kind == "BF16" else values


def write(folder: Path, layers: int, stages: int) -> None:
    folder.mkdir()
    config, rng = config_of(layers, stages), np.random.default_rng(0)
    write_json(folder / "config.json", config)
    shards: list[dict[str, Planned]] = [{}]
    for name, planned in released_tensors(config, stages).items():
        if sum(each.nbytes for each in shards[-1].values()) > _SHARD:
            shards.append({})
        shards[-1][name] = planned
    for i, shard in enumerate(shards):
        path = folder / f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        with TensorFile(path, shard) as file:
            for name, planned in shard.items():
                file.write(name, mx.array(numbers(name, planned, rng, config)))
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(f"{folder}: {len(shards)} files, {total / 1e9:.2f} GB")


def convert(source: Path, out: Path, recipe: str | None) -> None:
    command = [sys.executable, "-m", "dspark_mlx.convert", "target", "--from", str(source)]
    command += ["--to", str(out), *(["--quant-predicate", recipe] if recipe else [])]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    taken = time.perf_counter() - started
    # Linux counts in KiB.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    row = {"out_gb": size / 1e9, "seconds": taken, "peak_gb": peak / 1e9}
    print(json.dumps({key: round(value, 2) for key, value in row.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--convert", type=Path)
    parser.add_argument("--recipe")
    args = parser.parse_args()
    if args.convert:
        convert(args.folder, args.convert, args.recipe)
    else:
        write(args.folder, args.layers, args.stages)


if __name__ == "__main__":
    main()
