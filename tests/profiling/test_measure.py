"""Measuring a tiny pair's speed, and the store: shapes, exact caches, and when it is done anew."""

from __future__ import annotations

import dataclasses
import json

import mlx.core as mx
import pytest
from helpers.families import family
from helpers.hand_made import jagged_profile as profile
from helpers.pairs import TARGET, golden, tokens_of
from helpers.tiny_models import tiny

from dspark_mlx import profile as command
from dspark_mlx.caches import new_caches
from dspark_mlx.decoder import Decoder
from dspark_mlx.engine.state import Engine
from dspark_mlx.errors import InputError
from dspark_mlx.kernels.store import Verdict
from dspark_mlx.load.scheduled import scheduled
from dspark_mlx.profiling import staleness
from dspark_mlx.profiling import store as profile_store
from dspark_mlx.profiling.measure import measure_profile, quick_profile
from dspark_mlx.profiling.pair import Pair
from dspark_mlx.profiling.staleness import difference, why_stale
from dspark_mlx.profiling.store import (
    forget,
    get_profile,
    get_quick_profile,
    import_profile,
    learned_path,
    profile_path,
    read_stored,
    save,
)
from dspark_mlx.profiling.timing import Session, take_turns
from dspark_mlx.schedulers.copies import WIDEST
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.schedulers.speed_profile import SpeedProfile, write_profile
from dspark_mlx.targets.tap import Target

FAST = {"contexts": (8, 24, 40), "repeats": 3}
SLIDING = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 8,
}


@pytest.fixture
def decoder(pair):
    return pair("vanilla")


@pytest.fixture
def tiny_pair(decoder):
    return Pair(decoder.engine, TARGET, golden("vanilla"), "float32", max_length=512)


@pytest.fixture
def quick(monkeypatch, decoder):
    """The store's functions with a measurement that takes no time, and how often it was made."""
    gamma, made = decoder.engine.drafter.config.gamma, []
    row = tuple(1.0 + 0.1 * width for width in range(gamma + 3))
    steady = tuple(0.05 for _ in row)

    def quick_measure(engine, name, key, progress=None, **settings) -> SpeedProfile:
        made.append(key)
        spread = (steady, steady)
        return profile(name=name, key=key, verify=(row, row), batches={}, verify_spread=spread)

    monkeypatch.setattr(profile_store, "measure_profile", quick_measure)
    measured = (row[0], row[gamma], 5.0)
    monkeypatch.setattr(staleness, "spot_check", lambda *args: measured)
    return made


@pytest.mark.parametrize("measure", [quick_profile, measure_profile])
def test_a_plain_step_costs_no_more_than_a_forward_of_one_row(decoder, monkeypatch, measure):
    """One that was disturbed while it was timed: drafts that lose would seem to pay."""
    monkeypatch.setattr(Session, "_plain", lambda session: 9.0)
    found = measure(decoder.engine, "a", "b")
    assert found.plain == tuple(row[0] for row in found.verify)


def test_a_measured_profile_has_every_number(decoder):
    """A context, a width or the batches missing; times of 0."""
    steps = []
    found = measure_profile(
        decoder.engine, "a pair", "k", progress=lambda *s: steps.append(s), **FAST, max_length=512
    )
    widths = decoder.engine.drafter.config.gamma + 3
    assert (found.name, found.key, found.contexts) == ("a pair", "k", (8, 24, 40))
    assert [len(row) for row in found.verify] == [widths] * 3
    assert set(found.batches) == {1, 2, 4}
    assert found.batches[1] == found.verify[1]
    assert SpeedProfile.from_dict(json.loads(json.dumps(found.to_dict())), "here") == found
    assert steps == sorted(steps) and steps[-1] == (12, 12)


def test_batches_are_left_out_where_they_would_take_minutes(decoder, monkeypatch):
    """Five of six minutes on a CPU without a fast BLAS library."""
    monkeypatch.setattr("dspark_mlx.profiling.measure._BATCH_SECONDS", 0.0)
    assert measure_profile(decoder.engine, "a pair", "k", contexts=(8,), repeats=1).batches == {}


def test_a_measurement_ends_with_what_it_has(decoder):
    """Minutes of measuring at a start on a busy machine."""
    found = measure_profile(decoder.engine, "a pair", "k", **FAST, limit=0.0)
    assert found.contexts == (8,) and found.widths == decoder.engine.drafter.config.gamma + 3
    assert found.batches == {} and found.sampling == (0.0, 0.0, 0.0)
    assert found.noise == 1.0, "one pass says nothing of what it is worth"
    assert SpeedProfile.from_dict(json.loads(json.dumps(found.to_dict())), "here") == found


