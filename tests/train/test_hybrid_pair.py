"""A hybrid pair from nothing: target, drafter and speed profile, and what the drafter is worth.

Slow: minutes of training, with a real BLAS. What it prints (pytest -s) includes times, which are
only right on a machine that does nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dspark_mlx
from dspark_mlx import profile
from dspark_mlx.benchmark.comparison import bench_row, comparison_table
from dspark_mlx.convert.target import convert_target
from dspark_mlx.train.__main__ import main

SCRIPT = Path(__file__).parent.parent.parent / "examples" / "hybrid_target.py"
MADE = "--steps 240 --rows 8"
TEXTS = (
    "--self-written 0 --answer-tokens 45000 --max-answer 96 --max-length 192 --follow-up 0 "
    "--temps 0,0.7 --shard 400"
)
FIT = (
    "--layers 1 --taps 4 --batch-tokens 512 --anchors-every 4 --held-out 32 --learning-rate 1.5e-3 "
    "--steps 300 --evaluate-every 100 --dtype float32 --seed 1 --json"
)
TIE = 1e-3
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """A folder with `target`, `run/drafter`, `quantized` and `held-out.jsonl`."""
    to = tmp_path_factory.mktemp("hybrid") / "pair"
    subprocess.run([sys.executable, str(SCRIPT), "--to", str(to), *MADE.split()], check=True)
    flags = ["--model", to / "target", "--to", to / "run", "--prompts", to / "prompts.jsonl"]
    assert main([*map(str, flags), *TEXTS.split(), *FIT.split()]) == 0
    convert_target(str(to / "target"), to / "quantized", quantize=True, q_bits=4)
    return to


@pytest.mark.parametrize(
    ("target", "precision"),
    [("target", "float32"), ("quantized", "float32"), ("quantized", "stored")],
)
def test_more_than_two_tokens_a_round(pair, target, precision):
    """A drafter that learns nothing of a hybrid target, or a round that is not the target's own."""
    folders = pair / target, pair / "run" / "drafter"
    names = ["--model", str(folders[0]), "--drafter", str(folders[1])]
    assert profile.main([*names, "--precision", precision]) == 0
    prompts = [json.loads(line) for line in (pair / "held-out.jsonl").read_text().splitlines()]
    # `auto` decodes plainly where products of several rows cost as much as those of each alone.
    for scheduler, repeats in (("full", 1), ("auto", 3)):
        decoder = dspark_mlx.load(*folders, scheduler, precision=precision)
        ids = [decoder.encode([{"role": "user", "content": p["prompt"]}]) for p in prompts]
        # A text may be the same whatever the prompt at temperature 0; no two are alike at 0.7.
        for temperature in (0.0, 0.7):
            settings = {"temperature": temperature}
            rows = [bench_row(decoder, "orders", each, 96, repeats, settings) for each in ids]
            tokens = sum(row.tokens for row in rows)
            tau = tokens / sum(row.tokens / row.accepted_length for row in rows)
            name = f"{target}, held in {precision}, {scheduler}"
            print(f"\n{name}, {settings}: {tau:.2f} tokens a round")
            print(comparison_table(rows))
            assert temperature or all(row.equal or row.margin < TIE for row in rows)
            assert scheduler == "auto" or tau > 2
