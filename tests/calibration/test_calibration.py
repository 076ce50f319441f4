"""Sequential temperature scaling: fit, measures, file and command, on synthetic rounds."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.pairs import TARGET, golden

from dspark_mlx import calibrate
from dspark_mlx.calibration.by_temperature import (
    FILE,
    Calibrations,
    read_calibrations,
    write_calibrations,
)
from dspark_mlx.calibration.metrics import auc, ece
from dspark_mlx.calibration.report import report_table, slot_reports
from dspark_mlx.calibration.sts import FLAT, GRID, Calibration, fit, identity
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.errors import InputError
from dspark_mlx.replay.recorded import RecordedRound, read_rounds, write_rounds

DISTORTION = (2.5, 0.5, 1.8, 0.6)


def rounds(n: int, seed: int, distortion=DISTORTION) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds multiplied by known factors, and what happens by the undistorted ones."""
    generator = np.random.default_rng(seed)
    # Slots of a block resemble each other, as a real drafter's do.
    shared = generator.normal(1.5, 1.2, (n, 1))
    logits = shared + generator.normal(0.0, 1.0, (n, len(distortion)))
    survives = generator.random(logits.shape) < 1 / (1 + np.exp(-logits))
    return logits * distortion, np.cumprod(survives, axis=1).sum(axis=1)


def test_known_distortion_is_undone():
    """Temperatures on the wrong side of the fraction, fitted to the slot alone instead of to the
    survival, or fitted to the noise of the rounds at hand."""
    calibration = fit(*rounds(20000, seed=0))
    assert np.allclose(np.log(calibration.temperatures), np.log(DISTORTION), atol=0.25)
    rows = slot_reports(*rounds(20000, seed=1), calibration)
    before = np.mean([row.ece_before for row in rows])
    after = np.mean([row.ece_after for row in rows])
    assert after < before / 2
    for row in rows:
        assert row.ece_after < row.ece_before
        assert row.auc_after == pytest.approx(row.auc_before, abs=0.02)
        assert row.predicted_after == pytest.approx(row.observed, abs=0.02)
    assert rows[0].auc_after == pytest.approx(rows[0].auc_before, abs=1e-12)


def test_calibrated_confidences_are_left_alone():
    """A flat minimum decided by noise."""
    calibration = fit(*rounds(5000, seed=2, distortion=(1.0,) * 4))
    assert np.allclose(calibration.temperatures, 1.0, rtol=0.15)


def test_flat_minima_give_the_temperature_nearest_to_one():
    """Any other of many equal minima: here every temperature gives the same survival."""
    logits = np.zeros((300, 3))
    accepted = np.random.default_rng(0).integers(0, 4, 300)
    assert fit(logits, accepted).temperatures == (1.0, 1.0, 1.0)
    assert 1.0 in GRID and GRID[0] == pytest.approx(0.2) and GRID[-1] == pytest.approx(5.0)


def test_nearly_equal_minima_count_as_equal():
    """The least of errors that differ by less than the rounds at hand can tell."""
    logits, accepted = rounds(500, seed=17, distortion=(1.0,))
    errors = [ece(1 / (1 + np.exp(-logits[:, 0] / t)), accepted) for t in GRID]
    near = GRID[np.array(errors) <= min(errors) + FLAT / math.sqrt(500)]
    nearest = min(near, key=lambda t: abs(math.log(t)))
    assert fit(logits, accepted).temperatures == (pytest.approx(nearest),)
    assert nearest != GRID[np.argmin(errors)]


def test_fit_goes_from_left_to_right():
    """A slot's temperature that depends on a later slot."""
    logits, accepted = rounds(3000, seed=3)
    whole = fit(logits, accepted)
    part = fit(logits[:, :2], np.minimum(accepted, 2))
    assert part.temperatures == whole.temperatures[:2]


def test_priors_are_those_of_the_calibrated_confidences():
    """Means of the raw confidences; a slope regressed the other way round or not pooled."""
    logits, accepted = rounds(2000, seed=4)
    calibration = fit(logits, accepted)
    confidence = 1 / (1 + np.exp(-logits / np.array(calibration.temperatures)))
    assert np.allclose(calibration.probabilities(logits), confidence)
    assert np.allclose(calibration.survival(logits), np.cumprod(confidence, axis=1))
    assert np.allclose(calibration.means, confidence.mean(axis=0))
    deviation = confidence - confidence.mean(axis=0)
    slope = np.polyfit(deviation[:, :-1].ravel(), deviation[:, 1:].ravel(), 1)[0]
    assert calibration.persistence == pytest.approx(slope, abs=1e-3)
    assert calibration.rounds == 2000 and calibration.gamma == 4
    opposed = np.array([[2.0, -2.0], [-2.0, 2.0]] * 10)
    assert fit(opposed, [0, 2] * 10).persistence == 0.0
    assert fit(np.zeros((5, 1)), [0, 1, 1, 0, 1]).persistence == 0.0


