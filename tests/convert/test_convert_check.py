"""`convert check`: the readings it tries, what it says of them, and pairs with planted faults."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import shutil
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.pairs import TARGET, golden
from helpers.slow_cases import some_slow
from helpers.toys import example_config, toy_target, toy_tensors

from dspark_mlx.calibration.by_temperature import Calibrations, write_calibrations
from dspark_mlx.calibration.sts import identity
from dspark_mlx.checkpoint.base_config import DRAFT_IDS
from dspark_mlx.convert import __main__ as command
from dspark_mlx.convert.check import Measured, all_taps, sweep, verdict, written
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.convert.readings import Reading, longest_block, neighbours, own_reading
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.errors import InputError
from dspark_mlx.load import load_unpaired
from dspark_mlx.pairs.builtin import DRAFTER, builtin_target
from dspark_mlx.replay.record import forced_drafts, record, text_features
from dspark_mlx.system.files import DATA, read_json

VOCABULARY = 24
PROMPTS = [[5, 9, 40, 7, 3], [80, 2, 11]]


@pytest.fixture
def pair(tmp_path):
    """A golden target and drafter, apart."""
    folder = tmp_path / "drafter"
    convert_drafter(golden("vanilla"), folder, progress=False)
    decoder, config, build = load_unpaired(TARGET, folder, all_taps, "float32")
    yield decoder, config, lambda reading: build(reading.of(config), reading.changed)
    decoder.engine.target.close()


def test_a_reading_and_those_next_to_it(pair):
    """A convention that is never tried, or one that is tried twice."""
    _, config, _ = pair
    own = own_reading(config)
    assert own == Reading(0, (("logits_start", 0), ("rope_interleaved", False)), (("norms", 0),))
    tried = list(neighbours(config, own, config.target_num_layers))
    assert len(tried) == len(set(tried)) == 6 and own not in tried
    unlike = sorted(name for one in tried for name in one.unlike(own))
    assert unlike == ["logits_start", "norms", "norms", "rope_interleaved", "taps", "taps"]
    assert longest_block(config) == config.block_size
    first = dataclasses.replace(config, taps=(-1,))
    assert -1 not in {one.shift for one in neighbours(first, own, 6)}


def test_its_own_reading_accepts_what_the_loop_does(pair):
    """Features of another position, or of another layer where nothing is shifted; slots that are
    counted as right after wrong ones."""
    decoder, config, build = pair
    target = decoder.engine.target
    assert set(config.taps) < set(all_taps(config, target.num_layers))
    texts = [(prompt, written(target, prompt, 24, frozenset())) for prompt in PROMPTS]
    found = sweep(target, config, build, texts)
    assert len({one.reading for one in found}) == len(found) >= 7
    target.close()
    other = load_unpaired(TARGET, golden("vanilla"), lambda config, layers: config.taps, "float32")
    drafter = other[2](other[1], dict)
    engine = dataclasses.replace(other[0].engine, drafter=drafter)
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
    found = sweep(target, config, lambda r: build(r.of(config), r.changed), texts)
    target.close()
    assert len(found) >= 7 and {len(one.counts) for one in found} == {1}


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


def test_forced_slots_follow_the_text():
    """A slot after a token that the drafter would not have chosen, which is drafted after another;
    and a token that it cannot propose."""
    target = toy_target(12)
    config = example_config(target, "dspark", owns_head=True, draft_vocab_size=8)
    ids = mx.array([0, 1, 2, 3, 5, 6, 8, 9], dtype=mx.int32)
    tensors = toy_tensors(config) | {DRAFT_IDS: ids}
    drafter = assemble(config, tensors, target.embed, target.logits, mx.float32, False)
    prompt, text = [1, 5, 2], [3, 6, 4, 8, 2, 9]
    taps = text_features(target, [*prompt, *text])
    logprobs, hits = forced_drafts(drafter, prompt, text, taps)
    assert logprobs.shape == hits.shape == (2, config.gamma)
    assert np.isneginf(logprobs[:, [1, 0]].diagonal()).all() and not hits[0, 1] and not hits[1, 0]
    context = drafter.new_context()
    drafter.extend(context, [tap[:3] for tap in taps], mx.array(prompt))
    rows: list[np.ndarray] = []

    def follow(logits, own, drawn):
        rows.append(np.array(logits)[0])
        column = [5, int(np.argmax(rows[-1]))][len(drawn) > 0]
        return mx.array([column], dtype=mx.int32), None

    drafter.draft(context, mx.array([3], dtype=mx.int32), follow)
    expected = rows[0][5] - np.logaddexp.reduce(rows[0])
    assert logprobs[0, 0] == pytest.approx(expected, abs=1e-5)


FIELDS: dict[str, dict[str, Any]] = {
    "dspark": {"head": "vanilla", "block_size": 2, "taps": (0,)},
    "dflash2": {"selector_top_k": 6, "block_size": 3, "taps": (0,)},
    "eagle3": {"steps": 2, "taps": (0,)},
    "mtp": {"steps": 2},
    "reduced": {"block_size": 2, "taps": (0,), "owns_head": True, "draft_vocab_size": 16},
}
"""Fields of a toy drafter's configuration, by its method; "reduced" is a DSpark drafter's."""


class Planted:
    """A toy pair whose texts come from the drafter itself, under its true configuration.

    The likelihood of what a distribution gave is highest under that distribution: under another
    reading the texts are less likely.
    """

    def __init__(self, kind: str) -> None:
        self.base = toy_target(VOCABULARY)
        method = "dspark" if kind == "reduced" else kind
        self.config = example_config(self.base, method, **FIELDS[kind])
        self.tensors = toy_tensors(self.config)
        rng = np.random.default_rng(3)
        for name, value in self.tensors.items():
            if name.endswith("norm.weight"):
                # Sharp attention and uneven norms, so that a few positions tell readings apart.
                scale = 3.0 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.5
                drawn = scale * rng.uniform(0.1, 1.9, value.shape)
                self.tensors[name] = mx.array(drawn.astype(np.float32))
        if self.config.draft_vocab_size:
            ids = np.sort(rng.choice(VOCABULARY, 16, replace=False)).astype(np.int32)
            self.tensors[DRAFT_IDS] = mx.array(ids)
        # What is fed back shows in later tokens of a block; else a block's first token is clearer.
        chains = self.config.PROPOSES == "chains"
        self.texts = self.written(self.config.gamma if chains else 1)

    def drafter(self, config, tensors):
        target = self.base
        return assemble(config, tensors, target.embed, target.logits, mx.float32, False)

    def written(self, step: int, number: int = 14, length: int = 20):
        """Texts of which each `step` tokens are a block, drawn from the drafter's distribution."""
        true, target = (
            self.drafter(self.config, self.tensors),
            self.base.sharing(self.config.taps, "toy"),
        )
        made = []
        for seed in range(number):
            rng = np.random.default_rng(seed)
            prompt, text = rng.integers(0, VOCABULARY, 4).tolist(), [seed]
            while len(text) < length:
                tokens = [*prompt, *text]
                context = true.new_context()
                features = text_features(target, tokens[:-1])
                true.extend(context, features, mx.array(tokens[:-1], dtype=mx.int32))
                anchor = mx.array(tokens[-1:], dtype=mx.int32)
                text += true.draft(context, anchor, _drawn(rng)).tokens.tolist()[:step]
            made.append((prompt, text))
        return made

    def found(self, change: dict[str, Any]):
        """What readings of a configuration with wrong fields, or with `tensors` changed, make."""
        fields = {name: value for name, value in change.items() if name != "tensors"}
        config = dataclasses.replace(self.config, **fields)
        stored = change.get("tensors", dict)(self.tensors)
        target = self.base.sharing(all_taps(config, self.base.num_layers), "toy")

        def build(reading):
            return self.drafter(reading.of(config), reading.changed(stored))

        return sweep(target, config, build, self.texts)


