"""python -m dspark_mlx.train for a target with recurrent states, from its flags to its drafter."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.chat_toys import END, LENGTH, chat_folder
from helpers.families import CONFIGS, family
from helpers.slow_cases import some_slow
from helpers.tiny_models import VOCAB, random_tokens
from mlx.utils import tree_flatten

import dspark_mlx
from dspark_mlx.caches import new_caches
from dspark_mlx.convert.target import convert_target
from dspark_mlx.targets.tap import Target
from dspark_mlx.train.__main__ import main
from dspark_mlx.train.data.store import Store, load_all
from dspark_mlx.train.designs import DrafterDesign
from dspark_mlx.train.new_drafter import new_config
from dspark_mlx.train.step.features import logit_cap

FLAGS = (
    "--answer-tokens 200 --max-answer 16 --max-length 64 --shard 16 --temps 0,1 --held-out 2 "
    "--batch-tokens 128 --anchors-every 4 --steps 4 --evaluate-every 4 --layers 1 --rank 8 "
    "--taps 2 --block-size 4 --mask-token 2 --dtype float32 --precision float32 "
    "--no-calibration --json"
)
HYBRIDS = ("qwen3_5", "lfm2", "nemotron_h", "mamba2")


def chat_target(folder: Path, name: str) -> Path:
    """A random chat model of a family that ends its texts."""
    chat_folder(folder)
    weights = dict(tree_flatten(family(name).parameters()))
    heads = ("lm_head.weight", "embed_tokens.weight", "embeddings.weight")
    head = next(n for end in heads for n in weights if n.endswith(end))
    weights[head][END] *= 1.5
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    config = CONFIGS[name] | {"eos_token_id": END, "max_position_embeddings": LENGTH}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", some_slow(HYBRIDS, ("lfm2",)))
def test_a_drafter_for_a_hybrid_target(name, tmp_path):
    """Texts that the target would not write, or a step of the command that refuses its caches."""
    target, to = chat_target(tmp_path / "target", name), tmp_path / "run"
    assert main(["--model", str(target), "--to", str(to), *FLAGS.split()]) == 0
    decoder = dspark_mlx.load(target, to / "drafter", "full", precision="float32")
    texts = load_all(Store.open(to / "conversations"))
    greedy = 0
    for i in range(min(len(texts), 6)):
        text = texts[i]
        first = int(np.argmax(text.answer))
        prompt, count = text.tokens[:first].tolist(), int(text.answer[first:].sum())
        plain = [t for r in decoder.plain().rounds(prompt, count) for t in r.tokens]
        drafted = [t for r in decoder.rounds(prompt, count) for t in r.tokens]
        assert drafted == plain
        greedy += plain == text.tokens[first : first + count].tolist()
    assert greedy > 0


def test_a_hybrid_target_is_quantized(tmp_path):
    """A family that says None where others say which layers may be quantized."""
    target = chat_target(tmp_path / "target", "qwen3_5")
    folder = convert_target(str(target), tmp_path / "small", quantize=True, q_bits=4)
    assert json.loads((folder / "config.json").read_text())["quantization"]["bits"] == 4
    decoder = dspark_mlx.load(folder, False)
    done = decoder.rounds([1, 5, 6], 4, stop_tokens=())
    assert sum(len(r.tokens) for r in done) == 4


@pytest.mark.parametrize("name", HYBRIDS)
def test_recorded_states_are_those_of_decoding(name):
    """States of a text's padding in its features, or a forward without caches that is another."""
    model = family(name)
    target = Target(model, (0, 2), name)
    texts = [random_tokens(n, seed=n) % VOCAB for n in (12, 7)]
    padded = mx.stack([mx.pad(text, (0, 12 - text.size)) for text in texts])
    try:
        recorded, _ = target.record(padded)
        for row, text in enumerate(texts):
            caches = new_caches(model, name)
            stepwise = [target(token[None], caches)[1] for token in text]
            for tap, values in enumerate(recorded):
                one_by_one = np.concatenate([np.array(taps[tap]) for taps in stepwise])
                both = np.array(values[row, : text.size])
                assert np.abs(both - one_by_one).max() <= 1e-4 * np.abs(one_by_one).max()
    finally:
        target.close()


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_new_drafter_needs_no_size_that_a_hybrid_does_not_have(name):
    """Mamba's config without heads and LFM2's without the usual name of a width, refused."""
    target = Target(family(name), (), name)
    try:
        assert logit_cap(target, CONFIGS[name], name) == 0
        config = new_config(
            DrafterDesign(taps=2, mask_token_id=2), target, CONFIGS[name], name, 0.0
        )
    finally:
        target.close()
    assert (config.hidden_size, config.vocab_size) == (128, 96)
    assert config.num_heads % config.num_kv_heads == 0