def test_identity_is_the_plain_sigmoid():
    """A default that changes confidences."""
    logits = np.array([[-800.0, 0.0, 800.0], [1.0, -2.0, 3.0]])
    with np.errstate(over="ignore"):
        assert np.allclose(identity(3).probabilities(logits), 1 / (1 + np.exp(-logits)))
    assert identity(3).rounds == 0


def test_chances_count_as_so_many_outcomes():
    """A fit or a report of sampled rounds that rounds their odds, or an order judged by them."""
    logits, accepted = rounds(1500, seed=9)
    counted = (accepted[:, None] > np.arange(4)).astype(float)
    assert fit(logits, counted) == fit(logits, accepted)
    assert slot_reports(logits, counted, identity(4)) == slot_reports(logits, accepted, identity(4))
    # Three rounds alike, one of which survives, are one of chance a third.
    thrice = np.tile([[2.0], [-1.0]], (3, 1))
    outcomes = [[1.0], [0.0], [1.0], [0.0], [0.0], [1.0]]
    alike = slot_reports(thrice, outcomes, identity(1))[0]
    known = slot_reports([[2.0], [-1.0]], [[2 / 3], [1 / 3]], identity(1))[0]
    assert known.observed == pytest.approx(alike.observed)
    assert known.auc_before == pytest.approx(alike.auc_before)
    assert known.ece_before == pytest.approx(alike.ece_before)


def test_ece_is_the_definition():
    """Bins that lose 0 or 1, an unweighted mean, squared differences."""
    generator = np.random.default_rng(5)
    predicted = np.concatenate([generator.random(200), [0.0, 1.0, 0.5]])
    label = generator.random(203) < predicted**2
    for bins in (10, 15):
        total = 0.0
        for b in range(bins):
            last = b == bins - 1
            inside = [b / bins <= p < (b + 1) / bins or (last and p == 1) for p in predicted]
            if any(inside):
                gap = abs(predicted[inside].mean() - label[inside].mean())
                total += gap * sum(inside) / len(predicted)
        assert ece(predicted, label, bins) == pytest.approx(total)
    assert ece([0.0, 1.0], [0, 1]) == 0.0
    assert ece([0.25, 0.25, 0.25, 0.25], [0, 0, 0, 1]) == 0.0
    assert ece([1.0, 0.0], [0, 1]) == 1.0
    assert ece([1.0, 0.95], [0, 1]) == pytest.approx(0.475)


def test_auc_is_the_chance_of_a_right_order():
    """Ties that count whole or not at all; an error where one class is missing."""
    generator = np.random.default_rng(6)
    predicted = generator.integers(0, 8, 120) / 8
    label = generator.random(120) < 0.2 + 0.6 * predicted
    wins = [
        1.0 if p > q else 0.5 if p == q else 0.0
        for p in predicted[label]
        for q in predicted[~label]
    ]
    assert auc(predicted, label) == pytest.approx(np.mean(wins))
    assert auc([0.1, 0.9], [0, 1]) == 1.0 and auc([0.5, 0.5], [0, 1]) == 0.5
    assert math.isnan(auc([0.1, 0.9], [1, 1]))


def test_the_report_is_of_survival():
    """Observed rates given the prefix, or predictions of the slot alone; a table with a slot
    missing."""
    logits, accepted = rounds(500, seed=7)
    calibration = Calibration((2.0,) * 4, 500, (0.5,) * 4, 0.0, ((0.5,) * 4,))
    rows = slot_reports(logits, accepted, calibration)
    raw = np.cumprod(1 / (1 + np.exp(-logits)), axis=1)
    for k, row in enumerate(rows):
        assert row.slot == k + 1 and row.observed == np.mean(accepted > k)
        assert row.predicted_before == pytest.approx(raw[:, k].mean())
        assert row.ece_before == pytest.approx(ece(raw[:, k], accepted > k))
        assert row.predicted_after == pytest.approx(calibration.survival(logits)[:, k].mean())
    lines = report_table(rows).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["slot", "1", "2", "3", "4", "mean"]
    assert float(lines[-1].split()[1]) == pytest.approx(
        np.mean([r.ece_before for r in rows]), abs=1e-3
    )
    # Of labels that are all the same there is no AUC; other tables write "-" for such a number.
    same = report_table(slot_reports(logits, np.zeros_like(accepted), calibration))
    assert "nan" not in same and same.splitlines()[-1].split()[3:5] == ["-", "-"]


