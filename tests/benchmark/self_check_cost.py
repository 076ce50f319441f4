"""Share of a load that the self-check takes: `python tests/benchmark/self_check_cost.py`.

A random model of a family is written to a folder, of the size that is asked for, and loaded anew
several times, as a target that a drafter is added to is. The files stay in the system's cache, so
that a load from a disk takes longer and the share is smaller.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import mlx.core as mx
import rollback_cost  # type: ignore[import-not-found]  # beside this script
from mlx.utils import tree_flatten

import dspark_mlx
from dspark_mlx.targets.self_check import check_rollback


def main() -> None:
    """Print the time of each load and of its self-check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="qwen3_5", choices=sorted(rollback_cost._OWN))
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rollback_cost._COMMON["hidden_size"] = arguments.hidden
    rollback_cost._COMMON["intermediate_size"] = 3 * arguments.hidden
    model = rollback_cost.model_of(arguments.family, arguments.layers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = dict(tree_flatten(model.parameters()))
        size = sum(array.nbytes for array in weights.values())
        mx.save_safetensors(str(folder / "model.safetensors"), weights)
        config = dataclasses.asdict(model.args)
        (folder / "config.json").write_text(json.dumps(config))
        del model, weights
        loads, checks = [], []
        for _ in range(arguments.repeats):
            start = perf_counter()
            decoder = dspark_mlx.load(folder, drafter=False, precision="stored")
            loaded = perf_counter()
            check_rollback(decoder.engine.target, folder)
            checks.append(perf_counter() - loaded)
            loads.append(perf_counter() - start)
            decoder.close()
            del decoder
            mx.clear_cache()
    share = 100 * median(checks) / median(loads)
    print(
        f"{arguments.family}, {size / 1e9:.2f} GB: load {median(loads):.3f} s, "
        f"self-check {1000 * median(checks):.0f} ms, {share:.1f} %"
    )


if __name__ == "__main__":
    main()
