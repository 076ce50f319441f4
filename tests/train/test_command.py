"""python -m dspark_mlx.train from its flags to a drafter that decodes, on a toy chat target."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import mlx.core as mx
import numpy as np
import pytest
from helpers.chat_toys import END, LENGTH, chat_folder
from helpers.slow_cases import some_slow
from helpers.tiny_models import config_of, tiny
from huggingface_hub import metadata_load
from mlx.utils import tree_flatten

import dspark_mlx
from dspark_mlx import InputError
from dspark_mlx.checkpoint.frequent_tokens import read_ranking
from dspark_mlx.pairs.stored import read_drafter
from dspark_mlx.train import memory
from dspark_mlx.train.__main__ import main
from dspark_mlx.train.data.store import Store, load_all
from dspark_mlx.train.start import published_drafter


def flags(text: str) -> list[str]:
    return text.split()


TEXTS = flags("--answer-tokens 240 --max-answer 24 --max-length 96 --shard 32 --temps 0,1")
BATCHES = flags("--held-out 4 --batch-tokens 256 --anchors-every 4 --no-calibration --json")
STEPS = flags("--steps 6 --evaluate-every 3 --save-every 2")
DESIGN = flags("--layers 1 --rank 8 --taps 2 --block-size 4 --mask-token 2")
SMALL = [*TEXTS, *BATCHES, *STEPS, *DESIGN]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = chat_folder(tmp_path_factory.mktemp("toy") / "target")
    model = tiny("llama")
    model.lm_head.weight[END] *= 1.5
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    config = config_of("llama") | {"eos_token_id": END, "max_position_embeddings": LENGTH}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def train(target, to, *flags) -> int:
    return main(["--model", str(target), "--to", str(to), *SMALL, *flags])


@pytest.fixture(scope="module")
def trained(target, tmp_path_factory):
    to = tmp_path_factory.mktemp("run") / "run"
    assert train(target, to) == 0
    return to


def test_the_drafter_loads_and_decodes(target, trained):
    """A folder that only the trainer itself can read."""
    decoder = dspark_mlx.load(target, trained / "drafter", "full", precision="float32")
    drafted = [token for r in decoder.rounds([1, 5, 6, 0, 2], 24) for token in r.tokens]
    plain = [token for r in decoder.plain().rounds([1, 5, 6, 0, 2], 24) for token in r.tokens]
    assert drafted == plain
    assert metadata_load(trained / "drafter" / "README.md")["library_name"] == "mlx"
    assert (trained / "drafter" / "README.md").read_text().startswith("---")
    texts = load_all(Store.open(trained / "conversations"))
    written = texts.tokens[texts.answer]
    assert read_ranking(trained / "drafter", 512)[0] == np.bincount(written).argmax()
    assert {row.split(",")[0] for row in (trained / "log.csv").read_text().split()} >= {
        "kind",
        "train",
        "held-out",
    }


def test_the_same_command_again_changes_nothing(target, trained, capsys):
    """A finished run that trains or writes texts a second time."""
    before = {p: p.read_bytes() for p in trained.rglob("*.safetensors")}
    log = (trained / "log.csv").read_text()
    assert train(target, trained) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 6
    assert (trained / "log.csv").read_text() == log
    assert {p: p.read_bytes() for p in trained.rglob("*.safetensors")} == before


def test_a_drafter_of_no_run_is_not_replaced(target, tmp_path):
    """`--to .` beside somebody's folder of the name drafter, which is written over."""
    (tmp_path / "drafter").mkdir()
    with pytest.raises(InputError, match="a drafter that this run did not write"):
        train(target, tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "drafter"]


def test_texts_written_elsewhere_are_learnt_too(target, tmp_path, capsys):
    """Texts left out, or a run that trains although it was to write only."""
    elsewhere = [*SMALL, "--seed", "5", "--conversations", str(tmp_path / "texts")]
    to = ["--model", str(target), "--to", str(tmp_path / "run")]
    assert main([*to, *elsewhere, "--only-conversations"]) == 0
    there = json.loads(capsys.readouterr().out)["conversations"]
    assert not (tmp_path / "run").exists()
    assert main([*to, *SMALL, "--more-conversations", str(tmp_path / "texts")]) == 0
    here = Store.open(tmp_path / "run" / "conversations").conversations
    assert here < json.loads(capsys.readouterr().out)["conversations"] <= here + there


def test_other_settings_are_refused_by_name(target, trained):
    """A run gone on with under other settings, silently."""
    with pytest.raises(InputError, match="learning_rate"):
        train(target, trained, "--learning-rate", "0.1")