def test_measuring_changes_nothing(decoder):
    """Taps left off or features left behind by the measurement; a random state moved on."""
    before = tokens_of(decoder.rounds([1, 2, 3], 12))
    mx.random.seed(5)
    expected = mx.random.uniform().item()
    mx.random.seed(5)
    measure_profile(decoder.engine, "a pair", "k", contexts=(8,), repeats=1)
    assert mx.random.uniform().item() == expected
    assert decoder.engine.target._tapped.recorded == {}
    assert tokens_of(decoder.rounds([1, 2, 3], 12)) == before


def test_ctrl_c_leaves_nothing_behind(decoder, cache_home):
    """Taps that stay off because the batches were interrupted; half a profile in the store."""

    def interrupt(done, total):
        if done == total:
            raise KeyboardInterrupt

    before = tokens_of(decoder.rounds([1, 2, 3], 12))
    with pytest.raises(KeyboardInterrupt):
        measure_profile(decoder.engine, "a pair", "k", interrupt, contexts=(8,), repeats=1)
    assert tokens_of(decoder.rounds([1, 2, 3], 12)) == before
    assert not cache_home.exists()


def test_contexts_stay_within_the_target(decoder):
    """Positions that the target was not made for; one context measured twice."""
    found = measure_profile(
        decoder.engine, "a pair", "k", contexts=(8, 400, 4000), repeats=1, max_length=64
    )
    assert found.contexts[0] == 8 and len(found.contexts) == 2
    assert found.contexts[1] + found.widths < 64


def test_a_slow_fill_ends_early(decoder):
    """Minutes of prefill before the first number on a slow machine."""
    session = Session(decoder.engine)
    assert session.fill(64, seconds=0.0) == 64
    assert session.fill(512, seconds=0.0) == 64 + 256


def test_recurrent_states_are_committed_while_they_are_timed():
    """A state that every forward writes on, so that times are of a text nobody has."""
    target = Target(family("lfm2"), (), "tiny")
    text = list(range(3, 43))
    session = Session(Engine(target, None, FullScheduler()), text)
    session.fill(20, 1.0)
    session._verify(5)
    assert session.length == 21
    text = text[:21]
    logits, _ = target(mx.array([7]), session._caches)
    fresh = target.model(mx.array([[*text, 7]]), cache=new_caches(target.model, "tiny"))[0, -1]
    assert mx.abs(logits[-1] - fresh).max().item() < 1e-4


@pytest.mark.parametrize("changes", [{}, SLIDING], ids=["full", "sliding"])
def test_forwards_leave_the_context_as_it_was(changes):
    """A context that grows from width to width, or a window that lost rows, and so times of
    another length than the profile says; a rotating cache that all rows were dropped from, which
    cannot take a single row any more."""
    model = tiny("llama", **changes)
    filled = list(range(3, 23))
    session = Session(Engine(Target(model, (), "tiny"), None, FullScheduler()), filled)
    session.fill(20, 1.0)
    points = session.points((1, 2, 5))
    take_turns(points, 2)
    session._plain()
    # Three passes over three widths keep a row each; plain steps, made once more, keep five.
    assert session.length == (20 + 3 * 3 + 4 * 5 if changes else 20)
    if not changes:
        logits = model(mx.array([[7, 8]]), cache=session._caches)[0, -1]
        fresh = model(mx.array([[*filled, 7, 8]]), cache=new_caches(model, "tiny"))[0, -1]
        assert mx.abs(logits - fresh).max().item() < 1e-4


def test_several_requests_cost_only_where_caches_take_them():
    """Batches of a rotating cache, which cannot be rolled back request by request; a cache that no
    layer writes; a network that asks its cache for a number, and raised an error at load."""
    models = (
        (tiny("llama"), 4),
        (tiny("llama", **SLIDING), 0),
        (family("nemotron-nas"), 4),
        (family("gpt_bigcode"), 0),
    )
    for model, count in models:
        engine = Engine(Target(model, (), "tiny"), None, FullScheduler())
        session = Session(engine)
        session.fill(20, 1.0)
        points = session.batches((2, 4), (1, 3))
        assert len(points) == count
        assert all(len(times) == 2 for times in take_turns(points, 2).values())


