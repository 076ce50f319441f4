"""What a new drafter says of its target."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspark_mlx.drafters.dspark.config import DSparkConfig
from dspark_mlx.drafters.methods import read_config
from dspark_mlx.pairs.builtin import DRAFTER
from dspark_mlx.system.files import read_json
from dspark_mlx.train.publish import write_trained_card
from dspark_mlx.train.start import target_name

SNAPSHOT = Path("models--owner--name/snapshots/0123456789abcdef")


@pytest.mark.parametrize("model", ["owner/name", "owner/name@main", "owner/name/FILE.gguf"])
def test_a_target_of_the_hub_is_named_by_its_id(model):
    """A model card for the target 0123456789abcdef."""
    assert target_name(model, SNAPSHOT) == "owner/name"


def test_every_other_target_is_named_by_its_folder(tmp_path):
    """A folder of the user's disk, named whole in a public card."""
    assert target_name(str(tmp_path), tmp_path) == tmp_path.name
    assert target_name(None, tmp_path / "built-in") == "built-in"


@pytest.mark.parametrize("builtin", [True, False])
def test_a_card_runs_the_target_that_was_trained_for(tmp_path, builtin):
    """The unquantized target of the Hub for a drafter of the built-in one; an index that has no
    such package."""
    config = read_config(read_json(DRAFTER / "config.json"), DRAFTER)
    assert isinstance(config, DSparkConfig)
    write_trained_card(tmp_path, {"steps": 9}, config, builtin)
    text = (tmp_path / "README.md").read_text()
    assert f"--model {config.target} " in text or builtin
    assert ("--model" in text) != builtin and ("built in" in text) == builtin
    assert "pip install dspark" not in text
