"""The undamaged inputs, made once: tiny targets, drafters of every packaging, the package's files.

All targets have six layers of width 32 and the toy chat tokenizer of 64 tokens, which the tiny
published drafters fit.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from helpers import packaged_eagle3
from helpers.chat_toys import END, LENGTH, chat_folder
from helpers.gguf_drafters import write_twins
from helpers.gguf_writer import write as write_llama
from helpers.packaged import PACKAGED
from helpers.tiny_models import config_of, tiny
from mlx.utils import tree_flatten

from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.profile import main as profile
from dspark_mlx.train.__main__ import main as train

WIDTH, DEPTH = 32, 6
TARGETS = ("llama", "qwen3", "gemma4", "sharded", "quantized")
CANONICAL = ("canonical", "canonical_dflash", "canonical_eagle3", "canonical_quantized")
DRAFTERS = (*PACKAGED, "eagle3_qwen3", "eagle3_gemma4", *CANONICAL)
GGUF_TARGETS = ("llama-F32.gguf", "llama-Q8_0.gguf")
GGUF_DRAFTERS = ("deepspec_qwen3-F32.gguf", "specforge-F16.gguf", "dflash_nested-Q8_0.gguf")
TRAINING = (
    "--answer-tokens 200 --max-answer 16 --max-length 96 --shard 16 --temps 0,1 --held-out 2 "
    "--batch-tokens 128 --anchors-every 4 --no-calibration --steps 2 --evaluate-every 2 "
    "--save-every 1 --layers 1 --rank 4 --taps 2 --block-size 3 --mask-token 2 --json"
)


def make(folder: Path) -> None:
    """Write everything below `folder`; its `cache` has to be the user's cache folder."""
    for name in ("targets", "drafters", "gguf", "files"):
        (folder / name).mkdir(parents=True)
    _targets(folder / "targets")
    _drafters(folder / "drafters")
    _gguf(folder / "gguf")
    _files(folder / "files")
    # Under the name that it has in the cases, which the run remembers.
    target = shutil.copytree(folder / "targets" / "llama", folder / "target")
    arguments = ["--model", str(target), "--to", str(folder / "run"), *TRAINING.split()]
    pair = ["--model", str(target), "--drafter", str(folder / "drafters" / "canonical")]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(arguments)
        profile([*pair, "--import", str(folder / "files" / "profile.json")])
    shutil.rmtree(target)


def _targets(folder: Path) -> None:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "max_position_embeddings": LENGTH}
    for family in ("llama", "qwen3"):
        model = tiny(family, **sizes)
        _target(folder / family, model, config_of(family) | sizes)
    _target(folder / "gemma4", *_gemma4())
    sizes |= {"intermediate_size": 64}  # whole groups
    model = tiny("llama", **sizes)
    nn.quantize(model, 32, 8)
    config = config_of("llama") | sizes | {"quantization": {"group_size": 32, "bits": 8}}
    _target(folder / "quantized", model, config)
    shutil.copytree(folder / "llama", folder / "sharded")
    _shard(folder / "sharded")


def _gemma4() -> tuple[nn.Module, dict[str, Any]]:
    module = importlib.import_module("mlx_lm.models.gemma4_text")
    rotated = {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"}
    local = {"rope_theta": 1e4, "rope_type": "default"}
    config: dict[str, Any] = {
        "model_type": "gemma4_text",
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": DEPTH,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "rope_parameters": {"full_attention": rotated, "sliding_attention": local},
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "head_dim": 16,
        "global_head_dim": 32,
        "attention_k_eq_v": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "final_logit_softcapping": 30.0,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "enable_moe_block": False,
        "rms_norm_eps": 1e-6,
        "sliding_window": 24,
        "tie_word_embeddings": True,
        "vocab_size": 64,
        "vocab_size_per_layer_input": 64,
        "max_position_embeddings": LENGTH,
    }
    mx.random.seed(4)
    return module.Model(module.ModelArgs.from_dict(config)), config


def _target(folder: Path, model: nn.Module, config: dict[str, Any]) -> None:
    chat_folder(folder)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": END}))
    generation = {"eos_token_id": [END], "temperature": 0.7, "top_p": 0.9, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))


