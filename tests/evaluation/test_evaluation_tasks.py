"""Tasks and their prompts: the shipped sample, files, folders, the Hub, and what is refused."""

from __future__ import annotations

import json

import pytest
from helpers.worded import write_task
from huggingface_hub.errors import LocalEntryNotFoundError

from dspark_mlx import InputError
from dspark_mlx.checkpoint import hub
from dspark_mlx.evaluation import read_tasks
from dspark_mlx.evaluation.tasks import NAMES, SHIPPED


@pytest.fixture
def folder(tmp_path):
    """Two tasks, one under its name in DeepSpec's repository, in folders of their own."""
    (tmp_path / "prompts" / "deep").mkdir(parents=True)
    write_task(tmp_path / "prompts" / "mine.jsonl", [[[3, 4]], [[5], [6]]])
    write_task(tmp_path / "prompts" / "deep" / "arena-hard-v2.jsonl", [[[7]]])
    return tmp_path / "prompts"


def test_a_sample_of_nearly_every_task_ships():
    """A sample that is left out of the package, or a command that needs a network."""
    tasks = read_tasks()
    assert [task.name for task in tasks] == [name for name in NAMES if name != "alpaca"]
    assert {len(task.prompts) for task in tasks} == {4}
    assert all(turn.strip() for task in tasks for turns in task.prompts for turn in turns)
    assert SHIPPED.parent.name == "data"


def test_tasks_are_those_asked_for():
    """Tasks in another order, or more prompts than asked for."""
    first, second = read_tasks(["mbpp", "gsm8k"], max_samples=2)
    assert (first.name, second.name) == ("mbpp", "gsm8k")
    assert first.prompts == read_tasks(["mbpp"])[0].prompts[:2]


def test_files_and_folders(folder):
    """Turns lost or joined; a task found by no name."""
    tasks = {task.name: task.prompts for task in read_tasks(source=folder)}
    assert tasks == {"arena-hard": (("w7",),), "mine": (("w3 w4",), ("w5", "w6"))}
    (task,) = read_tasks(source=folder / "mine.jsonl")
    assert (task.name, len(task.prompts)) == ("mine", 2)


@pytest.mark.parametrize(
    ("names", "source", "found", "expected"),
    [
        (["gsm9k"], None, "'gsm9k'", "gsm8k, math500, aime25, humaneval"),
        (["alpaca"], None, "alpaca, which this package has no prompts of", "gsm8k"),
        ([""], None, "''", "gsm8k"),
        (["gsm8k", "gsm8k"], None, "gsm8k twice", "once"),
        (["gsm8k"], "prompts", "'gsm8k'", "one of arena-hard, mine"),
    ],
)
def test_an_unknown_task_is_named(folder, names, source, found, expected):
    """A misspelt task left out in silence."""
    with pytest.raises(InputError) as refused:
        read_tasks(names, source and folder.parent / source)
    assert refused.value.where == "--tasks"
    assert found in refused.value.found and expected in refused.value.expected
    assert bool(refused.value.hint) == (names == ["alpaca"])


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ({"prompt": ["p"]}, "prompt"),
        ({"turns": []}, "turns"),
        ({"turns": "p"}, "turns"),
        ({"turns": ["p", 3]}, "turns"),
        (["p"], "p"),
        ({"turns": ["p", " "]}, "an empty turn"),
    ],
)
def test_a_line_without_turns_is_named(tmp_path, line, found):
    """A Python error, or a prompt of nothing, for a file of something else."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"turns": ["p"]}\n' + json.dumps(line) + "\n")
    with pytest.raises(InputError) as refused:
        read_tasks(source=path)
    assert refused.value.where == f"{path}:2" and found in refused.value.found


def test_unusable_sources_are_named(folder):
    """An empty evaluation of an empty folder; one of two files of a task chosen by chance."""
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.jsonl file in it"):
        read_tasks(source=folder / "empty")
    write_task(folder / "deep" / "mine.jsonl", [[[7]]])
    with pytest.raises(InputError, match=r"deep/mine\.jsonl and mine\.jsonl.* one file for mine"):
        read_tasks(source=folder)
    with pytest.raises(InputError, match="no such file or folder"):
        read_tasks(source=str(folder / "none"))


def test_the_hub_gives_datasets(folder, monkeypatch):
    """A model repository of the same name, or its weights, fetched for a dataset."""
    asked = {}

    def fetch(name: str, **rest) -> str:
        asked.update(rest, name=name)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    tasks = read_tasks(["mine"], "owner/prompts@v1")
    assert tasks[0].prompts[0] == ("w3 w4",)
    assert (asked["name"], asked["repo_type"]) == ("owner/prompts", "dataset")
    assert asked["revision"] == "v1" and asked["allow_patterns"] == ["*.jsonl"]
    hub.resolve("owner/model")
    assert asked["repo_type"] == "model" and "*.safetensors" in asked["allow_patterns"]


def test_without_a_network_the_hub_is_named(monkeypatch):
    """A traceback of huggingface-hub's."""

    def unreachable(*args: object, **rest: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(InputError, match="Hub cannot be reached"):
        read_tasks(source="owner/prompts")
