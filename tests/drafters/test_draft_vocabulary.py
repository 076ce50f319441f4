"""The draft vocabulary: what it holds, its logits, and that it changes no output."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.observed import observed
from helpers.pairs import DRAFTERS, TARGET, tokens_of, traces
from helpers.slow_cases import some_slow
from mlx_lm.utils import load_model, quantize_model

from dspark_mlx import InputError
from dspark_mlx.checkpoint.frequent_tokens import (
    rank_tokens,
    read_ranking,
    write_ranking,
)
from dspark_mlx.checkpoint.linear import Matrix
from dspark_mlx.drafters.heads.base import correct
from dspark_mlx.drafters.heads.vanilla import VanillaHead
from dspark_mlx.drafters.vocabulary import (
    MIN_SIZE,
    CommonTokens,
    DraftVocabulary,
    Readout,
    choose_size,
    parse_setting,
)
from dspark_mlx.targets.tap import Target

VOCAB, SIZE, HIDDEN, RANK = 200, 50, 64, 32


def random(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(sum(shape)))


def quantized(matrix: Matrix) -> Matrix:
    return Matrix(*mx.quantize(matrix.weight, group_size=32, bits=8), bits=8, group_size=32)


def vocabulary(store=lambda matrix: matrix, ranking=()) -> DraftVocabulary:
    output, w2 = store(Matrix(random(VOCAB, HIDDEN))), store(Matrix(random(VOCAB, RANK)))
    head = VanillaHead(Matrix(random(VOCAB, RANK)), w2)
    return DraftVocabulary(CommonTokens.of(output, SIZE, ranking), Readout(output, head))


def ids_of(cut: DraftVocabulary) -> list[int]:
    ids: Any = cut.readout().ids
    return ids.tolist()


def test_it_holds_the_first_ids_and_what_was_seen():
    """Ids lost, repeated, or in an order other than that of the logits' columns."""
    cut = vocabulary()
    assert ids_of(cut) == list(range(SIZE))
    cut.add([3, 120, 199, 120])
    cut.commit([60, 7, 60])
    assert ids_of(cut) == [*range(SIZE), 120, 199, 60]


def test_it_holds_the_most_frequent_tokens():
    """First ids taken though the commonest are known, or too few; misses counted wrongly."""
    ranking = tuple(range(VOCAB - 1, VOCAB - 31, -1))
    cut = vocabulary(ranking=ranking)
    common = [*range(SIZE - 30), *reversed(ranking)]
    assert ids_of(cut) == common
    cut.add([3, 30, 180])
    cut.commit([40, 30, 199])
    assert ids_of(cut) == [*common, 30, 40]
    assert sum(cut._misses) == 1
    assert ids_of(vocabulary(ranking=tuple(range(100, 200)))) == list(range(100, 150))


RANKINGS = ((), tuple(range(180, 20, -2)))


@pytest.mark.parametrize("ranking", RANKINGS, ids=["first ids", "ranked"])
@pytest.mark.parametrize("store", [lambda m: m, quantized], ids=["plain", "quantised"])
def test_its_logits_are_the_whole_vocabularys(store, ranking):
    """Columns that belong to another id, in the base logits or in the head's step."""
    cut = vocabulary(store, ranking)
    whole = cut._full
    cut.add([199, 77])
    readout = cut.readout()
    hidden, previous = random(3, HIDDEN), mx.array([150])
    assert mx.allclose(readout.logits(hidden), whole.logits(hidden)[:, readout.ids], atol=1e-4)
    base = whole.logits(hidden[:1])
    corrected, embedding, _ = correct(whole.head, base, previous, hidden[:1], None)
    found, same, _ = correct(readout.head, base[:, readout.ids], previous, hidden[:1], None)
    assert mx.allclose(found, corrected[:, readout.ids], atol=1e-4)
    assert mx.array_equal(embedding, same)
    assert readout.tokens(mx.array([SIZE, SIZE + 1])).tolist() == [199, 77]
    assert readout.tokens(mx.array([0, 1])).tolist() == sorted(ranking[:SIZE] or range(SIZE))[:2]


def test_text_outside_it_brings_the_whole_vocabulary_back():
    """A text of late ids drafted forever from ids that it never uses; or no way back."""
    cut = vocabulary()
    cut.commit(range(100, 105))
    assert cut.readout().ids is not None
    cut.commit([105])
    assert cut.readout().ids is None
    cut.commit([1] * 64)
    assert ids_of(cut)[-6:] == [100, 101, 102, 103, 104, 105]


def test_a_prompt_of_most_ids_needs_no_cut():
    """A copy of nearly the whole output matrix."""
    cut = vocabulary()
    cut.add(range(SIZE, VOCAB))
    assert cut.readout().ids is None