@pytest.mark.parametrize(
    ("logits", "accepted", "named"),
    [
        ([[0.0, math.nan]], [0], "nan in slot 2 of round 0"),
        ([[0.0], [math.inf]], [0, 0], "inf in slot 1 of round 1"),
        ([0.0, 1.0], [0, 1], r"shape \[2\]"),
        (np.zeros((0, 3)), [], r"shape \[0, 3\]"),
        ([[0.0, 0.0]], [3], "counts from 0 to 2"),
        ([[0.0, 0.0]], [-1], "counts from 0 to 2"),
        ([[0.0, 0.0]], [0.5], "integers"),
        ([[0.0, 0.0]], [0, 1], r"shape \[1\]"),
        ([[0.0, 0.0]], [[0.5]], r"shape \[1, 2\]"),
        ([[0.0, 0.0]], [[0.5, 1.5]], "from 0 to 1"),
        ([[0.0, 0.0]], [[0.5, math.nan]], "from 0 to 1"),
    ],
)
def test_unusable_rounds_are_refused(logits, accepted, named):
    """A fit on numbers that mean nothing."""
    with pytest.raises(InputError, match=named):
        fit(logits, accepted)


def test_another_block_length_is_refused():
    """Temperatures broadcast over blocks of another drafter."""
    with pytest.raises(InputError, match=r"expected \[rounds, 4\]"):
        identity(4).probabilities(np.zeros((2, 3)))


def test_the_file_keeps_every_value(tmp_path):
    """Rounded temperatures; a missing file taken for an error."""
    assert read_calibrations(tmp_path, 4) is None
    calibrations = Calibrations({0.0: fit(*rounds(400, seed=8)), 0.7: fit(*rounds(400, seed=9))})
    assert write_calibrations(tmp_path, calibrations) == tmp_path / FILE
    assert read_calibrations(tmp_path, 4) == calibrations
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_file_of_one_greedy_fit_is_still_read(tmp_path):
    """A drafter calibrated before temperatures had fits of their own, refused."""
    fitted = fit(*rounds(300, seed=8))
    data = {"format": "dspark_mlx.calibration", "format_version": 1, **dataclasses.asdict(fitted)}
    (tmp_path / FILE).write_text(json.dumps(data))
    old = read_calibrations(tmp_path, 4)
    assert old == Calibrations({0.0: fitted})
    assert old is not None and old.at(0.7) == fitted


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "other"}, "format"),
        ({"format_version": 3}, "format"),
        ({"extra": 1}, "extra"),
        ({"fits": []}, "a list of them"),
        ({"fits": {}}, "a list of them"),
        ({"fits": [1]}, "an object"),
    ],
)
def test_a_foreign_file_is_refused_by_name(tmp_path, change, named):
    """Whatever a later version or another program wrote, taken for fits."""
    path = write_calibrations(tmp_path, Calibrations({0.0: identity(3)}))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=named) as refused:
        read_calibrations(tmp_path, 3)
    assert refused.value.where == str(path)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"extra": 1}, "extra"),
        ({"temperatures": [1.0, 1.0]}, "3 finite numbers"),
        ({"temperatures": [1.0, 1.0, 0.0]}, "above 0"),
        ({"temperatures": [1.0, 1.0, math.nan]}, "finite"),
        ({"temperatures": [1.0, 1.0, True]}, "finite"),
        ({"temperatures": 1.0}, "finite"),
        ({"means": [0.5, 0.5, 1.5]}, "from 0 to 1"),
        ({"means": [0.5]}, "3 finite numbers"),
        ({"persistence": -0.1}, "from 0 to 1"),
        ({"persistence": "1"}, "1 finite numbers"),
        ({"typical": []}, "typical"),
        ({"typical": [[0.5, 0.5]]}, "3 finite numbers"),
        ({"rounds": -1}, "rounds"),
        ({"rounds": 1.0}, "rounds"),
    ],
)
def test_a_damaged_fit_is_refused_by_name(tmp_path, version, change, named):
    """Confidences scaled by whatever a hand-edited or foreign file holds."""
    path = write_calibrations(tmp_path, Calibrations({0.7: identity(3), 1.0: identity(3)}))
    data = json.loads(path.read_text())
    data["fits"][1] |= change
    if version == 1:
        fitted = data.pop("fits")[1]
        del fitted["sampling_temperature"]
        data |= fitted | {"format_version": 1}
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=named) as refused:
        read_calibrations(tmp_path, 3)
    assert refused.value.where == str(path)


