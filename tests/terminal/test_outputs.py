"""Outputs of commands: a place that cannot be written is refused before the work is done."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

from dspark_mlx.errors import InputError
from dspark_mlx.replay.recorded import RecordedRound, write_rounds
from dspark_mlx.terminal import flags

NO_PLACE = "/proc/nothing.json"  # refused to the superuser, too
NO_PLOT = "/proc/nothing.png"
OUTPUTS = [
    ("bench", ["--report", NO_PLACE]),
    ("profile", ["--export", NO_PLACE]),
    ("profile", ["--plot", NO_PLOT]),
    ("evaluate", ["--plot", "/proc/nothing"]),
    ("calibrate", ["--prompts", "{prompts}", "--record", NO_PLACE]),
    ("calibrate", ["--prompts", "{prompts}", "--plot", NO_PLOT]),
    ("calibrate", ["--prompts", "{prompts}", "--to", "/proc/nothing"]),
    ("calibrate", ["--rounds", "{rounds}", "--to", "/proc/nothing/at/all"]),
]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that takes no file")
@pytest.mark.parametrize(("name", "given"), OUTPUTS, ids=lambda value: str(value))
def test_a_place_that_takes_no_file_is_refused_first(name, given, tmp_path, monkeypatch):
    """Minutes of measuring or recording whose result is lost."""
    pytest.importorskip("matplotlib")
    prompts, rounds = tmp_path / "prompts.jsonl", tmp_path / "rounds.jsonl"
    prompts.write_text('{"task": "t", "prompt": "p"}\n' * 9)
    write_rounds(rounds, [RecordedRound(0, "t", 9, (0.5,), 1)] * 300)
    monkeypatch.setattr(flags, "load_decoder", lambda *_, **__: pytest.fail("loaded"))
    arguments = [each.format(prompts=prompts, rounds=rounds) for each in given]
    with pytest.raises(InputError, match=r"/proc/nothing"):
        import_module(f"dspark_mlx.{name}").main(arguments)
