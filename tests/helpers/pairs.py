"""Golden targets and drafters of the tests: where they are, and decoders made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx

from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.decoder import Decoder
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.engine.state import make_engine
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.targets.tap import Target

GOLDEN = Path(__file__).parent.parent / "golden"
TARGET = GOLDEN / "target_qwen3"
DRAFTERS = ("vanilla", "dflash", "embedding_tap", "gated", "rnn", "conf_hidden_only")


def golden(name: str) -> Path:
    """The folder of a golden drafter; a name without a family is a Qwen3 one's."""
    return GOLDEN / (f"draft_{name}" if name.startswith("gemma4") else f"draft_qwen3_{name}")


def checkpoint(name: str, to: Path) -> Path:
    """A copy of a golden drafter as it is published: config and weights alone."""
    to.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        shutil.copy(golden(name) / file, to / file)
    return to


def traces(name: str) -> list[dict]:
    """The reference loop's greedy traces with a golden drafter."""
    return json.loads((golden(name) / "loop_golden.json").read_text())["traces"]


def make_decoder(
    model,
    name: str,
    folder: Path,
    scheduler: str = "full",
    draft_vocabulary="full",
    ranking=(),
) -> Decoder:
    """Convert a golden drafter into `folder` and pair it with the golden target `model`."""
    config = convert_drafter(golden(name), folder, progress=False)
    target = Target(model, config.taps, "golden target")
    tensors = read_tensors(folder)
    drafter = assemble(
        config,
        tensors,
        target.embed,
        target.logits,
        mx.float32,
        dequantize=False,
        output=target.head,
        draft_vocabulary=draft_vocabulary,
        ranking=ranking,
    )
    engine = make_engine(target, drafter, make_scheduler(scheduler))
    return Decoder(engine, TARGET, json.loads((TARGET / "config.json").read_text()))


def with_scheduler(decoder: Decoder, scheduler: str) -> Decoder:
    """The same pair under another scheduler."""
    engine = decoder.engine
    other = make_engine(engine.target, engine.drafter, make_scheduler(scheduler))
    return Decoder(other, TARGET, json.loads((TARGET / "config.json").read_text()))


def tokens_of(rounds) -> list[int]:
    """Every token that an iterator of rounds commits."""
    return [token for done in rounds for token in done.tokens]
