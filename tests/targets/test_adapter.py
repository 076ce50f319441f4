"""Adapters as mlx-lm's `lora` command saves them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from helpers.loadable import loadable
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.tuner.utils import linear_to_lora_layers

import dspark_mlx
from dspark_mlx import InputError, generate
from dspark_mlx.checkpoint.fingerprint import fingerprint
from dspark_mlx.targets.adapter import CONFIG, WEIGHTS, read_adapter

PARAMETERS = {"rank": 4, "scale": 20.0, "dropout": 0.5}
PROMPT = [5, 6, 7, 8]


def adapter(folder: Path, target: Path, seed: int = 0, kind: str = "lora") -> Path:
    """An adapter with random weights, in mlx-lm's form."""
    model, _ = mlx_lm.load(str(target))
    linear_to_lora_layers(model, 2, PARAMETERS, use_dora=kind == "dora")
    trained = dict(tree_flatten(model.trainable_parameters()))
    keys = iter(mx.random.split(mx.random.key(seed), len(trained)))
    weights = {
        name: 0.1 * mx.random.normal(value.shape, key=next(keys))
        for name, value in trained.items()
        if name.rpartition(".")[2] in ("lora_a", "lora_b", "m")
    }
    folder.mkdir()
    mx.save_safetensors(str(folder / WEIGHTS), weights)
    settings = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": PARAMETERS}
    (folder / CONFIG).write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return loadable(tmp_path_factory.mktemp("adapted") / "target")


@pytest.fixture(scope="module")
def stored(tmp_path_factory, target):
    return adapter(tmp_path_factory.mktemp("adapters") / "one", target)


@pytest.fixture
def copy(tmp_path, stored):
    return Path(shutil.copytree(stored, tmp_path / "copy"))


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / CONFIG).read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / CONFIG).write_text(json.dumps(kept))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_text_is_that_of_mlx_lm(target, tmp_path, kind):
    """An adapter that is not there, that drops at random, or that only the first layers have."""
    folder = adapter(tmp_path / kind, target, kind=kind)
    model, _ = mlx_lm.load(str(target), adapter_path=str(folder))
    plain = [int(token) for token, _ in generate_step(mx.array(PROMPT), model, max_tokens=24)][:24]
    decoder = dspark_mlx.load(target, drafter=False, adapter_path=folder)
    tokens = [t for r in decoder.rounds(PROMPT, 24, stop_tokens=()) for t in r.tokens]
    assert tokens == plain
    bare = dspark_mlx.load(target, drafter=False)
    assert tokens != [t for r in bare.rounds(PROMPT, 24, stop_tokens=()) for t in r.tokens]
    assert decoder.adapter_folder == folder == decoder.plain().adapter_folder


def test_generate_has_the_flag(target, stored, capsys):
    """--adapter-path that is parsed and not passed on."""
    texts = set()
    for flags in ([], ["--adapter-path", str(stored)]):
        common = ["--model", str(target), "--no-drafter", "--json", "-m", "24"]
        assert generate.main([*common, *flags, "--prompt", "abcdef"]) == 0
        texts.add(json.loads(capsys.readouterr().out)["text"])
    assert len(texts) == 2


def test_an_adapter_has_a_key_of_its_own(target, stored, copy):
    """A speed profile of the bare target, or of another adapter."""

    def key(folder: Path | None) -> str:
        return fingerprint(target, target, "float32", 7, 512, {}, folder)

    keys = [key(None), key(stored)]
    assert key(copy) == keys[1]
    (copy / "0000100_adapters.safetensors").write_bytes(b"a checkpoint of its training")
    assert key(copy) == keys[1]
    edit(copy, num_layers=1)
    assert len({*keys, key(copy)}) == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: shutil.rmtree(f), "no such folder"),
        (lambda f: (f / WEIGHTS).unlink(), "no such file"),
        (lambda f: (f / WEIGHTS).rename(f / "adapter_model.safetensors"), "of PEFT"),
        (lambda f: (f / CONFIG).unlink(), CONFIG),
        (lambda f: (f / WEIGHTS).write_bytes(b"12345678"), "a whole safetensors file"),
        (lambda f: edit(f, num_layers=None), "num_layers"),
        (lambda f: edit(f, lora_parameters={"r": 4, "alpha": 16}), "rank"),
        (lambda f: edit(f, fine_tune_type="ia3"), "fine_tune_type"),
        (lambda f: edit(f, num_layers=1), "not an adapter parameter"),
        (lambda f: edit(f, num_layers=3), "tensors too few"),
        (lambda f: edit(f, lora_parameters=PARAMETERS | {"rank": 8}), "does not match"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_one_line(target, copy, change, says):
    """KeyError, a traceback of mlx-lm, an adapter that is half applied and says nothing."""
    change(copy)
    with pytest.raises(InputError) as caught:
        dspark_mlx.load(target, drafter=False, adapter_path=copy)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_adapter_is_found_before_the_target():
    """Gigabytes that are downloaded first."""
    with pytest.raises(InputError, match="an adapter's folder"):
        dspark_mlx.load("owner/no-such-target", drafter=False, adapter_path="nowhere")


def test_checkpoints_of_a_training_are_not_read(target, copy):
    """A folder as mlx-lm leaves it, with the weights of every hundred steps."""
    shutil.copy(copy / WEIGHTS, copy / "0000100_adapters.safetensors")
    assert read_adapter(str(copy)).kind == "lora"
    assert dspark_mlx.load(target, drafter=False, adapter_path=str(copy)).adapter_folder == copy
