"""The flags and arguments of `load` beside the pair: those of the caches."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json

import pytest
from helpers.loadable import loadable
from helpers.worded import worded_target

import dspark_mlx
from dspark_mlx import InputError, generate
from dspark_mlx.caches.settings import CACHE_SETTINGS, CacheSettings
from dspark_mlx.profiling.pair import Pair
from dspark_mlx.terminal.flags import add_model_flags

DECODING = ("generate", "chat", "bench", "evaluate", "profile", "calibrate")


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return loadable(tmp_path_factory.mktemp("loadable") / "target", head_dim=32)


def test_the_flags_are_the_tables():
    """A default or a meaning that --help, Python and mlx-lm tell differently."""
    parser = argparse.ArgumentParser()
    add_model_flags(parser)
    actions = {name: action for action in parser._actions for name in action.option_strings}
    theirs = importlib.import_module("mlx_lm.generate").setup_arg_parser()._actions
    mlx_lm = {name: action.default for action in theirs for name in action.option_strings}
    arguments = inspect.signature(dspark_mlx.load).parameters
    for name, row in CACHE_SETTINGS.items():
        assert row.flag is not None
        action = actions[row.flag.name]
        assert row.meaning in (action.help or "") and row.sentence in " ".join(
            (dspark_mlx.load.__doc__ or "").split()
        )
        assert action.default == row.default == arguments[name].default
        assert row.mlx_lm == row.flag.name and mlx_lm[row.mlx_lm] == row.default


@pytest.mark.parametrize("name", DECODING)
def test_every_command_that_decodes_has_them(name):
    """A command that measures other caches than the ones that are decoded with."""
    parser = importlib.import_module(f"dspark_mlx.{name}")._parser()
    known = {flag for action in parser._actions for flag in action.option_strings}
    assert {row.flag.name for row in CACHE_SETTINGS.values()} <= known


def test_load_takes_them(target):
    """Arguments that end at `load`, or that another decoder of the target loses."""
    settings = CacheSettings(kv_bits=4, kv_group_size=32, quantized_kv_start=10)
    arguments = {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": 10}
    decoder = dspark_mlx.load(target, drafter=False, **arguments)
    assert decoder.engine.target.cache_settings == settings
    assert decoder.plain().engine.target.cache_settings == settings
    assert sum(len(round_.tokens) for round_ in decoder.rounds([5, 6], 20, stop_tokens=())) == 20


def test_generate_takes_them(target, capsys):
    """A flag that is parsed and not passed on."""
    texts = set()
    for bits in ((), ("--kv-bits", "2", "--kv-group-size", "32", "--quantized-kv-start", "0")):
        arguments = ["--model", str(target), "--no-drafter", "--json", "-m", "40", *bits]
        assert generate.main([*arguments, "--prompt", "abcdefgh"]) == 0
        texts.add(json.loads(capsys.readouterr().out)["text"])
    assert len(texts) == 2


def test_generate_keeps_prompts(target, tmp_path, capsys):
    """A second run that reads the whole prompt again."""
    arguments = ["--model", str(target), "--no-drafter", "--stats", "-m", "4"]
    kept = ["--prompt-cache-dir", str(tmp_path / "kept"), "--prompt-cache-bytes", "1000000"]
    texts, said = set(), []
    for more in (kept, kept, ["--prompt-cache-bytes", "0"]):
        assert generate.main([*arguments, "--prompt", "abcdefgh", *more]) == 0
        printed = capsys.readouterr()
        texts.add(printed.out)
        said.append("kept from before" in printed.err)
    assert len(texts) == 1 and said == [False, True, False]


def test_what_cannot_be_is_refused_at_load(target, tmp_path):
    """An error in the middle of a text, or after gigabytes were read."""
    with pytest.raises(InputError, match="kv_bits: found 7"):
        dspark_mlx.load("no such folder", drafter=False, kv_bits=7)
    with pytest.raises(InputError, match="kv_bits 4 with heads of size 16; expected heads"):
        dspark_mlx.load(worded_target(tmp_path / "narrow"), drafter=False, kv_bits=4)


@pytest.mark.parametrize(
    ("name", "given", "what"),
    [
        ("evaluate", [], "whose acceptance by position and confidences are evaluated"),
        ("calibrate", ["--prompts", "p.jsonl"], "whose confidence head is calibrated"),
        ("profile", [], "whose blocks are timed"),
        ("bench", ["--report", "{folder}/report.json"], "which the report names"),
    ],
)
def test_copies_are_no_drafter(name, given, what, tmp_path, monkeypatch):
    """A message of schedulers, or of --no-drafter, for who asked for a drafter that is none."""
    main = importlib.import_module(f"dspark_mlx.{name}").main
    monkeypatch.setattr("dspark_mlx.terminal.flags.load", lambda *_, **__: pytest.fail("loaded"))
    arguments = [each.format(folder=tmp_path) for each in given]
    for flags, where in (["--drafter", "lookup"], "--drafter"), (["--no-drafter"], "--no-drafter"):
        with pytest.raises(
            InputError, match=f"^{where}: found .*(, {what}|or --drafter lookup)\\."
        ):
            main([*arguments, *flags])
    if name == "evaluate":
        with pytest.raises(InputError, match="--compare: found lookup"):
            main(["--compare", "lookup"])


def test_kernels_on_a_cpu_are_said_to_do_nothing(target):
    """A flag that was asked for, and silence about it."""
    with pytest.warns(UserWarning, match="kernels do nothing on this device"):
        dspark_mlx.load(target, drafter=False, kernels=True)


def test_exact_is_what_load_and_generate_are_asked_for(target, capsys):
    """A flag that ends at `load`, and a decoder that calls itself exact when it is closed."""
    prompts = ["abcd", "efghijk"]
    plain = dspark_mlx.load(target, drafter=False)
    texts = [plain.generate(prompt, 24) for prompt in prompts]
    with dspark_mlx.load(target, drafter="lookup", exact=True) as decoder:
        assert decoder.exact and decoder.plain().exact and not plain.exact
        with pytest.warns(UserWarning, match="one after the other, since it is exact"):
            assert decoder.generate_batch(prompts, 24) == texts
    assert not decoder.exact
    with pytest.raises(InputError, match="exact: found kernels too"):
        dspark_mlx.load(target, drafter=False, kernels=True, exact=True)
    arguments = ["--model", str(target), "--no-drafter", "--prompt", "abcd", "--max-tokens", "24"]
    said = {}
    for flags in ["--exact"], []:
        assert generate.main([*arguments, "--stats", *flags]) == 0
        printed = capsys.readouterr()
        said[" | exact | " in printed.err] = printed.out
    assert said[True] == said[False]


def test_a_profile_is_for_its_caches(target, monkeypatch):
    """A profile of unquantised caches that schedules quantised ones, or an exact target."""
    keys = []
    monkeypatch.setattr(
        "dspark_mlx.profiling.pair.fingerprint", lambda *parts: keys.append(parts[-3])
    )
    for bits, exact in ((None, False), (4, False), (None, True)):
        settings = {"kv_bits": bits, "kv_group_size": 32, "exact": exact}
        decoder = dspark_mlx.load(target, drafter=False, **settings)
        drafter = type(
            "Drafter",
            (),
            {"vocabulary_size": 4, "config": argparse.Namespace(gamma=3, attended=())},
        )
        engine = type("Engine", (), {"target": decoder.engine.target, "drafter": drafter})
        Pair(engine, target, target, "float32").key()
    expected = {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": 5000}
    assert keys == [{}, expected | {"max_kv_size": None}, {"exact": True}]
