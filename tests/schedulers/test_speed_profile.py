"""Speed profiles by themselves: what a scheduler reads of one, its file, its key, its picture."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
from helpers.hand_made import JAGGED
from helpers.hand_made import jagged_profile as profile
from helpers.pairs import TARGET, golden

from dspark_mlx.calibration.sts import Calibration
from dspark_mlx.checkpoint.fingerprint import fingerprint
from dspark_mlx.errors import InputError
from dspark_mlx.plots.speed import plot
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.schedulers.profile_table import profile_table
from dspark_mlx.schedulers.speed_profile import SpeedProfile, read_profile, write_profile


def test_a_width_that_a_larger_one_undercuts_runs_the_larger_one():
    """Seven rows run at 16.6 ms where eight take 13.9."""
    costs = profile().at(64)
    assert costs.verify == (6.5, 8.0, 9.5, 11.0, 12.5, 13.9, 13.9, 13.9)
    assert costs.rows == (1, 2, 3, 4, 5, 8, 8, 8)
    assert (costs.draft, costs.plain) == (5.0, 6.0)


def test_equally_cheap_widths_run_the_smallest():
    """Rows that are run for nothing."""
    flat = profile(verify=((3.0,) * 8, (3.0,) * 8)).at(64)
    assert flat.rows == tuple(range(1, 9))


@pytest.mark.parametrize(
    ("context", "factor"), [(0, 1), (64, 1), (320, 1.25), (576, 1.5), (1088, 2), (2112, 3)]
)
def test_costs_are_linear_in_the_context(context, factor):
    """Clamped below the first, between two, and beyond the last."""
    costs = profile().at(context)
    assert costs.verify[0] == pytest.approx(factor * 6.5)
    assert costs.draft == pytest.approx(factor * 5)
    assert costs.plain == pytest.approx(factor * 6)


def test_far_contexts_never_get_cheaper():
    """A noisy slope below 0 that makes a forward free at 100 000 tokens."""
    falling = profile(draft=(5.0, 4.0))
    assert falling.at(100_000).draft == 4.0
    assert falling.at(576).draft == pytest.approx(4.5)


def test_one_context_is_enough():
    """A slope of two points where there is one."""
    single = profile(
        contexts=(64,),
        verify=(JAGGED,),
        draft=(5.0,),
        plain=(6.0,),
        batches={},
        verify_spread=((0.0,) * 8,),
    )
    assert single.at(5000).verify[0] == 6.5


def test_contexts_of_one_bucket_share_their_costs():
    """An interpolation in every round."""
    mine = profile()
    assert mine.at(570) is mine.at(580) is not mine.at(640)
    assert mine == profile(), "what is remembered is no part of the profile"


def test_a_profile_comes_back_from_its_file(tmp_path):
    """Batches under string keys, lists for tuples, rounded numbers."""
    mine = profile(plain=(1 / 3, math.pi))
    write_profile(tmp_path / "p.json", mine)
    assert read_profile(tmp_path / "p.json") == mine
    assert [file.name for file in tmp_path.iterdir()] == ["p.json"]


def test_no_folder_to_write_to(tmp_path):
    """A traceback for --export into a folder that is not there."""
    with pytest.raises(InputError, match=r"nowhere/p\.json"):
        write_profile(tmp_path / "nowhere" / "p.json", profile())


EIGHT = [1.0] * 8
REFUSED = {
    "another format": ({"format": "x"}, "x"),
    "another version": ({"format_version": 2}, "2"),
    "unknown key": ({"colour": 1}, "colour"),
    "name": ({"name": 3}, "name"),
    "contexts not ascending": ({"contexts": [64, 64]}, "contexts"),
    "contexts of another type": ({"contexts": [64, True]}, "contexts"),
    "no contexts": ({"contexts": []}, "contexts"),
    "context 0": ({"contexts": [0, 64]}, "contexts"),
    "no verify": ({"verify": None}, "verify"),
    "verify without widths": ({"verify": [[], []]}, "verify"),
    "verify of one context": ({"verify": [EIGHT]}, "verify"),
    "verify ragged": ({"verify": [EIGHT, EIGHT[:7]]}, r"verify\[1\]"),
    "verify NaN": ({"verify": [EIGHT, [math.nan, *EIGHT[1:]]]}, "nan"),
    "verify infinite": ({"verify": [EIGHT, [math.inf, *EIGHT[1:]]]}, "inf"),
    "verify zero": ({"verify": [EIGHT, [0, *EIGHT[1:]]]}, "found 0"),
    "verify text": ({"verify": [EIGHT, ["1", *EIGHT[1:]]]}, "verify"),
    "verify true": ({"verify": [EIGHT, [True, *EIGHT[1:]]]}, "True"),
    "a number beyond floats": ({"draft": [10**400, 1]}, "draft"),
    "draft negative": ({"draft": [1, -1]}, "-1"),
    "draft short": ({"draft": [1]}, "draft"),
    "plain missing one": ({"plain": 3}, "plain"),
    "spread negative": ({"verify_spread": [EIGHT, [-0.1] * 8]}, "verify_spread"),
    "spread of another shape": ({"verify_spread": [EIGHT]}, "verify_spread"),
    "batches a list": ({"batches": []}, "batches"),
    "batch of nobody": ({"batches": {"0": EIGHT}}, "batches"),
    "batch by name": ({"batches": {"two": EIGHT}}, "two"),
    "batch of no width": ({"batches": {"2": []}}, r"batches\[2\]"),
    "batch too wide": ({"batches": {"2": [*EIGHT, 9.0]}}, r"batches\[2\]"),
}


@pytest.mark.parametrize(("changes", "named"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(tmp_path, changes, named):
    """A profile edited by hand, or of another version, that a scheduler reads nonsense from."""
    data = json.loads(json.dumps(profile().to_dict())) | changes
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=named) as caught:
        read_profile(path)
    assert caught.value.where.startswith(str(path))
    assert caught.value.expected


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(SpeedProfile) if f.init])
def test_every_key_is_needed(name):
    """A default that hides a file cut short."""
    data = profile().to_dict()
    del data[name]
    with pytest.raises(InputError, match=f"no {name}"):
        SpeedProfile.from_dict(data, "somewhere")


def test_the_table_shows_every_number():
    """A row or the batches left out; the mark of a width that is never run, or its meaning."""
    text = profile_table(profile())
    for shown in ("target with drafter", "a device", "1088", "16.60*", "33.20*", "13.90", "10.00"):
        assert shown in text
    assert "several requests at context 1088" in text
    assert text.splitlines()[-1].startswith("* run padded")
    assert "several" not in profile_table(profile(batches={}))


def test_a_profile_is_drawn(tmp_path):
    """A plot that only works with a display, or leaves its partial file behind."""
    folder = tmp_path / "plots"
    folder.mkdir()
    plot(profile(), folder / "speed.png")
    assert (folder / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(folder.iterdir())) == 1


@pytest.fixture
def folders(tmp_path):
    """A target and a drafter folder of one's own."""
    target, drafter = tmp_path / "target", tmp_path / "drafter"
    shutil.copytree(TARGET, target)
    shutil.copytree(golden("vanilla"), drafter)
    return target, drafter


