"""Training runs on the golden target: learning, going on after a stop, and every way to fail."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.pairs import TARGET
from helpers.slow_cases import some_slow
from helpers.training_toys import PROMPT, SMALL, begun, one_text_twice, same

from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.decoder import Decoder
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.engine.state import make_engine
from dspark_mlx.errors import InputError
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.targets.tap import Target
from dspark_mlx.train.run import TrainingRun
from dspark_mlx.train.step.batches import BatchSettings
from dspark_mlx.train.step.learner import Recipe


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, target_model, corpus):
    """A finished run, which takes seconds; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    start = begun(folder / "start")
    target = Target(target_model, start.config.taps, "golden target")
    TrainingRun(target, corpus, start, SMALL, folder / "run").go()
    target.close()
    return folder / "run"


@pytest.fixture
def finished(finished_run, tmp_path):
    """A finished run of the test's own."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def log(folder):
    """Every line without its time."""
    return [line.split(",")[:8] for line in (folder / "log.csv").read_text().splitlines()]


@pytest.mark.slow
def test_one_text_is_learnt_by_heart(target, corpus, start, tmp_path):
    """A loss that goes down while what is drafted stays wrong: labels, anchors or rows shifted."""
    text, both = corpus[0], one_text_twice(corpus)
    settings = dataclasses.replace(
        SMALL, recipe=Recipe(300, 1e-2), held_out=1, evaluate_every=300, save_every=300
    )
    result = TrainingRun(target, both, start, settings, tmp_path / "run").go()
    gamma = start.config.gamma
    assert result.judged.tau_greedy == gamma + 1
    drafter = assemble(
        start.config, result.tensors, target.embed, target.logits, mx.float32, dequantize=False
    )
    engine = make_engine(target, drafter, make_scheduler("full"))
    # The first round's anchor is the first answer token, before which no anchor was learnt from.
    decoder = Decoder(engine, TARGET, {})
    prompt = text.tokens[: PROMPT + 1].tolist()
    request = list(decoder.rounds(prompt, max_tokens=24, stop_tokens=()))
    assert [t for done in request for t in done.tokens] == text.tokens[PROMPT + 1 :][:24].tolist()
    assert all(len(done.tokens) == gamma + 1 for done in request[1:-1])


@pytest.mark.parametrize("stop", some_slow((1, 5, 6, 8), (5,)))
def test_a_stopped_run_ends_where_an_uninterrupted_one_does(target, corpus, start, tmp_path, stop):
    """Other batches, an optimiser that begins anew, lines lost or doubled in the log."""
    settings = dataclasses.replace(SMALL, recipe=Recipe(12, 2e-3, accumulate=2))
    whole = TrainingRun(target, corpus, start, settings, tmp_path / "whole")
    ended = whole.go()
    first = TrainingRun(target, corpus, start, settings, tmp_path / "parts")
    stopped = first.go(lambda: first.progress.step == stop)
    assert (stopped.ended, stopped.progress.step) == ("stopped", stop)
    second = TrainingRun(target, corpus, start, settings, tmp_path / "parts")
    assert second.progress.step == stop
    resumed = second.go()
    assert resumed.ended == ended.ended == "done"
    same(resumed.tensors, ended.tensors)
    same(second._learner.state(), whole._learner.state())
    held_out = [
        [row for row in log(tmp_path / n) if row[0] == "held-out"] for n in ("whole", "parts")
    ]
    assert held_out[0] == held_out[1] and len(held_out[0]) == 4
    # Bit-equal on disk too, where the next run reads it.
    paths = [tmp_path / n / "checkpoints" / "step-0000012" for n in ("whole", "parts")]
    same(*(read_tensors(path) for path in paths))
    same(*(read_tensors(path / "optimizer") for path in paths))


def test_a_killed_run_goes_on_from_its_checkpoint(target, corpus, start, finished, tmp_path):
    """A log with the lines of steps that are done again, or other weights than without the kill."""

    class Killed(Exception):
        pass

    def kill():
        if killed.progress.step == 9:
            raise Killed

    ended = TrainingRun(target, corpus, start, SMALL, finished).go()
    killed = TrainingRun(target, corpus, start, SMALL, tmp_path / "parts")
    with pytest.raises(Killed):
        killed.go(lambda: bool(kill()))
    resumed = TrainingRun(target, corpus, start, SMALL, tmp_path / "parts")
    assert resumed.progress.step == 6
    same(resumed.go().tensors, ended.tensors)
    assert log(tmp_path / "parts") == log(finished)


def test_the_log_begins_with_what_the_first_weights_are_worth(target, corpus, start, tmp_path):
    """Fitting further that cannot be told from what was there; a line twice, where a run was
    killed before its first checkpoint."""
    for _ in range(2):
        killed = TrainingRun(target, corpus, start, SMALL, tmp_path / "run")
        with pytest.raises(KeyboardInterrupt):
            killed.go(interrupted)
        lines = [row[:2] for row in log(tmp_path / "run")[1:]]
        assert lines == [["held-out", "0"]]
    untouched = TrainingRun(target, corpus, start, SMALL, tmp_path / "other")
    assert log(tmp_path / "run")[1][4] == f"{untouched._evaluate().mean_loss:.5f}"


def interrupted() -> bool:
    raise KeyboardInterrupt


def test_a_finished_run_does_nothing_more(target, corpus, start, finished):
    """Steps beyond the last one, or other weights."""
    before = log(finished)
    again = TrainingRun(target, corpus, start, SMALL, finished).go()
    best = finished / "checkpoints" / f"step-{again.progress.best_step:07d}"
    same(again.tensors, read_tensors(best))
    assert again.progress.step == 12 and log(finished) == before


def test_more_steps_go_on_with_a_finished_run(target, corpus, start, tmp_path):
    """A finished run that cannot be trained further, or that does so at a rate of 0; steps taken
    back, after which the log would tell of a run that never was."""
    first = dataclasses.replace(SMALL, recipe=Recipe(6, 2e-3))
    ended = TrainingRun(target, corpus, start, first, tmp_path / "run").go()
    more = TrainingRun(target, corpus, start, SMALL, tmp_path / "run")
    assert more.progress.step == 6
    same({n: more._learner.parameters[n] for n in more._learner.parameters}, ended.tensors)
    result = more.go()
    assert (result.ended, result.progress.step) == ("done", 12)
    rates = {int(row[1]): float(row[3]) for row in log(tmp_path / "run") if row[0] == "held-out"}
    assert rates[6] == pytest.approx(first.recipe.rate(5), rel=1e-3)
    assert rates[8] == pytest.approx(SMALL.recipe.rate(7), rel=1e-3)
    with pytest.raises(InputError, match=r"steps 12.*steps 6"):
        TrainingRun(target, corpus, start, first, tmp_path / "run")


def test_layers_computed_again_give_the_same_run(target, corpus, start, finished, tmp_path):
    """Gradient checkpointing that changes what is learnt."""
    plain = TrainingRun(target, corpus, start, SMALL, finished).go()
    settings = dataclasses.replace(SMALL, checkpoint_layers=True)
    again = TrainingRun(target, corpus, start, settings, tmp_path / "again").go()
    for name, value in plain.tensors.items():
        assert mx.allclose(value, again.tensors[name], rtol=1e-3, atol=1e-4), name


def test_an_early_end_returns_the_best_weights(target, corpus, start, tmp_path):
    """The last weights, or those of a checkpoint that was removed."""
    # So high a rate that the first judgement stays the best for a while.
    settings = dataclasses.replace(
        SMALL, recipe=Recipe(200, 0.1, warmup=0), evaluate_every=1, patience=2
    )
    result = TrainingRun(target, corpus, start, settings, tmp_path / "run").go()
    assert result.ended == "early"
    assert result.progress.best_step == result.progress.step - 2
    best = tmp_path / "run" / "checkpoints" / f"step-{result.progress.best_step:07d}"
    same(result.tensors, read_tensors(best))
    taus = [float(row[6]) for row in log(tmp_path / "run") if row[0] == "held-out"]
    assert max(taus) == taus[result.progress.best_step]
    again = TrainingRun(target, corpus, start, settings, tmp_path / "run").go()
    assert (again.ended, again.progress.step) == ("early", result.progress.step)
    same(again.tensors, result.tensors)


def test_a_loss_that_is_no_number_ends_the_run(target, corpus, start, tmp_path):
    """Broken weights saved as a checkpoint, which every later run goes on with."""
    settings = dataclasses.replace(SMALL, save_every=2)
    first = TrainingRun(target, corpus, start, settings, tmp_path / "run")
    first.go(lambda: first.progress.step == 4)
    broken = TrainingRun(target, corpus, start, settings, tmp_path / "run")
    parameters = broken._learner.parameters
    parameters["fc.weight"] = parameters["fc.weight"] * float("nan")
    with pytest.raises(InputError, match="loss nan at step"):
        broken.go()
    assert checkpoints(tmp_path / "run") == ["step-0000002", "step-0000004"]
    assert TrainingRun(target, corpus, start, settings, tmp_path / "run").go().ended == "done"


def test_a_folder_that_cannot_be_written_is_one_error(target, corpus, start, tmp_path):
    """A traceback, or a run that says nothing and keeps nothing."""
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match="run"):
        TrainingRun(target, corpus, start, SMALL, tmp_path / "run")


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    """A half-written checkpoint that is gone on with, or a traceback."""
    script = f"""
        import resource, sys, signal
        sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
        import mlx.core as mx
        from pathlib import Path
        from mlx_lm.utils import load_model
        from helpers.pairs import *
        from helpers.training_toys import SMALL, begun, greedy_texts
        from dspark_mlx.errors import InputError
        from dspark_mlx.targets.tap import Target
        from dspark_mlx.train.run import TrainingRun
        model, _ = load_model(TARGET)
        model.set_dtype(mx.float32)
        folder = Path({str(tmp_path)!r})
        start = begun(folder)
        target = Target(model, start.config.taps, "golden target")
        run = TrainingRun(target, greedy_texts(model, 16), start, SMALL, folder / "run")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        def stop():
            if run.progress.step == 7:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            return False

        try:
            run.go(stop)
        except InputError as error:
            print(error)
            sys.exit(2)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "no way to write it" in done.stdout and "step-0000006" in done.stdout
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000006"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"recipe": Recipe(12, learning_rate=1e-3)}, "settings.recipe.learning_rate 0.002"),
        ({"batches": BatchSettings(128, 32, 4, 32, seed=1)}, "settings.batches.seed 0"),
    ],
)
def test_other_settings_are_refused_by_name(target, corpus, start, finished, changed, named):
    """A run that is half one thing and half another."""
    with pytest.raises(InputError, match=named):
        settings = dataclasses.replace(SMALL, **changed)
        TrainingRun(target, corpus, start, settings, finished)
    other = dataclasses.replace(start, identity={"data": "other"})
    with pytest.raises(InputError, match="data 'greedy'"):
        TrainingRun(target, corpus, other, SMALL, finished)