@pytest.mark.parametrize(
    ("temperature", "named"),
    [(-0.5, "0 or more"), ("hot", "finite"), (None, "finite"), (0.7, "twice")],
)
def test_a_damaged_temperature_is_refused_by_name(tmp_path, temperature, named):
    """One of two fits of a temperature chosen, or a request's place among words."""
    path = write_calibrations(tmp_path, Calibrations({0.7: identity(3), 1.0: identity(3)}))
    data = json.loads(path.read_text())
    data["fits"][1]["sampling_temperature"] = temperature
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=named):
        read_calibrations(tmp_path, 3)


def test_a_request_gets_what_lies_between():
    """The greedy prior for a request at 0.7; the wrong neighbour; a temperature beyond all fits
    that finds nothing."""

    def fitted(value: float, blocks: int = 2) -> Calibration:
        return Calibration((1 + value,) * 2, 100, (value,) * 2, value, ((value,) * 2,) * blocks)

    many = Calibrations({1.0: fitted(0.2), 0.0: fitted(0.8), 0.5: fitted(0.6)})
    for temperature, value in ((0.0, 0.8), (0.25, 0.7), (0.5, 0.6), (0.875, 0.3), (1.0, 0.2)):
        found, expected = many.at(temperature), fitted(value)
        for field in ("temperatures", "means"):
            assert getattr(found, field) == pytest.approx(getattr(expected, field))
        assert found.typical[1] == pytest.approx(expected.typical[1])
        assert found.persistence == pytest.approx(value)
    assert many.at(3.0) == fitted(0.2) and many.gamma == 2
    alone = Calibrations({0.7: fitted(0.5)})
    assert alone.at(0.0) == alone.at(0.7) == alone.at(2.0) == fitted(0.5)
    # Blocks that have no like are those of the nearer fit.
    unlike = Calibrations({0.0: fitted(0.8), 1.0: fitted(0.2, blocks=3)})
    assert unlike.at(0.4).typical == fitted(0.8).typical
    assert unlike.at(0.6).typical == fitted(0.2, blocks=3).typical


def recorded(n: int, seed: int = 0) -> list[RecordedRound]:
    """Synthetic rounds as a recording holds them."""
    pairs = zip(*rounds(n, seed), strict=True)
    return [RecordedRound(0, "t", i, tuple(z.tolist()), int(a)) for i, (z, a) in enumerate(pairs)]


@pytest.fixture
def files(tmp_path):
    """Recorded rounds to fit on, others to judge on, and an empty folder."""
    write_rounds(tmp_path / "fit.jsonl", recorded(600))
    write_rounds(tmp_path / "judge.jsonl", recorded(300, seed=1))
    (tmp_path / "to").mkdir()
    return tmp_path