def test_from_goes_on_with_a_drafter(target, trained, tmp_path, capsys):
    """--from that begins anew, or that keeps the drafter as it was."""
    start = str(trained / "drafter")
    names = ["--model", str(target), "--to", str(tmp_path / "run"), "--from", start]
    assert main([*names, *TEXTS, *BATCHES, "--steps", "2", "--dtype", "float32"]) == 0
    old, new = (mx.load(f"{f}/model.safetensors") for f in (start, tmp_path / "run" / "drafter"))
    assert old.keys() == new.keys()
    moved = max(mx.abs(old[n].astype(mx.float32) - new[n]).max().item() for n in old)
    assert 0 < moved < 0.01


@pytest.mark.parametrize("method", some_slow(("dflash2", "eagle3", "mtp"), ("eagle3",)))
def test_the_same_command_trains_other_methods(method, target, trained, tmp_path):
    """A method that trains, but whose folder cannot be written, loaded or fitted further."""
    run, further = tmp_path / "run", tmp_path / "further"
    texts = ["--model", str(target), "--conversations", str(trained / "conversations")]
    same = [*texts, *TEXTS, *BATCHES, "--steps", "2"]
    made = ["--method", method, "--block-size", "4", "--intermediate-size", "40"]
    if method == "dflash2":
        made += ["--mask-token", "2"]
    assert main([*same, "--to", str(run), *made]) == 0
    assert main([*same, "--to", str(further), "--from", str(run / "drafter")]) == 0
    decoder = dspark_mlx.load(target, further / "drafter", "full", precision="float32")
    config = decoder.engine.drafter.config
    assert (config.METHOD, config.gamma, config.intermediate_size) == (method, 4, 40)
    drafted = [token for r in decoder.rounds([1, 5, 6, 0, 2], 24) for token in r.tokens]
    plain = [token for r in decoder.plain().rounds([1, 5, 6, 0, 2], 24) for token in r.tokens]
    assert drafted == plain


def test_from_needs_no_calibration(target, trained, tmp_path):
    """A damaged calibration.json that stops a training which would replace it."""
    start = shutil.copytree(trained / "drafter", tmp_path / "start")
    (start / "calibration.json").write_text("{")
    with pytest.raises(InputError, match=r"calibration\.json"):
        read_drafter(start)
    decoder = dspark_mlx.load(target, False, precision="float32")
    begun = published_drafter(decoder, start, "target")
    assert begun.tensors.keys() == mx.load(str(start / "model.safetensors")).keys()


def test_choices_of_a_new_drafter_are_refused_with_from(target, trained, tmp_path):
    """--from X --head rnn training a vanilla head without a word."""
    with pytest.raises(InputError, match=r"--head, --layers"):
        train(target, tmp_path / "run", "--from", str(trained / "drafter"), "--head", "rnn")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--temps", "0,warm"), "--temps"),
        (("--prompts", "nothing.jsonl"), "nothing.jsonl"),
        (("--steps", "0"), "steps"),
        (("--rank", "1000000"), "--rank.*256 or less"),
        (("--layers", "1000000"), "--layers.*64 or less"),
        (("--block-size", "1000000"), "--block-size"),
        (("--learning-rate", "0"), "learning_rate"),
        (("--plot", "run.txt"), "run.txt"),
        (("--taps", "9"), "--taps"),
        (("--method", "eagle3"), "eagle3 with --layers, --rank, --mask-token;"),
        (("--qat-bits", "7"), "7 bits"),
        (("--qat-bits", "4", "--qat-group-size", "48"), "group size 48"),
    ],
)
def test_bad_flags_are_named_before_anything_is_written(target, tmp_path, flags, named):
    """Minutes of work before a flag that cannot be meant is found."""
    with pytest.raises(InputError, match=named):
        train(target, tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


def test_a_target_without_a_chat_template_is_refused(target, tmp_path):
    """A traceback from the template engine."""
    folder = chat_folder(tmp_path / "target", template=None)
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes((target / name).read_bytes())
    with pytest.raises(InputError, match="chat template"):
        train(folder, tmp_path / "run")


def test_too_little_memory_is_one_error(target, tmp_path, monkeypatch):
    """An out-of-memory crash after the texts were written."""
    monkeypatch.setattr(memory, "total_memory", lambda: 1000)
    with pytest.raises(InputError, match="GB of memory"):
        train(target, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_and_ends_cleanly(target, tmp_path):
    """A stopped run that loses its steps, or a traceback."""
    flags = [flag if flag != "6" else "100000" for flag in SMALL]
    command = [sys.executable, "-m", "dspark_mlx.train", "--model", str(target)]
    to = tmp_path / "run"
    process = subprocess.Popen(
        [*command, "--to", str(to), *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not list(to.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out)["ended"] == "stopped"
    assert b"Traceback" not in err
    steps = json.loads(out)["steps"]
    assert (to / "checkpoints" / f"step-{steps:07d}" / "state.json").exists()