planted = functools.cache(Planted)


def _drawn(rng):
    def pick(logits, ids, drawn):
        row = np.array(logits)[0].astype(np.float64)
        column = int(np.argmax(row + rng.gumbel(size=row.size)))
        return mx.array([column], dtype=mx.int32), None

    return pick


def _norms(offset):
    return lambda tensors: {
        name: value + offset if name.endswith("norm.weight") else value
        for name, value in tensors.items()
    }


def _ids(times):
    def change(tensors):
        ids = tensors[DRAFT_IDS]
        return {**tensors, DRAFT_IDS: ids + times * mx.arange(ids.size, dtype=ids.dtype)}

    return change


FAULTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "taps +1": ("dspark", "taps", {"taps": (1,)}),
    "taps -1": ("dspark", "taps", {"taps": (-1,)}),
    "anchor's row": ("dspark", "logits_start", {"logits_start": 1}),
    "rotary pairs": ("dspark", "rope_interleaved", {"rope_interleaved": True}),
    "norms - 1": ("dspark", "norms", {"tensors": _norms(-1)}),
    "norms + 1": ("dspark", "norms", {"tensors": _norms(1)}),
    "offsets for ids": ("reduced", "d2t", {"tensors": _ids(-1)}),
    "offsets added twice": ("reduced", "d2t", {"tensors": _ids(1)}),
    "DFlash 2 taps": ("dflash2", "taps", {"taps": (1,)}),
    "DFlash 2 anchor's row": ("dflash2", "logits_start", {"logits_start": 0}),
    "DFlash 2 norms": ("dflash2", "norms", {"tensors": _norms(-1)}),
    "Eagle3 taps": ("eagle3", "taps", {"taps": (-1,)}),
    "Eagle3 rotary pairs": ("eagle3", "rope_interleaved", {"rope_interleaved": True}),
    "MTP taps": ("mtp", "taps", {"taps": (0,)}),
    "MTP order": ("mtp", "order", {"order": "hidden"}),
    "MTP state": ("mtp", "state", {"state": "raw"}),
    "MTP feedback": ("mtp", "feedback", {"feedback": "raw"}),
    "MTP norms": ("mtp", "norms", {"tensors": _norms(-1)}),
}


