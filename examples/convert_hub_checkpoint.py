"""Fetch a target and its published drafter from the Hub, quantise both, and generate.

    python examples/convert_hub_checkpoint.py Qwen/Qwen3-4B deepseek-ai/dspark_qwen3_4b_block7 out

Needs a network and about 12 GB of disk for this pair. The commands
`python -m dspark_mlx.convert target ...` and `... drafter ...` do the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import dspark_mlx
from dspark_mlx.checkpoint.hub import resolve
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.convert.target import convert_target


def main() -> None:
    """Convert what is not converted yet, then generate once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="Hub id or folder of the target")
    parser.add_argument("drafter", help="Hub id or folder of its drafter")
    parser.add_argument("to", type=Path, help="folder for the converted pair")
    args = parser.parse_args()

    target, drafter = args.to / "target", args.to / "drafter"
    if not target.exists():
        convert_target(args.target, target, quantize=True, q_bits=4)
    if not drafter.exists():
        convert_drafter(resolve(args.drafter), drafter, quantize=True, q_bits=4)

    decoder = dspark_mlx.load(target, drafter)
    message = {"role": "user", "content": "Explain speculative decoding in three sentences."}
    for chunk in decoder.stream([message], max_tokens=200):
        print(chunk.text, end="", flush=True)
    print(f"\n{chunk.generation_tps:.1f} tokens/s")


if __name__ == "__main__":
    main()
