"""`convert check`: the readings it tries, what it says of them, and a pair tampered with."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers.pairs import TARGET, golden

from dspark_mlx.calibration.by_temperature import Calibrations, write_calibrations
from dspark_mlx.calibration.sts import identity
from dspark_mlx.convert import __main__ as command
from dspark_mlx.convert.check import (
    Reading,
    all_taps,
    readings,
    sweep,
    verdict,
    written,
)
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.errors import InputError
from dspark_mlx.load import load_unpaired
from dspark_mlx.pairs.builtin import DRAFTER, builtin_target
from dspark_mlx.replay.record import record
from dspark_mlx.system.files import read_json


def reading(shift, start, interleaved, counts=()) -> Reading:
    fields = (("logits_start", start), ("rope_interleaved", interleaved))
    return Reading(shift, fields, tuple(tuple(text) for text in counts))


PROMPTS = [[5, 9, 40, 7, 3], [80, 2, 11]]


@pytest.fixture
def pair(tmp_path):
    """A golden target and drafter, apart."""
    folder = tmp_path / "drafter"
    convert_drafter(golden("vanilla"), folder, progress=False)
    decoder, config, build = load_unpaired(TARGET, folder, all_taps, "float32")
    yield decoder, config, build
    decoder.engine.target.close()


def test_every_reading_is_tried_once_and_its_own_first(pair):
    _, config, _ = pair
    tried = readings(config)
    assert len(tried) == len(set(tried)) == 12
    assert tried[0] == reading(0, config.logits_start, config.rope_interleaved)


def test_its_own_reading_accepts_what_the_loop_does(pair):
    """Features of another position, or of another layer where nothing is shifted."""
    decoder, config, build = pair
    target = decoder.engine.target
    assert set(config.taps) < set(all_taps(config, target.num_layers))
    texts = [(prompt, written(target, prompt, 24, frozenset())) for prompt in PROMPTS]
    found = sweep(target, config, build, texts)
    assert len(found) == 12
    target.close()
    other = load_unpaired(TARGET, golden("vanilla"), lambda config, layers: config.taps, "float32")
    engine = dataclasses.replace(other[0].engine, drafter=other[2](other[1]))
    rounds = record(engine, [("", prompt) for prompt in PROMPTS], 24 - config.gamma, ())
    expected = sum(one.accepted for one in rounds) / len(rounds)
    assert found[0].accepted == pytest.approx(expected)
    engine.target.close()


def test_a_calibrated_drafter_is_checked(tmp_path):
    """Readings with a shorter block that take the calibration of the longer one."""
    folder = tmp_path / "drafter"
    config = convert_drafter(golden("vanilla"), folder, progress=False)
    write_calibrations(folder, Calibrations({0.0: identity(config.gamma)}))
    decoder, config, build = load_unpaired(TARGET, folder, all_taps, "float32")
    target = decoder.engine.target
    texts = [(PROMPTS[0], written(target, PROMPTS[0], 16, frozenset()))]
    found = sweep(target, config, build, texts)
    target.close()
    assert len(found) == 12 and {len(reading.counts) for reading in found} == {1}


def test_a_wrong_block_is_tried_though_calibrated(tmp_path):
    """A calibration of the right block, for which the wrong configuration is not even tried."""
    folder = tmp_path / "drafter"
    config = convert_drafter(golden("vanilla"), folder, progress=False)
    write_calibrations(folder, Calibrations({0.0: identity(config.gamma)}))
    wrong = read_json(folder / "config.json") | {"logits_start": 1 - config.logits_start}
    (folder / "config.json").write_text(json.dumps(wrong))
    decoder, read, _ = load_unpaired(TARGET, folder, all_taps, "float32")
    decoder.engine.target.close()
    assert read.gamma != config.gamma


def texts(mean, spread=0.0, number=8, seed=1):
    """Counts of 20 blocks a text around `mean`, and each text's own distance from it."""
    rng = np.random.default_rng(seed)
    means = mean + spread * rng.standard_normal(number)
    return [np.round(m + 0.5 * rng.standard_normal(20), 3) for m in means]


OWN = reading(0, 0, False, texts(2.0))


@pytest.mark.parametrize(
    "found, fits, words",
    [
        ([OWN, reading(0, 1, False, texts(0.5))], True, "fits"),
        ([OWN, reading(0, 1, False, texts(3.0))], False, "Wrong in config.json: logits_start."),
        ([OWN, reading(-1, 0, True, texts(3.0))], False, "taps, rope_interleaved."),
        # Without the anchor's row a block is shorter, and fits into a text once more.
        ([OWN, reading(0, 1, False, [[*c, 3] for c in texts(3.0)])], False, "logits_start."),
        # A twentieth more on every text is clear; on a few texts only, it is noise.
        ([OWN, reading(-1, 0, False, texts(2.12))], False, "taps."),
        ([OWN, reading(-1, 0, False, texts(2.12, spread=0.3))], True, "fits"),
        # Little is no reason to doubt a configuration, however sure it is.
        ([OWN, reading(-1, 0, False, [c + 0.02 for c in texts(2.0)])], True, "fits"),
        (
            [
                reading(0, 0, False, texts(2.0, number=2)),
                reading(-1, 0, False, texts(2.12, number=2)),
            ],
            True,
            "fits",
        ),
        ([reading(0, 0, False, [[0]]), reading(0, 1, False, [[0]])], False, "another target"),
    ],
)
def test_the_verdict_names_what_is_wrong(found, fits, words):
    said = verdict(found)
    assert said[0] is fits and words in said[1]


def test_texts_shorter_than_a_block_are_refused(tmp_path):
    with pytest.raises(InputError, match="--max-tokens: found 3"):
        command.main(["check", str(golden("vanilla")), "--target", str(TARGET), "-m", "3"])


@pytest.fixture(scope="module")
def builtin_folder() -> str:
    """Its folder in the user's own cache."""
    return str(builtin_target())


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, wrong",
    [
        ({}, None),
        ({"logits_start": 1}, "logits_start"),
        ({"rope_interleaved": True}, "rope_interleaved"),
    ],
    ids=["as it is", "anchor", "rope"],
)
def test_a_tampered_drafter_is_told(tmp_path, capsys, builtin_folder, change, wrong):
    """The built-in pair: a sweep that does not find the one convention that was changed.

    Not taps off by one: this drafter accepts nearly as much of neighbouring layers' features (3.56
    instead of 3.70 tokens a block, a standard error of 0.17), which few texts cannot tell.
    """
    folder = tmp_path / "drafter"
    shutil.copytree(DRAFTER, folder)
    assert (folder / "calibration.json").exists()
    config = read_json(folder / "config.json") | change
    (folder / "config.json").write_text(json.dumps(config))
    status = command.main(["check", str(folder), "--target", builtin_folder, "-m", "32"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert status == (0 if wrong is None else 1)
    assert last.endswith(f"Wrong in config.json: {wrong}.") if wrong else "fits" in last
