"""Request settings stand in one table; flags, docstrings, the docs page and type checkers agree."""

from __future__ import annotations

import argparse
import importlib
import inspect
import pydoc
import re
import typing
from pathlib import Path

import pytest
from helpers.worded import worded_target

import dspark_mlx
from dspark_mlx import Decoder, InputError
from dspark_mlx.engine.request import SETTINGS, TEXT_SETTINGS, Request, Settings, TextSettings
from dspark_mlx.engine.template_settings import TemplateKeywords, TemplateSettings
from dspark_mlx.sampling.setting_table import settings_of, with_settings
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.terminal.flags import add_request_flags
from dspark_mlx.terminal.sampling_flags import add_setting_flag
from dspark_mlx.terminal.settings_page import COMMAND, settings_page

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
# Not among the keywords that `rounds` and `stream` share.
ARGUMENTS = ("max_tokens", *TEXT_SETTINGS, "stop_tokens")


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_type_checkers_see_the_table():
    """A setting that works and that a type checker refuses, or the other way round."""
    fields = typing.get_type_hints(Sampling) | typing.get_type_hints(Request)
    keywords = {name: fields[name] for name in SETTINGS if name not in ARGUMENTS}
    assert typing.get_type_hints(Settings) == keywords
    assert list(Settings.__annotations__) == list(keywords)
    fields |= typing.get_type_hints(TemplateSettings)
    keywords = {name: fields[name] for name in SETTINGS if name != "max_tokens"}
    # `stop` may be one string.
    keywords["stop"] = typing.get_type_hints(TextSettings)["stop"]
    assert typing.get_type_hints(TextSettings) == keywords
    template = typing.get_type_hints(TemplateSettings)
    assert typing.get_type_hints(TemplateKeywords) == template


@pytest.mark.parametrize("method", [Decoder.stream, Decoder.rounds])
def test_arguments_have_the_tables_defaults(method):
    """A default that one method has and the documents do not."""
    parameters = inspect.signature(method).parameters
    named = parameters.keys() & SETTINGS.keys()
    assert "max_tokens" in named
    for name in named:
        assert parameters[name].default == SETTINGS[name].default


@pytest.mark.parametrize("method", [Decoder.stream, Decoder.rounds])
def test_help_names_every_setting(method):
    """Settings that only the source shows."""
    shown = one_line(pydoc.plain(pydoc.render_doc(method)))
    for row in SETTINGS.values():
        entry = one_line(f"{row.name} ({row.type}, default {row.default!r}): {row.sentence}")
        assert (entry in shown) == (row.name not in TEXT_SETTINGS or method is Decoder.stream)


def test_settings_are_said_without_docstrings():
    """`python -OO`, which drops them: None + str."""

    def bare():
        pass

    assert with_settings("Settings", SETTINGS.values())(bare).__doc__.startswith("Settings:\n")


def test_a_meaning_is_one_plain_sentence():
    """A row that reads badly in one of the places that show it."""
    for row in SETTINGS.values():
        assert re.fullmatch(r"[a-z].*[^.\s]", row.meaning) and ". " not in row.meaning, row.name


def test_flags_are_the_tables():
    """A default or a meaning that --help and Python tell differently."""
    parser = argparse.ArgumentParser()
    add_request_flags(parser)
    add_setting_flag(parser, "logprobs")
    add_setting_flag(parser, "prefill_response")
    actions = {name: action for action in parser._actions for name in action.option_strings}
    for row in SETTINGS.values():
        if row.flag is not None:
            action = actions.pop(row.flag.name)
            assert row.meaning in (action.help or "")
            assert action.dest == row.flag.argument
            assert (action.default or None) == (row.default or None)
            assert (row.flag.short or row.flag.name) in action.option_strings
    assert set(actions) == {
        *("-h", "--help", "-m", "--system-prompt", "--no-thinking", "--no-copies"),
        "--extra-eos-token",
    }


def test_the_names_of_mlx_lm_are_mlx_lms():
    """A flag said to be mlx-lm's that it does not have, or has no longer."""
    # `mlx_lm.generate` as an attribute is the function.
    generate = importlib.import_module("mlx_lm.generate")
    sampling = importlib.import_module("mlx_lm.sample_utils")
    flags = {name for a in generate.setup_arg_parser()._actions for name in a.option_strings}
    keywords: set[str] = set()
    for makes in (sampling.make_sampler, sampling.make_logits_processors, generate.generate_step):
        keywords |= set(inspect.signature(makes).parameters)
    for row in SETTINGS.values():
        known = flags if row.mlx_lm.startswith("-") else keywords
        assert not row.mlx_lm or row.mlx_lm in known
        if row.flag is not None and row.flag.name in flags:
            assert row.mlx_lm == row.flag.name


def test_the_page_is_the_tables():
    """docs/settings.md of an older table."""
    assert PAGE.read_text() == settings_page(), f"docs/settings.md is old; write it with: {COMMAND}"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("temp", "temperature"), ("ban", "banned_tokens"), ("top_q", "top_p"), ("zzz", "")],
)
def test_an_unknown_setting_names_the_one_that_was_meant(name, meant):
    """mlx-lm's `temp` refused with a list of two dozen names."""
    with pytest.raises(InputError) as error:
        Request.make(1, (), {name: 0})
    assert error.value.where == name
    assert (f"Did you mean {meant}?" in str(error.value)) == bool(meant)
    assert set(settings_of(Sampling)) <= set(re.findall(r"\w+", error.value.expected))


def test_stop_tokens_mean_the_same_in_stream_and_in_rounds(tmp_path):
    """One call that ends at the request's ids and another that ends at the target's."""
    decoder = dspark_mlx.load(worded_target(tmp_path / "target"), drafter=False)
    ids = decoder.encode("w5 w6")
    free = [t for done in decoder.rounds(ids, 8, stop_tokens=()) for t in done.tokens]
    assert len(free) == 8
    asked = free[: free.index(free[3]) + 1]
    rounds = [t for done in decoder.rounds(ids, 8, stop_tokens=[free[3]]) for t in done.tokens]
    chunks = list(decoder.stream(ids, 8, stop_tokens=[free[3]]))
    assert rounds == [chunk.token for chunk in chunks] == asked
    assert (chunks[-1].finish_reason, chunks[-1].text) == ("stop", "")
    own = list(decoder.stream(ids, 8))
    assert [chunk.token for chunk in own] == [t for r in decoder.rounds(ids, 8) for t in r.tokens]
    with pytest.raises(InputError, match="stop_tokens"):
        decoder.stream(ids, 8, stop_tokens=["</s>"])
