"""Rounds to text: stop strings, finish reasons, flags and totals, and what is freed at the end."""

from __future__ import annotations

import gc

import mlx.core as mx
import pytest
from helpers.pairs import traces

from dspark_mlx.engine.stream import StopStrings, TextStream, stream
from dspark_mlx.types import Round

END = 99


class FakeDetokenizer:
    """Token id to text by a table; may hold the newest token back until the next one."""

    def __init__(self, table: dict[int, str], lag: bool = False) -> None:
        self._table, self._lag = table, lag
        self._held = self._ready = ""

    def add_token(self, token: int) -> None:
        self._ready += self._held if self._lag else self._table[token]
        self._held = self._table[token] if self._lag else ""

    def finalize(self) -> None:
        self._ready, self._held = self._ready + self._held, ""

    @property
    def last_segment(self) -> str:
        ready, self._ready = self._ready, ""
        return ready


def run(texts: list[list[str]], stop=(), *, end=False, max_tokens=None, lag=False, accepted=None):
    """Stream rounds whose tokens have these texts; the first is the prefill."""
    table: dict[int, str] = {}
    rounds = []
    for i, words in enumerate(texts):
        tokens = []
        for word in words:
            tokens.append(len(table))
            table[len(table)] = word
        if end and i == len(texts) - 1:
            tokens.append(END)
        taken = len(tokens) - 1 if accepted is None or i == 0 else accepted[i - 1]
        gamma = 4 if i else 0
        rounds.append(
            Round(tuple(tokens), gamma, gamma, taken if i else 0, prefill=i == 0, seconds=1.0)
        )
    total = sum(len(done.tokens) for done in rounds)
    return list(
        stream(
            iter(rounds),
            TextStream(
                FakeDetokenizer(table, lag),
                prompt_tokens=7,
                max_tokens=max_tokens or total + 10 * end,
                stop_tokens=[END],
                stop=stop,
            ),
        )
    )


def text_of(chunks) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize(
    "texts, stop, expected",
    [
        ([["a"], ["b", "xSTOPy", "c"]], ["STOP"], "abx"),
        ([["a"], ["bS", "TO", "Pc", "d"]], ["STOP"], "ab"),
        ([["aS"], ["T"], ["O", "P"], ["z"]], ["STOP"], "a"),
        ([["STOP"], ["a"]], ["STOP"], ""),
        ([["a"], ["one two"], ["z"]], ["two", "one"], "a"),
        ([["a"], ["o", "n", "e"], ["z"]], ["one two", "one"], "a"),
        ([["a"], ["ab", "ab", "ac"], ["z"]], ["abac"], "aab"),
        ([["a"], ["\n"], ["\n"], ["b"]], ["\n\n"], "a"),
    ],
    ids=[
        "inside",
        "across tokens",
        "across rounds",
        "first",
        "earliest wins",
        "one is a prefix",
        "overlapping beginnings",
        "newlines",
    ],
)
@pytest.mark.parametrize("lag", [False, True], ids=["at once", "a token late"])
def test_a_stop_string_cuts_exactly(texts, stop, expected, lag):
    """Part of a stop string emitted, or text before it swallowed; tokens after it emitted."""
    chunks = run(texts, stop, lag=lag)
    assert text_of(chunks) == expected
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "stop"


def test_a_prefix_that_does_not_complete_is_released():
    """Text held back for a stop string that never came, lost or delayed to the end."""
    chunks = run([["a"], ["ST", "O"], ["x", "b"]], ["STOP"])
    assert [chunk.text for chunk in chunks] == ["a", "", "", "STOx", "b"]
    assert chunks[-1].finish_reason == "length"


def test_a_prefix_at_the_very_end_is_flushed():
    """Text held back when max_tokens or an end token ends the request."""
    assert text_of(run([["a"], ["ST"]], ["STOP"])) == "aST"
    assert text_of(run([["a"], ["ST"]], ["STOP"], end=True)) == "aST"


def test_a_stop_string_that_completes_in_the_last_flush():
    """A stop string that the detokenizer releases only at the end, emitted or called length."""
    chunks = run([["a"], ["bSTOP"]], ["STOP"], lag=True)
    assert text_of(chunks) == "ab"
    assert chunks[-1].finish_reason == "stop"


def test_an_end_token_adds_no_text():
    """The end token's own text printed; its reason called length at max_tokens."""
    chunks = run([["a"], ["b"]], end=True, max_tokens=3)
    assert text_of(chunks) == "ab" and len(chunks) == 3
    assert chunks[-1].token == END and chunks[-1].finish_reason == "stop"


