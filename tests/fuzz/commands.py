"""Every command with arguments that work, on inputs in the current folder, and its parser."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass, field

from .stock import TRAINING

MODULES = (
    {
        name: f"dspark_mlx.{name}"
        for name in ("generate", "chat", "bench", "evaluate", "profile", "calibrate", "models")
    }
    | {name: f"dspark_mlx.{name}.__main__" for name in ("train", "convert")}
    | {"request": "fuzz.requests"}
)


@dataclass
class Call:
    """A command line. `inputs` are what it reads, by name in the current folder."""

    command: str
    arguments: list[str]
    inputs: tuple[str, ...]
    stdin: bytes = b""


@dataclass(frozen=True)
class _Way:
    command: str
    line: str
    inputs: tuple[str, ...] = field(default=("target", "drafter"))


_PAIR = "--model target --drafter drafter --max-tokens 4"
_WAYS = {
    "generate": _Way("generate", f"{_PAIR} --prompt abc"),
    "plain": _Way(
        "generate", "--model target --no-drafter --prompt abc --max-tokens 4", ("target",)
    ),
    "sampled": _Way("generate", f"{_PAIR} --prompt abc --temp 0.8 --seed 1 --json --stats"),
    "schema": _Way(
        "generate",
        f"{_PAIR} --prompt abc --json-schema schema.json",
        ("target", "drafter", "schema.json"),
    ),
    "bias": _Way(
        "generate",
        f"{_PAIR} --prompt abc --logit-bias bias.json",
        ("target", "drafter", "bias.json"),
    ),
    "request": _Way("request", "undamaged"),
    "chat": _Way("chat", _PAIR),
    "bench": _Way(
        "bench",
        f"{_PAIR} --prompts prompts.jsonl --repeats 1",
        ("target", "drafter", "prompts.jsonl"),
    ),
    "replay": _Way(
        "bench",
        "--model target --replay rounds.jsonl --profile profile.json",
        ("rounds.jsonl", "profile.json"),
    ),
    "replay calibrated": _Way(
        "bench",
        "--model target --replay rounds.jsonl --profile profile.json --calibration drafter",
        ("rounds.jsonl", "profile.json", "drafter"),
    ),
    "evaluate": _Way(
        "evaluate", f"{_PAIR} --prompts turns.jsonl", ("target", "drafter", "turns.jsonl")
    ),
    "profile": _Way(
        "profile",
        "--model target --drafter drafter --import profile.json --export out.json",
        ("target", "drafter", "profile.json"),
    ),
    "fit": _Way(
        "calibrate",
        "--model target --rounds rounds.jsonl --to drafter",
        ("rounds.jsonl", "drafter"),
    ),
    "calibrate": _Way(
        "calibrate",
        "--model target --drafter drafter --prompts prompts.jsonl --max-tokens 80 --temp 0 --json",
        ("target", "drafter", "prompts.jsonl"),
    ),
    "models": _Way("models", "", ()),
    "train": _Way(
        "train",
        f"--model target --to out {TRAINING} --prompts turns.jsonl",
        ("target", "turns.jsonl"),
    ),
    "go on": _Way("train", f"--model target --to run {TRAINING}", ("target", "run")),
    "fit further": _Way(
        "train",
        "--model target --from drafter --to out --answer-tokens 100 --max-answer 16 --max-length "
        "96 --held-out 2 --batch-tokens 128 --no-calibration --steps 1 --json",
    ),
    "convert drafter": _Way("convert", "drafter --from drafter --to out", ("drafter",)),
    "quantise drafter": _Way(
        "convert",
        "drafter --from drafter --to out -q --q-group-size 32 --q-except down=none --card",
        ("drafter",),
    ),
    "convert target": _Way("convert", "target --from target --to out", ("target",)),
    "quantise target": _Way(
        "convert", "target --from target --to out -q --q-group-size 32 --card", ("target",)
    ),
    "check": _Way(
        "convert",
        "check drafter --target target --max-tokens 16 --prompts prompts.jsonl",
        ("target", "drafter", "prompts.jsonl"),
    ),
    "export": _Way("convert", "export --from drafter --target target --to out"),
}
NAMES = tuple(_WAYS)


def call(name: str) -> Call:
    """A command that works, by the name of what it is used for."""
    way = _WAYS[name]
    return Call(way.command, way.line.split(), way.inputs)


def parser(command: str, arguments: list[str]) -> argparse.ArgumentParser | None:
    """The parser of the flags that these arguments may have; None for a command without flags."""
    if command in ("models", "request"):
        return None
    if command == "train":
        return importlib.import_module("dspark_mlx.train.arguments").parser()
    found = importlib.import_module(MODULES[command])._parser()
    for action in found._actions:
        if isinstance(action, argparse._SubParsersAction) and arguments[0] in action.choices:
            return action.choices[arguments[0]]
    return found