@pytest.mark.parametrize("fault", some_slow(FAULTS, ("taps +1", "offsets for ids")))
def test_every_planted_fault_is_named(fault):
    """One convention that was changed, and is not found in a few hundred positions."""
    kind, name, change = FAULTS[fault]
    fits, why = verdict(planted(kind).found(change))
    assert not fits and why.endswith(f"Wrong: {name}."), why


@pytest.mark.parametrize("kind", some_slow(FIELDS, ("dspark",)))
def test_what_is_right_is_believed(kind):
    found = planted(kind).found({})
    fits, why = verdict(found)
    assert fits, why
    # What is clearly worse is not read to the last text.
    assert len(found[0].counts) == 14 and {len(one.counts) for one in found} == {8, 14}


def measured(shift, start, interleaved, texts) -> Measured:
    fields = (("logits_start", start), ("rope_interleaved", interleaved))
    logprobs = tuple(np.array(text)[:, None] for text in texts)
    counts = tuple(np.full(len(text), 2) for text in texts)
    return Measured(Reading(shift, fields, ()), logprobs, counts)


def texts(mean, spread=0.0, number=8, seed=1):
    """Log-probabilities of 20 positions a text around `mean`, each text some way from it."""
    rng = np.random.default_rng(seed)
    means = mean + spread * rng.standard_normal(number)
    return [np.round(m + 0.5 * rng.standard_normal(20), 3) for m in means]


OWN = measured(0, 0, False, texts(-2.0))


