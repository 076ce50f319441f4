"""The command: tables, one JSON object, plots, interruption, and what it refuses at once."""

from __future__ import annotations

import json

import pytest
from helpers.pairs import golden, traces
from helpers.worded import worded_target, write_task

from dspark_mlx import InputError, evaluate
from dspark_mlx.evaluation.answers import answers
from dspark_mlx.pairs.builtin import DRAFTER
from dspark_mlx.terminal import command
from dspark_mlx.terminal import flags as terminal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A target that takes text, and two tasks."""
    folder = tmp_path_factory.mktemp("command")
    worded_target(folder / "target")
    (folder / "prompts").mkdir()
    prompts = [[trace["prompt_ids"]] for trace in traces("vanilla")[:3]]
    write_task(folder / "prompts" / "mine.jsonl", prompts[:1])
    write_task(folder / "prompts" / "gsm8k.jsonl", [*prompts[1:], [[3] * 505]])
    return folder


@pytest.fixture
def flags(folder):
    return [
        *("--model", str(folder / "target"), "--drafter", str(golden("vanilla"))),
        *("--prompts", str(folder / "prompts"), "--max-tokens", "12"),
    ]


def test_tables(flags, capsys):
    """A table that lacks a drafter, a task, plain decoding or what was left out."""
    assert evaluate.main([*flags, "--compare", str(golden("dflash"))]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    first = [line.split()[:2] for line in lines[1:10]]
    sides = ["plain", "draft_qwen3_vanilla", "draft_qwen3_dflash"]
    assert first == [[t, side] for t in ("gsm8k", "mine", "macro-average") for side in sides]
    assert "1 of 1" in printed and "Survival by position" in printed
    assert "Confidence of draft_qwen3_vanilla" in printed and "Threshold" in printed
    assert "Confidence of draft_qwen3_dflash" not in printed
    assert "Left out: 1 turns of gsm8k from prompt 3" in printed


def test_one_json_object(flags, capsys):
    """What is no JSON, as nan; a bar or a table on standard output."""
    assert evaluate.main([*flags, "--tasks", "mine", "--json", "--no-speed", "--no-sweep"]) == 0
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert report["tasks"] == ["mine"] and report["drafters"] == ["draft_qwen3_vanilla"]
    assert (report["partial"], report["scheduler"]) == (False, "full")
    score, average = report["scores"]
    assert score["tau"] == score["tokens"] / score["rounds"] == average["tau"]
    assert score["speed"] is None and score["drafted"] == 5 and len(score["conditional"]) == 5
    assert score["sweep"] == [] and report["settings"]["max_tokens"] == 12


def test_plots(flags, folder, capsys):
    """A figure that is missing, or cut off."""
    pytest.importorskip("matplotlib")
    plots = folder / "plots"
    more = ["--compare", str(golden("rnn")), str(golden("dflash")), "--no-speed", "--tasks", "mine"]
    assert evaluate.main([*flags, *more, "--plot", str(plots)]) == 0
    names = ["acceptance.png", "reliability.png", "sweep.png"]
    assert sorted(path.name for path in plots.iterdir()) == names
    assert all((plots / name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert str(plots / "sweep.png") in capsys.readouterr().err


@pytest.mark.parametrize("finished", [0, 1])
def test_ctrl_c_prints_what_is_finished(flags, finished, capsys, monkeypatch):
    """Minutes of work lost, or a part that passes for the whole."""

    def interrupted(*args):
        running = answers(*args)
        for _ in range(finished):
            yield next(running)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "answers", interrupted)
    if not finished:
        with pytest.raises(KeyboardInterrupt):
            evaluate.main(flags)
        assert capsys.readouterr().out == ""
        return
    assert evaluate.main(flags) == command.INTERRUPTED
    assert "PARTIAL: interrupted after 1 of 4 turns" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "where", "found"),
    [
        (["--tasks", "gsm9k"], "--tasks", "gsm9k"),
        (["--tasks", "mine,"], "--tasks", "''"),
        (["--max-samples", "0"], "--max-samples", "0"),
        (["--max-tokens", "1"], "--max-tokens", "1"),
        (["--repeats", "0"], "--repeats", "0"),
        (["--temp", "-1"], "temperature", "-1"),
        (["--plot", "nowhere/at/all"], "nowhere/at/all", "no folder"),
        (["--plot", __file__], __file__, "a file"),
        (["--prompts", "none.jsonl"], "none.jsonl", "no such file"),
        (["--scheduler", "fast"], "scheduler", "fast"),
        (["--compare", str(golden("vanilla"))], "--compare", "twice"),
    ],
)
def test_unusable_flags_are_refused_before_loading(flags, more, where, found, monkeypatch):
    """Minutes of loading and decoding before a typing error shows."""

    def late(*args):
        raise AssertionError("loaded")

    if more[0] != "--scheduler":
        monkeypatch.setattr(terminal, "load_decoder", late)
    with pytest.raises(InputError) as refused:
        evaluate.main([*flags, *more])
    assert refused.value.where == where and found in refused.value.found


def test_unusable_drafters_are_refused(flags, folder):
    """An evaluation of nothing; a second drafter that fails after the first was evaluated."""
    with pytest.raises(InputError, match="--no-drafter"):
        evaluate.main(["--model", str(folder / "target"), "--no-drafter"])
    with pytest.raises(InputError, match=r"vocabulary 49152.* one for vocabulary 512"):
        evaluate.main([*flags, "--compare", str(DRAFTER)])
    long = write_task(folder / "long.jsonl", [[[3] * 505]])
    with pytest.raises(InputError, match="prompts too long for the target's 512 positions"):
        evaluate.main([*flags, "--prompts", str(long)])
