"""What a new drafter says of its target."""

from __future__ import annotations

from pathlib import Path

import pytest

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