def test_points_take_turns():
    """A machine that slows down halfway and makes only the large widths look slow."""
    order = []
    points = {("verify", w): lambda w=w: float(order.append(w) or w) for w in (1, 2)}
    assert take_turns(points, 2) == {("verify", 1): [1.0] * 2, ("verify", 2): [2.0] * 2}
    assert order == [1, 2] * 3, "the first pass does not count"


def test_a_pass_that_only_compiled_does_not_count():
    """A GPU's first forwards, seconds of compiling, stored as what a round takes."""
    # The first point was compiled before, as plain steps are while the caches are filled.
    seconds = iter([3.0, 5000.0, 3.0, 1.0])
    points = {("verify", w): lambda: next(seconds) for w in (1, 2)}
    assert take_turns(points, 1, seconds=0.0, least=1) == {
        ("verify", 1): [3.0],
        ("verify", 2): [1.0],
    }


def test_slow_points_end_early():
    """Minutes of measuring on a slow machine: three passes and the first, which does not count."""
    calls, counts = [], []
    points = {("verify", 1): lambda: float(calls.append(1) or 1)}
    take_turns(points, 9, counts.append, seconds=0.0)
    assert len(calls) == 1 + 3 and counts == [1, 2, 3]
    assert take_turns(points, 9, seconds=0.0, least=1) == {("verify", 1): [1.0]}
    assert take_turns(points, 9, until=0.0) == {("verify", 1): [1.0]}, "less than the least"


def test_without_a_drafter_there_is_nothing_to_measure(decoder):
    """An assertion instead of an error that says so."""
    with pytest.raises(InputError, match="no drafter"):
        measure_profile(decoder.plain().engine, "a pair", "k")


def test_a_profile_is_measured_once(tiny_pair, quick):
    """Seconds of measuring at every start."""
    first, second = get_profile(tiny_pair), get_profile(tiny_pair)
    assert (first.measured, second.measured, len(quick)) == (True, False, 1)
    assert first.profile == second.profile and first.stale_reason is second.stale_reason is None
    assert str(profile_path(tiny_pair.key())) in second.message
    assert get_profile(tiny_pair, remeasure=True).measured and len(quick) == 2


def test_a_noisy_measurement_is_said_and_not_kept(tiny_pair, quick, monkeypatch):
    """Another program's burst of work as the truth of every later run."""
    get_profile(tiny_pair)
    kept = read_stored(tiny_pair.key())
    steady = profile_store.measure_profile

    def noisy(*args, **settings):
        calm, busy = kept[0].verify_spread[0], tuple(0.5 for _ in kept[0].verify[0])
        changes = {"draft": (9.0, 9.0), "verify_spread": (calm, busy)}
        return dataclasses.replace(steady(*args, **settings), **changes)

    monkeypatch.setattr(profile_store, "measure_profile", noisy)
    obtained = get_profile(tiny_pair, remeasure=True)
    assert obtained.measured and not obtained.kept and obtained.profile.draft == (9.0, 9.0)
    assert "for this run only" in obtained.message and "50%" in obtained.message
    assert read_stored(tiny_pair.key()) == kept, "the old one is as good as it was"


def test_a_pair_is_measured_quickly_where_it_is_loaded(tiny_pair):
    """A command to run before the default is any good; a measurement at every start."""
    decoder = Decoder(tiny_pair.engine, TARGET, {}, tiny_pair.drafter, "float32")
    made = scheduled(decoder, "auto")
    found, gamma = made.engine.profile, tiny_pair.engine.drafter.config.gamma
    assert found.quick and found.widths in (gamma + 1, WIDEST) and len(found.contexts) == 1
    # A tiny pair's forwards are quick enough, on all but a very busy machine.
    rows = [len(row) for row in found.batches.values()]
    assert rows == ([gamma + 1] if found.widths == WIDEST else [])
    assert read_stored(tiny_pair.key()) == (found, None)
    assert scheduled(decoder, "lagged").engine.profile == found
    # What its rounds teach is kept beside it when a request ends.
    assert not learned_path(tiny_pair.key()).exists()
    list(made.rounds([1, 2, 3], 40, stop_tokens=()))
    assert learned_path(tiny_pair.key()).exists()
    assert forget(tiny_pair) and not learned_path(tiny_pair.key()).exists()


def test_a_quick_profile_gives_way_to_a_full_one(tiny_pair, quick):
    """The command finding the quick profile, and measuring nothing."""
    quickly = get_quick_profile(tiny_pair)
    assert quickly.measured and quickly.profile.quick and not quick
    assert not get_quick_profile(tiny_pair).measured
    full = get_profile(tiny_pair)
    assert full.measured and not full.profile.quick
    assert get_quick_profile(tiny_pair).profile == full.profile


