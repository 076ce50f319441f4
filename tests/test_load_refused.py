"""What load() and a decoder refuse at once, beside what the other tests of refusals cover."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.pairs import TARGET

import dspark_mlx
from dspark_mlx import InputError


def test_a_folder_without_tokenizer_is_refused_when_text_is_needed():
    """transformers makes an empty tokenizer up, whose text is silently empty."""
    decoder = dspark_mlx.load(TARGET, drafter=False)
    with pytest.raises(InputError, match=r"no tokenizer.*expected one of tokenizer\.json"):
        decoder.stream([5, 6, 7])


def test_rounds_need_no_tokenizer():
    """Token ids in, token ids out, as agent apps with their own tokenizer use it."""
    rounds = list(dspark_mlx.load(TARGET, drafter=False).rounds([5, 6, 7], 4))
    assert sum(len(done.tokens) for done in rounds) == 4


@pytest.mark.parametrize("stop_tokens", [5, ["</s>"], [1.5]])
def test_stop_tokens_are_checked_before_the_first_round(stop_tokens):
    decoder = dspark_mlx.load(TARGET, drafter=False)
    with pytest.raises(
        InputError, match=r"stop_tokens: found .* expected (a collection of )?token ids"
    ):
        decoder.rounds([5, 6, 7], stop_tokens=stop_tokens)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"drafter": False, "scheduler": None}, "scheduler: found None"),
        ({"drafter": True}, "drafter: found True"),
        ({"drafter": None}, "found no drafter; expected a target whose drafter is known"),
        ({"drafter": False, "precision": "int3"}, "precision: found 'int3'"),
        ({"drafter": 3}, "path: found 3"),
        ({"drafter": False, "adapter_path": 3}, "adapter_path: found 3"),
        ({"drafter": False, "prompt_cache_dir": ""}, "prompt_cache_dir: found ''"),
        ({"drafter": False, "kernels": "no"}, "kernels: found 'no'; expected True or False"),
        ({"drafter": False, "exact": 1}, "exact: found 1; expected True or False"),
        ({"drafter": False, "machines": 5}, "machines: found 5"),
        ({"drafter": False, "prompt_cache_dir": 3.5}, "prompt_cache_dir: found 3.5"),
    ],
)
def test_unusable_arguments_are_named(settings, expected):
    with pytest.raises(InputError, match=expected):
        dspark_mlx.load(TARGET, **settings)


def test_a_folder_without_a_config_is_no_target_without_a_drafter(tmp_path):
    """A half downloaded target, whose user is told to look for a drafter."""
    with pytest.raises(InputError, match=r"found no config\.json; expected a target's folder"):
        dspark_mlx.load(tmp_path)


def test_a_place_that_is_none_is_named():
    """Not a traceback of huggingface-hub's."""
    with pytest.raises(InputError, match="no such file or folder; expected a path, or a Hub id"):
        dspark_mlx.load("no such model", drafter=False)


def test_code_in_a_checkpoint_is_refused(tmp_path: Path):
    """mlx-lm's model_file would import Python from the folder."""
    folder = tmp_path / "target"
    shutil.copytree(TARGET, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_file": "evil.py"}))
    with pytest.raises(InputError, match=r"config\.json: found a model_file, 'evil\.py'"):
        dspark_mlx.load(folder, drafter=False)