@pytest.mark.parametrize("name", some_slow(DRAFTERS, ("vanilla", "rnn", "dflash")))
@pytest.mark.parametrize("size", [1, 40])
def test_the_output_is_the_same(pair, name, size):
    """Drafts mapped to wrong ids, a context that differs; every head."""
    decoder = pair(name, draft_vocabulary=size)
    trace = traces(name)[0]
    rounds = list(decoder.rounds(trace["prompt_ids"], 64, stop_tokens=[1]))
    assert trace["prompt_ids"] + tokens_of(rounds) == trace["output_ids"]


def test_drafts_come_from_it(pair):
    """A setting that is accepted and ignored."""
    decoder = pair("vanilla", draft_vocabulary=8)
    drafter = decoder.engine.drafter
    context = drafter.new_context()
    drafter.extend(context, [random(5, 64)] * len(drafter.config.taps), mx.arange(5))
    context.vocabulary.add([100])
    for anchor in range(40):
        draft = observed(drafter, context, mx.array([anchor]))
        assert set(draft.tokens.tolist()) <= {*range(8), 100}
        assert draft.logits.shape[1] == draft.ids.size == 9


def test_the_targets_output_matrix(target_model):
    """The embedding taken for an untied head, a quantised head taken for a plain one."""
    target = Target(target_model, (), "golden")
    hidden = random(2, target.hidden_size)
    assert mx.allclose(target.head(hidden), target.logits(hidden), atol=1e-5)
    model, config = load_model(TARGET, lazy=True)
    model, _ = quantize_model(model, config, group_size=32, bits=8)
    target = Target(model, (), "quantised")
    assert target.head.quantized
    assert mx.allclose(target.head(hidden), target.logits(hidden), atol=1e-5)


def test_auto_cuts_large_vocabularies_only():
    """A small vocabulary cut for nothing."""
    assert choose_size("auto", 2 * MIN_SIZE - 1) is None
    assert choose_size("auto", 2 * MIN_SIZE) == MIN_SIZE
    assert choose_size("auto", 49152) == 12288
    assert choose_size("auto", 151936) == 37984
    assert choose_size("auto", 49152, ranked=8192) == 8192
    assert choose_size("auto", 49152, ranked=8191) == 12288
    assert choose_size("auto", 151936, ranked=37984) == 25322
    assert choose_size("full", 151936) is None
    assert choose_size(1000, 151936) == 1000
    assert choose_size(200000, 151936) is None


@pytest.mark.parametrize("setting", ["auto", "full", 5, "5"])
def test_settings(setting):
    assert parse_setting(setting) in ("auto", "full", 5)


@pytest.mark.parametrize("setting", [0, -3, "none", "1.5", 2.0, True, None, ""])
def test_a_bad_setting_is_refused(setting):
    """An error later, or none."""
    with pytest.raises(InputError, match="draft_vocabulary"):
        parse_setting(setting)


def test_tokens_are_ranked_by_how_often_they_occur():
    """Counts of one text only, ties in no order, an earlier ranking lost or put first."""
    assert rank_tokens(np.array([7, 5, 5, 9, 7, 5, 1]), 200) == (5, 7, 1, 9)
    assert rank_tokens(np.array([7, 5, 5], dtype=np.uint16), 200, (9, 5, 2)) == (5, 7, 9, 2)
    assert rank_tokens(np.array([7, 5, 5]), 12, (9, 2)) == (5, 7, 9)


def test_a_ranking_is_read_as_it_was_written(tmp_path):
    """Ids lost on the way; a drafter without one refused."""
    assert read_ranking(tmp_path, 200) == ()
    write_ranking(tmp_path, (5, 199, 0))
    assert read_ranking(tmp_path, 200) == (5, 199, 0)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"ids": [1, 200]}, "id 200"),
        ({"ids": [1, -1]}, "id -1"),
        ({"ids": [1, True]}, "id True"),
        ({"ids": [1, 2, 1]}, "1 ids twice"),
        ({"ids": []}, "keys ids"),
        ({"ids": "1 2"}, "keys ids"),
        ({"counts": [1]}, "keys counts, ids"),
        ({"format_version": 2}, "format"),
    ],
)
def test_a_damaged_ranking_is_refused(tmp_path, changed, named):
    """Rows of other tokens, read past the end of the matrix."""
    path = write_ranking(tmp_path, (5, 0))
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(InputError, match=named):
        read_ranking(tmp_path, 200)


@pytest.mark.parametrize("name", ("vanilla", "rnn"))
def test_the_output_is_the_same_with_a_ranking(pair, name):
    """Drafts mapped to wrong ids where those are not the first ones."""
    decoder = pair(name, draft_vocabulary=40, ranking=tuple(range(511, 400, -3)))
    drafted = 0
    for trace in traces(name)[:2]:
        rounds = list(decoder.rounds(trace["prompt_ids"], 64, stop_tokens=[1]))
        assert trace["prompt_ids"] + tokens_of(rounds) == trace["output_ids"]
        drafted += sum(r.accepted for r in rounds)
    assert drafted