def test_a_stored_profile_too_narrow_for_the_block_is_measured_anew(tiny_pair, quick):
    """A scheduler refused for a profile that nobody asked for."""
    narrow = profile(key=tiny_pair.key(), verify=((1.0, 2.0),) * 2, verify_spread=((0.1,) * 2,) * 2)
    save(dataclasses.replace(narrow, batches={}))
    obtained = get_quick_profile(tiny_pair)
    assert obtained.measured and "2 widths" in obtained.stale_reason


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("not json", "not JSON"),
        (b"\xff\xfe", "not text"),
        ("{}", "format"),
        (json.dumps(profile(key="other").to_dict()), "another pair"),
        (json.dumps(profile().to_dict() | {"draft": []}), "draft"),
    ],
    ids=["no json", "no text", "empty", "foreign", "wrong shape"],
)
def test_a_damaged_or_foreign_file_is_named_and_measured_anew(tiny_pair, quick, content, named):
    """A file cut off by a full disk that ends every command, or that is used."""
    path = profile_path(tiny_pair.key())
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    obtained = get_profile(tiny_pair)
    assert obtained.measured and len(quick) == 1
    assert str(path) in obtained.stale_reason and named in obtained.stale_reason
    assert read_stored(tiny_pair.key()) == (obtained.profile, None), "the file is whole now"


def test_a_folder_that_cannot_be_written_costs_only_the_store(tiny_pair, quick, cache_home):
    """No decoding in a container with a read-only home."""
    cache_home.write_text("a file where the folder should be")
    obtained = get_profile(tiny_pair)
    assert obtained.measured and "not stored" in obtained.message and not obtained.kept


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ((6.5, 13.9, 5.0), None),
        ((6.5, 13.9 * 1.25, 5.0 * 0.8), None),
        ((12.0, 25.0, 9.0), None),
        ((13.2, 28.0, 10.0), "1 row"),
        ((3.2, 7.0, 2.5), "1 row"),
        ((6.5, 13.9 * 1.4, 5.0), "8 rows"),
        ((6.5, 13.9 / 1.4, 5.0), "8 rows"),
        ((6.5, 13.9, 7.0), "draft"),
        ((6.5, 13.9, 3.0), "draft"),
    ],
)
def test_what_counts_as_stale(numbers, named):
    """Another BLAS library, which the key does not hold; noise taken for one."""
    found = difference(profile(), 8, *numbers)
    assert (found is None) == (named is None)
    assert named is None or named in found


def test_one_bad_look_is_not_enough(decoder, monkeypatch):
    """A profile thrown away because of another program's burst of work."""
    looks = [(60.0, 60.0, 60.0), (6.5, 13.9, 5.0)]
    monkeypatch.setattr(staleness, "spot_check", lambda *args: looks.pop(0))
    assert why_stale(profile(), decoder.engine) is None and looks == []


def test_a_stale_profile_is_measured_anew(tiny_pair, quick):
    """Verify lengths chosen by another library's speed."""
    get_profile(tiny_pair)
    old, _ = read_stored(tiny_pair.key())
    save(dataclasses.replace(old, draft=(50.0, 50.0)))
    obtained = get_profile(tiny_pair)
    assert obtained.measured and "a draft costs" in obtained.stale_reason
    assert get_profile(tiny_pair).stale_reason is None


def test_the_spot_check_of_a_real_engine(tiny_pair):
    """A spot check that fails on the profile's own engine; only its sentence is checked, because
    its times are the machine's."""
    narrow = profile(verify=(profile().verify[0][:2],) * 2)
    assert "2 widths" in why_stale(narrow, tiny_pair.engine)
    slow = profile(verify=tuple(tuple(1e6 * ms for ms in row) for row in profile().verify))
    assert "1 row" in why_stale(slow, tiny_pair.engine)


def test_an_imported_profile_becomes_this_pairs(tiny_pair, quick):
    """One that is never found because it kept its key, or that hides what this device measures."""
    wide = tuple(1.0 + 0.1 * width for width in range(12))
    given = profile(key="elsewhere", verify=(wide, wide), verify_spread=(wide, wide), batches={})
    adopted = import_profile(tiny_pair, given, "given.json")
    assert not adopted.measured and adopted.profile.key == tiny_pair.key()
    assert read_stored(tiny_pair.key())[0] == adopted.profile
    with pytest.raises(InputError, match=r"given\.json: found widths 1 to 2"):
        import_profile(
            tiny_pair, dataclasses.replace(given, verify=(wide[:2], wide[:2])), "given.json"
        )