def test_text_behind_a_lagging_detokenizer_is_finalised():
    """The last token's text lost because finalize was not called."""
    assert text_of(run([["a"], ["b", "c"]], lag=True)) == "abc"
    assert text_of(run([["a"], ["b", "c"]], lag=True, end=True)) == "abc"


def test_one_chunk_per_token_with_flags():
    """A correction or bonus flagged as drafted; the prefill's token too; round indices off."""
    chunks = run([["a"], ["b", "c", "d"], ["e"]], accepted=[2, 0])
    assert [chunk.text for chunk in chunks] == list("abcde")
    assert [chunk.token for chunk in chunks] == [0, 1, 2, 3, 4]
    assert [chunk.from_draft for chunk in chunks] == [False, True, True, False, False]
    assert [chunk.round for chunk in chunks] == [0, 1, 1, 1, 2]


def test_totals():
    """The prefill counted as a round, its token in the speed, or tokens behind a stop counted."""
    last = run([["a"], ["b", "c", "d"], ["e"]], accepted=[2, 0])[-1].statistics
    assert (last.prompt_tokens, last.generation_tokens, last.rounds) == (7, 5, 2)
    assert (last.drafted, last.scheduled, last.accepted) == (8, 8, 2)
    assert last.accepted_length == 2.0
    assert last.prompt_tps == 7.0 and last.generation_tps == 2.0
    assert last.peak_memory > 0
    cut = run([["a"], ["b", "STOP", "d"]], ["STOP"])[-1]
    assert cut.generation_tokens == 3 and cut.prompt_tokens == 7
    assert cut.statistics.accepted == 2
    first = run([["a"], ["STOP", "c", "d"]], ["STOP"])[-1].statistics
    assert (first.generation_tokens, first.scheduled, first.accepted) == (2, 4, 1)


def test_one_token_has_no_rates():
    """A division by zero where nothing followed the prefill."""
    (only,) = run([["a"]])
    assert only.finish_reason == "length"
    assert only.statistics.accepted_length == 0 and only.generation_tps == 0


def test_on_round_comes_before_its_chunks():
    """A callback late by a round."""
    rounds = [Round((0,), prefill=True), Round((1, 2), 4, 4, 1)]
    seen: list[Round] = []
    detokenizer = FakeDetokenizer({0: "a", 1: "b", 2: "c"})
    text = TextStream(detokenizer, prompt_tokens=1, max_tokens=3, stop_tokens=[], stop=[])
    chunks = stream(iter(rounds), text, on_round=seen.append)
    assert [len(seen) for _ in chunks] == [1, 2, 2]


def test_stop_strings_release_as_early_as_possible():
    """More held back than a stop string's longest beginning."""
    strings = StopStrings(["abcd", "xy"])
    assert strings.push("zzab") == ("zz", False)
    assert strings.push("x") == ("ab", False)
    assert strings.push("q") == ("xq", False)
    assert strings.flush() == ""
    assert StopStrings([]).push("anything") == ("anything", False)


def test_a_stop_string_ends_the_rounds(pair):
    """A request whose rounds go on after its text has ended."""
    ran = []

    def rounds():
        for i in range(5):
            ran.append(i)
            yield Round((i,), prefill=i == 0)

    table = {i: "abcde"[i] for i in range(5)}
    detokenizer = FakeDetokenizer(table)
    text = TextStream(detokenizer, prompt_tokens=1, max_tokens=5, stop_tokens=[], stop=["c"])
    assert text_of(stream(rounds(), text)) == "ab"
    assert ran == [0, 1, 2]


def test_closing_early_frees_the_request(pair):
    """Caches kept alive by the decoder, a recorded tap or a reference cycle after close()."""
    decoder = pair("vanilla")
    prompt = traces("vanilla")[0]["prompt_ids"] * 20

    def begin():
        text = TextStream(
            FakeDetokenizer(dict.fromkeys(range(512), "x")),
            prompt_tokens=len(prompt),
            max_tokens=64,
            stop_tokens=(),
            stop=(),
        )
        request = stream(decoder.rounds(prompt, 64, stop_tokens=()), text)
        for _ in range(6):
            next(request)
        return request

    begin().close()
    gc.collect()
    before = mx.get_active_memory()
    request = begin()
    assert mx.get_active_memory() > before + 100_000
    request.close()
    del request
    gc.collect()
    assert mx.get_active_memory() <= before + 1024