def test_equal_content_has_one_key(folders, tmp_path):
    """A key made of paths, so that a moved model is measured again."""
    target, drafter = folders
    key = fingerprint(target, drafter, "float32", 7, 512)
    moved = target.rename(tmp_path / "other name")
    (moved / "model.safetensors").rename(moved / "model-00001-of-00001.safetensors")
    assert fingerprint(moved, drafter, "float32", 7, 512) == key


@pytest.mark.parametrize("which", [0, 1], ids=["target", "drafter"])
def test_one_changed_byte_is_another_key(folders, which):
    """Two fine-tunes of one size that share a profile."""
    key = fingerprint(*folders, "float32", 7, 512)
    path = folders[which] / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert fingerprint(*folders, "float32", 7, 512) != key


def test_every_setting_is_in_the_key(folders):
    """A profile of 4-bit weights, or of another block, used for this one."""
    target, drafter = folders
    keys = {
        fingerprint(target, drafter, "float32", 7, 512),
        fingerprint(target, drafter, "bfloat16", 7, 512),
        fingerprint(target, drafter, "stored", 7, 512),
        fingerprint(target, drafter, "float32", 5, 512),
        fingerprint(target, drafter, "float32", 7, 16384),
        fingerprint(drafter, target, "float32", 7, 512),
        fingerprint(target, drafter, "float32", 7, 512, {"kv_bits": 4}),
        fingerprint(target, drafter, "float32", 7, 512, {"kv_bits": 8}),
        fingerprint(target, drafter, "float32", 7, 512, windows=(64,)),
        fingerprint(target, drafter, "float32", 7, 512, windows=(64, 0)),
    }
    config = json.loads((target / "config.json").read_text())
    quantization = {"quantization": {"bits": 4, "group_size": 32}}
    (target / "config.json").write_text(json.dumps(config | quantization))
    keys.add(fingerprint(target, drafter, "float32", 7, 512))
    assert len(keys) == 11


def test_a_large_file_is_sampled_and_its_header_read_whole(folders):
    """Gigabytes hashed at every start; a change at either end missed."""
    target, drafter = folders
    path = target / "model.safetensors"
    size = 16 * 2**20

    def key(header: bytes = b"{}", first: bytes = b"", last: bytes = b"", cut: int = 0) -> str:
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header + first)
            file.truncate(size - cut)
            file.seek(size - cut - len(last))
            file.write(last)
        return fingerprint(target, drafter, "float32", 7, 512)

    keys = {key(), key(header=b"[]"), key(first=b"1"), key(last=b"1"), key(cut=1)}
    assert len(keys) == 5 and key() in keys


def test_a_large_file_without_a_header_is_refused(folders):
    """A terabyte read because the first eight bytes say so."""
    target, drafter = folders
    with (target / "model.safetensors").open("wb") as file:
        file.write(b"\xff" * 8)
        file.truncate(16 * 2**20)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        fingerprint(target, drafter, "float32", 7, 512)


def test_sampling_costs_are_added_where_they_belong():
    """A sampled request scheduled by a greedy one's costs, which drafts where it does not pay."""
    greedy = profile(sampling=(3.0, 0.5, 0.25))
    sampled = greedy.sampled
    assert sampled.draft == tuple(ms + 3 for ms in greedy.draft)
    assert sampled.plain == tuple(ms + 0.5 for ms in greedy.plain)
    for before, after in zip(greedy.verify, sampled.verify, strict=True):
        assert after == pytest.approx([ms + 0.5 + 0.25 * i for i, ms in enumerate(before)])
    assert profile().sampled == profile()
    sure = Calibration((1.0,) * 7, 100, (0.9,) * 7, 0.0, ((0.9,) * 7,))
    steep = make_scheduler("auto", profile(sampling=(1e3, 0.0, 0.0)), sure)
    assert steep.start(7).park(64, 7) == 0 and steep.start(7, temperature=1.0).park(64, 7) > 0