@pytest.mark.parametrize(
    "found, fits, words",
    [
        ([OWN, measured(0, 1, False, texts(-3.0))], True, "fits"),
        ([OWN, measured(0, 1, False, texts(-1.0))], False, "Wrong: logits_start."),
        ([OWN, measured(-1, 0, True, texts(-1.0))], False, "taps, rope_interleaved."),
        # Without the anchor's row a block is shorter, and fits into a text once more.
        ([OWN, measured(0, 1, False, [[*c, -9] for c in texts(-1.0)])], False, "logits_start."),
        # A little more on every text is clear; on a few texts only, it is noise.
        ([OWN, measured(-1, 0, False, texts(-1.95))], False, "taps."),
        ([OWN, measured(-1, 0, False, texts(-1.95, spread=0.3))], True, "fits"),
        # Next to nothing is no reason to doubt a configuration, however sure it is.
        ([OWN, measured(-1, 0, False, [c + 0.005 for c in texts(-2.0)])], True, "fits"),
        (
            [
                measured(0, 0, False, texts(-2.0, number=2)),
                measured(-1, 0, False, texts(-1.95, number=2)),
            ],
            True,
            "fits",
        ),
    ],
)
def test_the_verdict_names_what_is_wrong(found, fits, words):
    said = verdict(found)
    assert said[0] is fits and words in said[1]


def test_what_makes_no_difference_is_rarely_accused():
    """A limit that fits one comparison, where six readings are compared."""
    own = measured(0, 0, False, [np.full(8, -2.0)] * 32)
    others = list(itertools.product((0, 1), (0, 1), (False, True)))[1:7]
    accused, trials = 0, 100
    for seed in range(trials):
        noise = -2.0 + 0.3 * np.random.default_rng(seed).standard_normal((len(others), 32, 1))
        drawn = np.repeat(noise, 8, axis=2)
        found = [measured(*one, rows) for one, rows in zip(others, drawn, strict=True)]
        accused += not verdict([own, *found])[0]
    assert 0 < accused < trials // 10


def test_a_drafter_of_another_target_is_told():
    nothing = dataclasses.replace(OWN, counts=tuple(np.zeros(20) for _ in OWN.counts))
    fits, why = verdict([nothing])
    assert not fits and "another target" in why


def test_texts_shorter_than_a_block_are_refused(tmp_path):
    with pytest.raises(InputError, match="--max-tokens: found 3"):
        command.main(["check", str(golden("vanilla")), "--target", str(TARGET), "-m", "3"])


# Few texts tell what changes every row; taps a layer off need all of them.
EIGHT = ["--prompts", str(DATA / "bench_prompts.jsonl")]


@pytest.fixture(scope="module")
def builtin_folder() -> str:
    """Its folder in the user's own cache."""
    return str(builtin_target())


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, wrong, flags",
    [
        ({}, None, []),
        ({"logits_start": 1}, "logits_start", EIGHT),
        ({"rope_interleaved": True}, "rope_interleaved", EIGHT),
        ({"taps": [2, 9, 16, 23, 28]}, "taps", []),
        ({"taps": [0, 7, 14, 21, 26]}, "taps", []),
    ],
    ids=["as it is", "anchor", "rope", "taps +1", "taps -1"],
)
def test_a_tampered_drafter_is_told(tmp_path, capsys, builtin_folder, change, wrong, flags):
    """The built-in pair: a sweep that does not find the one convention that was changed."""
    folder = tmp_path / "drafter"
    shutil.copytree(DRAFTER, folder)
    assert (folder / "calibration.json").exists()
    config = read_json(folder / "config.json") | change
    (folder / "config.json").write_text(json.dumps(config))
    status = command.main(["check", str(folder), "--target", builtin_folder, *flags])
    last = capsys.readouterr().out.splitlines()[-1]
    assert status == (0 if wrong is None else 1)
    assert last.endswith(f"Wrong: {wrong}.") if wrong else "fits" in last