@pytest.mark.parametrize(
    "file", ("model.safetensors", "optimizer/optimizer.safetensors", "state.json")
)
@pytest.mark.parametrize("damage", some_slow(("cut", "missing"), ("cut",)))
def test_a_damaged_checkpoint_is_refused(target, corpus, start, finished, file, damage):
    """Weights or optimiser of nothing, or a traceback."""
    path = finished / "checkpoints" / "step-0000012" / file
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.unlink()
    older = finished / "checkpoints" / "step-0000006"
    with pytest.raises(InputError, match="step-0000012") as error:
        TrainingRun(target, corpus, start, SMALL, finished)
    assert f"{older} is whole: remove {path.parents[len(Path(file).parts) - 1]}" in str(error.value)
    assert "\n" not in str(error.value)
    (older / "state.json").write_text("{}")
    with pytest.raises(InputError, match="No older one is whole"):
        TrainingRun(target, corpus, start, SMALL, finished)


@pytest.mark.parametrize(
    "damage",
    [
        {"progress": {"step": 12}},
        {"progress": [12]},
        {"progress": {"step": "12", "best": 0, "best_step": 0, "bad": 0, "seconds": 0}},
        {"progress": {"step": 12, "best": math.nan, "best_step": 0, "bad": 0, "seconds": 0}},
        {"identity": None},
    ],
)
def test_a_state_that_says_nonsense_is_refused(target, corpus, start, finished, damage):
    """A traceback, or a run that goes on from nowhere."""
    path = finished / "checkpoints" / "step-0000012" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(InputError, match=r"state\.json.*step-0000006 is whole"):
        TrainingRun(target, corpus, start, SMALL, finished)


def test_a_checkpoint_without_some_weights_is_refused(target, corpus, start, finished):
    """The first weights gone on with where a tensor was lost."""
    path = finished / "checkpoints" / "step-0000012" / "model.safetensors"
    tensors = mx.load(str(path))
    kept = {name: value for name, value in tensors.items() if name != "fc.weight"}
    mx.save_safetensors(str(path), {n: mx.array(np.array(v)) for n, v in kept.items()})
    with pytest.raises(InputError, match=r"fc\.weight missing.*step-0000006 is whole"):
        TrainingRun(target, corpus, start, SMALL, finished)


def test_too_few_texts_are_refused(target, corpus, start, tmp_path):
    """All held out and nothing to learn from."""
    with pytest.raises(InputError, match="16 of them"):
        settings = dataclasses.replace(SMALL, held_out=16)
        TrainingRun(target, corpus, start, settings, tmp_path / "run")