def test_a_measurement_that_is_not_kept_cannot_be_imported(tmp_path, monkeypatch):
    """The numbers of a busy machine, exported there and taken for a profile here."""
    monkeypatch.setattr(command, "_pair", lambda args: pytest.fail("loaded"))
    spread = tuple((0.4,) * len(row) for row in profile().verify)
    write_profile(tmp_path / "p.json", profile(verify_spread=spread))
    with pytest.raises(InputError, match=r"p\.json: found repeats .* differ by 40%.* most 30%"):
        command.main(["--import", str(tmp_path / "p.json")])


def test_the_command_measures_then_finds(tiny_pair, quick, monkeypatch, capsys, tmp_path):
    """Flags that do nothing; a table without what was done."""
    monkeypatch.setattr(command, "_pair", lambda args: tiny_pair)
    picture, export = tmp_path / "p.png", tmp_path / "p.json"
    assert command.main(["--plot", str(picture), "--export", str(export)]) == 0
    shown = capsys.readouterr()
    assert "rows verified" in shown.out and "Measured and stored" in shown.err
    assert picture.exists()
    assert command.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["profile"] == json.loads(export.read_text()) and report["measured"] is False
    assert command.main(["--import", str(export)]) == 0
    assert "Imported" in capsys.readouterr().err
    assert command.main(["--remeasure"]) == 0
    assert len(quick) == 2


def test_the_command_shows_what_was_raced(tiny_pair, quick, monkeypatch, capsys, tmp_path):
    """Races that are known to nobody; an export that cannot be imported because it has them."""
    target = tiny_pair.engine.target
    found = {"8 rows": Verdict("stock", "TypeError: no graph", {}, {})}
    monkeypatch.setattr(target, "compiled_races", found)
    monkeypatch.setattr(command, "_pair", lambda args: tiny_pair)
    export = tmp_path / "p.json"
    assert command.main(["--export", str(export)]) == 0
    assert "8 rows: stock: TypeError: no graph" in capsys.readouterr().out
    assert json.loads(export.read_text())["compiled"]["8 rows"]["winner"] == "stock"
    assert command.main(["--json", "--import", str(export)]) == 0
    assert json.loads(capsys.readouterr().out)["compiled"]["8 rows"]["winner"] == "stock"


def test_a_compiled_targets_profile_is_its_own(tiny_pair, monkeypatch):
    """Widths chosen by what forwards cost that Python builds."""
    built = dataclasses.replace(tiny_pair).key()
    monkeypatch.setattr(tiny_pair.engine.target, "compiled", object())
    assert dataclasses.replace(tiny_pair).key() != built


def test_forget_removes_this_pairs_profile(tiny_pair, quick, monkeypatch, capsys):
    """A profile that can only be got rid of by who knows where it lies; another pair's removed."""
    monkeypatch.setattr(command, "_pair", lambda args: tiny_pair)
    get_profile(tiny_pair)
    path, other = profile_path(tiny_pair.key()), profile_path("other")
    other.write_text("another pair's")
    assert command.main(["--forget"]) == 0
    assert f"Removed {path}" in capsys.readouterr().out
    assert not path.exists() and other.exists()
    assert command.main(["--forget"]) == 0
    assert "No profile of" in capsys.readouterr().out
    assert command.main(["--forget", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": None}
    path.mkdir()
    with pytest.raises(InputError, match="no way to remove it"):
        command.main(["--forget"])


@pytest.mark.parametrize(("given", "advises"), [([], True), (["--forget"], False)])
def test_advice_on_speed_is_for_what_computes(tiny_pair, quick, given, advises, monkeypatch):
    """A note on a slow BLAS library under `--forget`, which multiplies nothing."""
    asked = []

    def load_decoder(args, *, advises=True):
        asked.append(advises)

    monkeypatch.setattr(command.flags, "load_decoder", load_decoder)
    monkeypatch.setattr(command.Pair, "of", lambda decoder: tiny_pair)
    assert command.main(given) == 0
    assert asked == [advises]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--no-drafter"], "--no-drafter"),
        (["--plot", "p.gif"], "gif"),
        (["--import", "no such file.json"], "no such file"),
    ],
)
def test_the_command_refuses_before_it_loads(flags, named, monkeypatch):
    """A model loaded for a minute before a file name is refused."""
    monkeypatch.setattr(command, "_pair", lambda args: pytest.fail("loaded"))
    with pytest.raises(InputError, match=named):
        command.main(flags)
