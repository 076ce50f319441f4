"""Folders and users that are not what a laptop has: names with pattern characters, weights called
otherwise, no home, no cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.pairs import TARGET, checkpoint, tokens_of
from helpers.worded import worded_target

import dspark_mlx
from dspark_mlx import InputError
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.convert.target import convert_target
from dspark_mlx.system.files import cache_folder

PROMPT = [5, 6, 7]


def texts(folder: Path) -> list[int]:
    return tokens_of(dspark_mlx.load(folder, drafter=False).rounds(PROMPT, 6))


@pytest.mark.parametrize("name", ["a[b]c", "a*", "what?", "[!x]", "a b", "mod\u00e8le"])
def test_folders_with_characters_of_patterns(name, tmp_path):
    """ "No safetensors found" in a folder that has them, from mlx-lm's glob."""
    folder = shutil.copytree(TARGET, tmp_path / name / "target")
    assert texts(folder) == texts(TARGET)


def test_a_pattern_that_fits_another_folder(tmp_path):
    """The weights of a folder whose name the pattern fits, silently."""
    shutil.copytree(TARGET, tmp_path / "ab")
    weights = mx.load(str(TARGET / "model.safetensors"))
    zeros = {name: mx.zeros_like(value) for name, value in weights.items()}
    mx.save_safetensors(str(tmp_path / "ab" / "model.safetensors"), zeros)
    assert texts(shutil.copytree(TARGET, tmp_path / "a[b]")) == texts(TARGET)


@pytest.mark.parametrize("names", [["pytorch_model"], ["weights.00", "weights.01"]])
def test_weights_by_other_names(names, tmp_path):
    """Weights that mlx-lm's pattern misses."""
    folder = shutil.copytree(TARGET, tmp_path / "target")
    weights = mx.load(str(folder / "model.safetensors"))
    for number, name in enumerate(names):
        part = dict(list(weights.items())[number :: len(names)])
        mx.save_safetensors(str(folder / f"{name}.safetensors"), part)
    (folder / "model.safetensors").unlink()
    assert texts(folder) == texts(TARGET)


def test_such_a_folder_is_converted(tmp_path):
    """The same in the converter."""
    source = worded_target(tmp_path / "[source]")
    (source / "model.safetensors").rename(source / "consolidated.safetensors")
    assert texts(convert_target(source, tmp_path / "*out*")) == texts(TARGET)
    assert texts(tmp_path / "*out*") == texts(TARGET)


def no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("lacking", ["home", "cache"])
def test_what_needs_no_cache_does_without(lacking, tmp_path, monkeypatch):
    """A container's user without a home, to whom everything was refused."""
    if lacking == "home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr("pathlib.Path.home", no_home)
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = checkpoint("vanilla", tmp_path / "source")
    drafter = tmp_path / "drafter"
    convert_drafter(source, drafter, progress=False)
    decoder = dspark_mlx.load(TARGET, drafter)
    assert tokens_of(decoder.rounds(PROMPT, 6))[:6] == texts(TARGET)[:6]
    # A drafter to be converted needs a place for it.
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        dspark_mlx.load(TARGET, source)


def test_a_relative_cache_folder_counts_for_none(tmp_path, monkeypatch):
    """A cache in whatever folder a command is called in; the specification says to ignore it."""
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "dspark_mlx"
