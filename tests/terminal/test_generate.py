"""What `generate` prints around its texts: where one begins, and what explanations mean."""

from __future__ import annotations

import json
import warnings

import pytest
from helpers.loadable import loadable
from helpers.worded import worded_target

from dspark_mlx import generate


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    target = worded_target(tmp_path_factory.mktemp("worded") / "target")
    common = ["--no-drafter", "--prompt", "w5 w6", "-m", "4", "--temp", "1", "--seed", "3"]
    return ["--model", str(target), *common]


def test_samples_are_told_apart(arguments, capsys):
    """Texts one behind the other, of which nobody knows where the second one begins."""
    assert generate.main([*arguments, "--samples", "2", "--json"]) == 0
    one, two = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (one["sample"], two["sample"]) == (0, 1) and one["text"] != two["text"]
    assert generate.main([*arguments, "--samples", "2"]) == 0
    shown = capsys.readouterr().out
    heads = ["--- sample 1 of 2 ---", "--- sample 2 of 2 ---"]
    assert shown == f"{heads[0]}\n{one['text']}\n{heads[1]}\n{two['text']}\n"
    assert generate.main(arguments) == 0
    assert capsys.readouterr().out == one["text"] + "\n"


def test_json_that_is_cut_is_said(tmp_path, capsys):
    """Half an object on standard output, and nothing that says so."""
    target = str(loadable(tmp_path / "target"))
    common = ["--model", target, "--no-drafter", "--prompt", "ab", "--json-schema"]
    with pytest.warns(UserWarning, match="--max-tokens ended the text, whose JSON"):
        assert generate.main([*common, '{"const": 1230}', "-m", "2"]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate.main([*common, '{"const": 12}', "-m", "9"]) == 0
    assert capsys.readouterr().out == "12\n12\n"


def test_explanations_have_a_legend(arguments, capsys):
    """Columns of numbers that only the source explains; the same five lines behind every text."""
    assert generate.main([*arguments, "--samples", "2", "--explain"]) == 0
    said = capsys.readouterr().err
    assert said.count("round 1: plain, took ") == 2
    assert said.count("survival: chances that") == said.count("ms by length: predicted") == 1
    assert said.index("survival: chances") < said.index("round 1:")


def test_json_has_explanations_too(arguments, capsys):
    """A flag that does nothing beside --json."""
    known = {"drafted", "scheduled", "accepted", "tokens"}
    for flags, more in ([], set()), (["--explain"], {"proposer", "seconds", "decision"}):
        assert generate.main([*arguments, "--json", *flags]) == 0
        rounds = json.loads(capsys.readouterr().out)["rounds"]
        assert rounds and all(set(one) == known | more for one in rounds)