def _shard(folder: Path) -> None:
    weights: Any = mx.load(str(folder / "model.safetensors"))
    mx.eval(weights)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = (names[::2], names[1::2])
    where: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        mx.save_safetensors(str(folder / file), {n: weights[n] for n in part}, {"format": "mlx"})
        where |= dict.fromkeys(part, file)
    size = sum(value.nbytes for value in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _drafters(folder: Path) -> None:
    for name, write in PACKAGED.items():
        write(folder / name)
    packaged_eagle3.qwen3(folder / "eagle3_qwen3")
    packaged_eagle3.gemma4(folder / "eagle3_gemma4")
    sources = ("deepspec_qwen3", "deepspec_dflash_qwen3", "eagle3_qwen3")
    for name, source in zip(CANONICAL, sources, strict=False):
        convert_drafter(folder / source, folder / name, progress=False)
    settings: dict[str, Any] = {"quantize": True, "q_group_size": 32, "progress": False}
    convert_drafter(folder / "deepspec_qwen3", folder / "canonical_quantized", **settings)
    for name in ("canonical", "canonical_quantized"):
        for file, data in (("calibration.json", _calibration(5)), ("frequent_tokens.json", _RANK)):
            (folder / name / file).write_text(json.dumps(data))


_RANK = {
    "format": "dspark_mlx.frequent_tokens",
    "format_version": 1,
    "ids": list(range(3, 19)),
}


def _calibration(gamma: int) -> dict[str, Any]:
    fit = {
        "temperatures": [0.9] * gamma,
        "rounds": 300,
        "means": [0.7] * gamma,
        "persistence": 0.5,
        "typical": [[0.8] * gamma, [0.3] * gamma],
    }
    fits = [{"sampling_temperature": t, **fit} for t in (0.0, 1.0)]
    return {"format": "dspark_mlx.calibration", "format_version": 2, "fits": fits}


def _gguf(folder: Path) -> None:
    for name in GGUF_TARGETS:
        write_llama(folder / name, kind=name.split("-")[1].removesuffix(".gguf"))
    for name in GGUF_DRAFTERS:
        source, kind = name.removesuffix(".gguf").split("-")
        scratch = folder / source
        PACKAGED[source](scratch)
        write_twins(scratch, folder / name, kind)
        shutil.rmtree(scratch)


def _files(folder: Path) -> None:
    prompts = [{"task": f"t{i % 2}", "prompt": "abc " * (i + 1)} for i in range(3)]
    _lines(folder / "prompts.jsonl", prompts)
    _lines(folder / "turns.jsonl", [{"turns": ["abc", "de"]}, {"turns": ["f"]}])
    _lines(folder / "rounds.jsonl", _rounds())
    profile = {
        "format": "dspark_mlx speed profile",
        "format_version": 1,
        "name": "made by hand",
        "key": "",
        "device": "none",
        "contexts": [64, 1024],
        "verify": [[10.0 + 0.4 * width for width in range(1, 13)]] * 2,
        "draft": [2.0, 2.0],
        "plain": [10.0, 11.0],
        "batches": {"2": [12.0 + width for width in range(1, 13)]},
        "verify_spread": [[0.05] * 12] * 2,
        "rounds": [0.5, 1.0],
        "quick": False,
        "sampling": [0.1, 0.2, 0.01],
    }
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
        "required": ["a"],
    }
    for name, data in (("profile", profile), ("schema", schema), ("bias", {"5": 1.5, "7": -2.0})):
        (folder / f"{name}.json").write_text(json.dumps(data))


def _rounds() -> list[dict[str, Any]]:
    rng, rounds = random.Random(0), []
    for number in range(240):
        logits = [round(rng.gauss(0.5, 1.0), 3) for _ in range(5)]
        rounds.append(
            {
                "request": number // 60,
                "task": "t",
                "position": 10 + number % 60,
                "confidence_logits": logits,
                "accepted": rng.randrange(6),
                "temperature": 0.0,
                "chances": [],
            }
        )
    return rounds


def _lines(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
