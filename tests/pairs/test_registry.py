"""Published pairs: a target in any quantisation finds its drafter, a fine-tune does not."""

from __future__ import annotations

import json
import shutil

import pytest
from helpers.pairs import TARGET
from huggingface_hub.errors import LocalEntryNotFoundError

import dspark_mlx
from dspark_mlx import models
from dspark_mlx.checkpoint import hub
from dspark_mlx.convert.packagings import PACKAGINGS
from dspark_mlx.errors import InputError
from dspark_mlx.pairs import registry
from dspark_mlx.pairs.registry import (
    DESCRIBED,
    REPORTED,
    PublishedPair,
    find_pair,
    find_pairs,
    names_of,
    published_pairs,
)

QWEN_8B = "deepseek-ai/dspark_qwen3_8b_block7"


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen3-8B",
        "mlx-community/Qwen3-8B-8bit",
        "mlx-community/Qwen3-8B-4bit-DWQ",
        "Qwen/Qwen3-8B-MLX-bf16",
        "Qwen/Qwen3-8B@main",
        "models/qwen3-8b-q4_K_M.gguf",
        "/home/me/Qwen3-8B-mxfp4/",
        "/cache/hub/models--Qwen--Qwen3-8B/snapshots/0123abcd",
    ],
)
def test_any_quantization_is_the_same_target(name):
    pair = find_pair(names_of(name, {}))
    assert pair is not None and pair.drafter == QWEN_8B


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen3-8B-Base", "Qwen/Qwen3-4B-Instruct-2507-4bit", "me/Qwen3-80B", "x", ""]
)
def test_another_model_has_none(name):
    """A drafter that was trained for another model of nearly the same name."""
    assert find_pair(names_of(name, {})) is None


def test_a_folders_config_says_what_it_is():
    assert find_pair(names_of("here", {"_name_or_path": "Qwen/Qwen3-8B"})).drafter == QWEN_8B


def test_every_pair_is_of_a_packaging_that_is_read():
    known = {packaging.NAME for packaging in PACKAGINGS}
    pairs = published_pairs()
    assert {pair.packaging for pair in pairs} <= known
    assert {pair.certainty for pair in pairs} == {DESCRIBED, REPORTED}
    drafters = [pair.drafter for pair in pairs]
    assert len(set(drafters)) == len(drafters)
    for pair in pairs:
        for name in pair.targets:
            found = find_pair([name])
            assert pair in find_pairs([name])
            assert found is None or found.certainty == DESCRIBED
            assert found is not None or pair.certainty == REPORTED


def test_of_several_drafters_the_best_is_taken(monkeypatch):
    """The first of the table, or one that nobody has measured or seen."""

    def pair(drafter, certainty, length):
        return PublishedPair(("Qwen3-8B",), drafter, "z-lab DFlash", None, certainty, None, length)

    pairs = [
        pair("a/none", DESCRIBED, None),
        pair("a/less", DESCRIBED, 4.0),
        pair("a/more", DESCRIBED, 5.0),
        pair("a/said", REPORTED, 9.0),
    ]
    monkeypatch.setattr(registry, "published_pairs", lambda: pairs)
    assert find_pair(["x/Qwen3-8B"]).drafter == "a/more"
    monkeypatch.setattr(registry, "published_pairs", lambda: pairs[3:])
    assert find_pair(["x/Qwen3-8B"]) is None and find_pairs(["x/Qwen3-8B"]) == pairs[3:]


def test_what_is_only_reported_is_named_and_not_fetched(tmp_path, monkeypatch):
    """A repository that nobody looked at, downloaded unasked."""
    monkeypatch.setattr(hub, "snapshot_download", None)
    monkeypatch.setattr(hub, "hf_hub_download", None)
    folder = tmp_path / "Qwen3-32B-8bit"
    shutil.copytree(TARGET, folder)
    with pytest.raises(InputError, match="Others name deepseek-ai/dspark_qwen3_32b_block7"):
        dspark_mlx.load(folder)


def test_load_asks_for_the_published_drafter(tmp_path, monkeypatch):
    """A drafter that has to be named although it is known; a traceback without network."""
    asked = []

    def unreachable(name, **options):
        asked.append(name)
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    folder = tmp_path / "Qwen3-8B-8bit"
    shutil.copytree(TARGET, folder)
    with pytest.raises(InputError) as error:
        dspark_mlx.load(folder)
    assert asked == [QWEN_8B]
    assert QWEN_8B in str(error.value) and "cannot be reached" in str(error.value)
    with pytest.raises(InputError, match="a target whose drafter is known here"):
        dspark_mlx.load(TARGET)


def test_licences_are_listed(capsys):
    """A licence that forbids what the user does, and nobody said so."""
    known = {pair.drafter: pair.licence for pair in published_pairs()}
    assert known["incoai/GLM-5.3-Flash-DFlash2"] == "CC-BY-NC-ND-4.0"
    assert known["canada-quant/GLM-5.3-Flash-DFlash2-E"] == "Apache-2.0"
    assert models.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for drafter, licence in known.items():
        (line,) = [line for line in lines if drafter in line.split()]
        assert (licence or "unknown") in line.split()


def test_the_command_lists_pairs(capsys, monkeypatch):
    monkeypatch.setattr(models, "on_disk", lambda drafter: drafter == QWEN_8B)
    assert models.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(published_pairs()) + 3
    assert [line.split()[-1] for line in lines if QWEN_8B in line] == ["yes"]
    assert models.main(["--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["drafter"] for row in rows if row["on_disk"]] == [QWEN_8B]