def test_the_command_fits_recorded_rounds(files, capsys):
    """A command that needs a model for what is recorded, stores another fit than it reports, or
    prints what is no JSON."""
    flags = ["--rounds", str(files / "fit.jsonl"), "--held-out-rounds", str(files / "judge.jsonl")]
    flags += ["--to", str(files / "to" / "new")]  # made, as train's and convert's is
    assert calibrate.main([*flags, "--dry-run"]) == 0
    assert "300 rounds, held out" in capsys.readouterr().out
    assert list((files / "to").iterdir()) == []
    assert calibrate.main([*flags, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    stored = read_calibrations(files / "to" / "new", 4)
    (fitted,) = printed["fits"]
    assert stored is not None and list(stored.at(0.0).temperatures) == fitted["temperatures"]
    assert printed["stored"] == str(files / "to" / "new" / FILE) and fitted["rounds"] == 600
    assert {name: len(slots) for name, slots in fitted["slots"].items()} == {
        "fitted": 4,
        "held out": 4,
    }


def test_the_fit_is_stored_beside_the_drafter(files):
    """A fit that its own drafter never finds, or a drafter folder that no longer loads with it;
    temperatures stored for blocks of another length."""
    drafter = files / "drafter"
    gamma = convert_drafter(golden("vanilla"), drafter, progress=False).gamma
    logits, accepted = rounds(300, 0, distortion=(1.0,) * gamma)
    made = [
        RecordedRound(0, "t", 0, tuple(z), int(a)) for z, a in zip(logits, accepted, strict=True)
    ]
    write_rounds(files / "own.jsonl", made)
    flags = ["--model", str(TARGET), "--drafter", str(drafter), "--rounds"]
    for _ in range(2):
        assert calibrate.main([*flags, str(files / "own.jsonl")]) == 0
    assert read_calibrations(drafter, gamma) == Calibrations({0.0: fit(logits, accepted)})
    with pytest.raises(InputError, match=f"blocks of 4 tokens; expected {gamma}"):
        calibrate.main([*flags, str(files / "fit.jsonl")])


def test_a_drafter_without_confidence_is_refused(files):
    """A crash after minutes of recording."""
    drafter = files / "drafter"
    convert_drafter(golden("dflash"), drafter, progress=False)
    (files / "prompts.jsonl").write_text('{"task": "t", "prompt": "p"}\n')
    flags = ["--prompts", str(files / "prompts.jsonl"), "--max-tokens", "200"]
    with pytest.raises(InputError, match="without a confidence head") as refused:
        calibrate.main(["--model", str(TARGET), "--drafter", str(drafter), *flags])
    assert refused.value.where == str(drafter)


def test_the_command_draws_the_diagram(files):
    """A plot of another survival than the report's, or one that fails after the fit."""
    pytest.importorskip("matplotlib")
    flags = ["--rounds", str(files / "fit.jsonl"), "--to", str(files / "to")]
    assert calibrate.main([*flags, "--plot", str(files / "plot.png")]) == 0
    assert (files / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--no-drafter"], "--no-drafter"),
        (["--scheduler", "full"], "--scheduler"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--temp", "0.7"], "--temp"),
        (["--record", "rounds.jsonl"], "--record"),
        (["--to", "{file}"], "--to"),
        (["--to", "{file}/in/it"], "--to"),
        (["--plot", "plot.gif"], "plot.gif"),
    ],
)
def test_unusable_flags_are_refused_first(files, flags, named):
    """Minutes of recording before a typing error shows."""
    flags = [flag.format(file=files / "fit.jsonl") for flag in flags]
    with pytest.raises(InputError) as refused:
        calibrate.main(["--rounds", str(files / "fit.jsonl"), "--to", str(files / "to"), *flags])
    assert refused.value.where == named
    assert list((files / "to").iterdir()) == []


def test_too_few_rounds_are_refused(files):
    """Temperatures of noise, stored."""
    write_rounds(files / "few.jsonl", recorded(calibrate.MIN_ROUNDS - 1))
    with pytest.raises(InputError, match="199 rounds; expected 200 or more"):
        calibrate.main(["--rounds", str(files / "few.jsonl"), "--to", str(files / "to")])
    (files / "prompts.jsonl").write_text('{"task": "t", "prompt": "p"}\n')
    with pytest.raises(InputError, match="128 rounds; expected 200 or more"):
        calibrate.main(["--prompts", str(files / "prompts.jsonl"), "--to", str(files / "to")])
    assert list((files / "to").iterdir()) == []


def test_recorded_rounds_are_kept_where_they_are_too_few(files, monkeypatch):
    """Minutes of recording lost because a few rounds were missing."""
    few = recorded(calibrate.MIN_ROUNDS - 1)
    monkeypatch.setattr(calibrate, "_load", lambda args: SimpleNamespace(drafter_folder=files))
    monkeypatch.setattr(calibrate, "_check_slots", lambda rounds, decoder: None)
    monkeypatch.setattr(calibrate, "_record", lambda *arguments: few)
    (files / "prompts.jsonl").write_text('{"task": "t", "prompt": "p"}\n' * 9)
    flags = ["--prompts", str(files / "prompts.jsonl"), "--temp", "0"]
    with pytest.raises(InputError, match="199 rounds; expected 200 or more"):
        calibrate.main([*flags, "--record", str(files / "kept.jsonl")])
    assert read_rounds(files / "kept.jsonl") == few


def test_held_out_rounds_of_another_drafter_are_refused(files):
    """A fit judged on blocks of another length."""
    shorter = [
        dataclasses.replace(r, confidence_logits=(0.0, 1.0), accepted=1) for r in recorded(9)
    ]
    write_rounds(files / "other.jsonl", shorter)
    flags = ["--rounds", str(files / "fit.jsonl"), "--to", str(files / "to")]
    with pytest.raises(InputError, match=r"expected \[rounds, 4\]"):
        calibrate.main([*flags, "--held-out-rounds", str(files / "other.jsonl")])
    assert list((files / "to").iterdir()) == []
