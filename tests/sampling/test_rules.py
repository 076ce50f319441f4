"""The accept rules on logits made by hand, where a division or a logarithm goes wrong."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from dspark_mlx.sampling import Position
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.packing import pack, unpack
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.types import Draft

V = 6
INF = float("inf")


def judged(p, q, tokens, seeds=200, ids=None, **settings):
    """Verdicts of one block of given probabilities, by seed.

    `p` is `[slots + 1][V]` and `q` `[slots][V]`: the target's and the drafter's probabilities.
    `ids` are the draft's columns, of all slots or `[slots][size]`.
    """
    with np.errstate(divide="ignore"):
        logits, weights = (mx.array(np.log(np.array(x, dtype=np.float32))) for x in (p, q))
    block = mx.array(tokens, dtype=mx.int32)
    columns = block
    if ids is not None:
        by_slot = np.broadcast_to(ids, (len(tokens), np.shape(ids)[-1]))
        columns = [list(own).index(t) for own, t in zip(by_slot, tokens, strict=True)]
        columns = mx.array(columns, dtype=mx.int32)
        weights = mx.take_along_axis(weights, mx.array(by_slot), axis=-1)
        ids = mx.array(ids, dtype=mx.int32)
    draft = Draft(
        tokens=block, base_logits=weights, logits=weights, ids=ids, columns=columns, weights=weights
    )
    verdicts = []
    for seed in range(seeds):
        sampling = Sampling(temperature=1.0, seed=seed, **settings)
        judgement = make_sampler(sampling, V).judge(logits, Position(3), draft)
        verdicts.append(unpack(pack(judgement, draft, len(tokens))))
    return verdicts


FLAT = [1 / V] * V
LEFT = [0.5, 0.5, 0, 0, 0, 0]
RIGHT = [0, 0, 0, 0, 0.5, 0.5]
RULES = pytest.mark.parametrize("rule", ["block", "token"])


@RULES
def test_equal_distributions_accept_everything(rule):
    """A residual of zero over zero, or a rejection where there is nothing to correct."""
    verdicts = judged([FLAT] * 4, [FLAT] * 3, [1, 5, 0], verification=rule)
    assert all(v.accepted == 3 and v.tokens[:3] == (1, 5, 0) for v in verdicts)
    assert {v.tokens[3] for v in verdicts} == set(range(V))


@RULES
def test_sets_that_do_not_overlap_reject_at_once(rule):
    """A rejected draft of target probability 0 that is committed, or drawn again."""
    verdicts = judged([LEFT, RIGHT, LEFT], [RIGHT, LEFT], [4, 0], verification=rule)
    assert all(v.accepted == 0 for v in verdicts)
    assert {v.tokens for v in verdicts} == {(0,), (1,)}


@RULES
def test_a_tiny_draft_probability(rule):
    """An overflow of p / q where q is barely there."""
    q = [1e-38, 1 - 1e-38, 0, 0, 0, 0]
    verdicts = judged([LEFT, RIGHT], [q], [0], verification=rule)
    assert all(v.accepted == 1 and v.tokens[1] in (4, 5) for v in verdicts)


@RULES
def test_a_tiny_target_probability_survives_only_as_often(rule):
    p = [1e-30, 1 - 1e-30, 0, 0, 0, 0]
    verdicts = judged([p, RIGHT], [FLAT], [0], verification=rule)
    assert {v.tokens for v in verdicts} == {(1,)}


@RULES
def test_what_follows_a_rejected_token_is_lost(rule):
    """A later draft that looks good behind one that cannot stand."""
    verdicts = judged([LEFT, FLAT, FLAT], [RIGHT, FLAT], [5, 2], verification=rule)
    assert all(len(v.tokens) == 1 for v in verdicts)


@RULES
def test_a_cut_vocabulary_keeps_the_rest_of_the_target(rule):
    """Tokens outside the draft vocabulary missing from the residual, or columns taken for ids."""
    ids = [5, 0, 2]
    q = [0.2, 0, 0.2, 0, 0, 0.6]
    verdicts = judged([FLAT, FLAT], [q], [5], ids=ids, seeds=600, verification=rule)
    kept = [v for v in verdicts if v.accepted]
    assert 0.15 < len(kept) / len(verdicts) < 0.42  # (1/6) / 0.6 = 0.28
    # p - q leaves 1/6 of each token outside, and nothing of those inside.
    assert {v.tokens[0] for v in verdicts if not v.accepted} == {1, 3, 4}


@RULES
def test_slots_may_have_columns_of_their_own(rule):
    """Another slot's columns taken for those of a slot, in the residual or in its chance."""
    q = [[0.2, 0, 0.2, 0, 0, 0.6], [0, 0.5, 0, 0.5, 0, 0]]
    ids = [[5, 0, 2], [3, 4, 1]]
    verdicts = judged([FLAT] * 3, q, [5, 1], ids=ids, seeds=1500, verification=rule)
    assert 0.22 < np.mean([v.accepted > 0 for v in verdicts]) < 0.34  # (1/6) / 0.6 = 0.28
    made = {n: {v.tokens[-1] for v in verdicts if v.accepted == n} for n in range(3)}
    assert made == {0: {1, 3, 4}, 1: {0, 2, 4, 5}, 2: set(range(V))}


def test_a_block_is_accepted_no_less_than_its_tokens():
    """A first token that the target likes too little, made good by the second."""
    p = [[0.4, 0.6, 0, 0, 0, 0], [0.9, 0.1, 0, 0, 0, 0], FLAT]
    q = [[0.8, 0.2, 0, 0, 0, 0], [0.45, 0.55, 0, 0, 0, 0]]
    counts = {
        rule: sum(v.accepted for v in judged(p, q, [0, 0], seeds=1000, verification=rule))
        for rule in ("block", "token")
    }
    # Both tokens survive with 1/2 * 1 by token; by block min(1/2 * 2, 1) = 1.
    assert abs(counts["token"] - 1000) < 4 * np.sqrt(1000)
    assert counts["block"] == 2000


@RULES
def test_extreme_logits_give_numbers(rule):
    """inf - inf, exp overflow, or a residual of NaN."""
    huge = mx.array([[3e38, -3e38, 0, 0, 0, -INF]] * 3)
    block = mx.array([0, 1], dtype=mx.int32)
    draft = Draft(tokens=block, base_logits=huge, logits=huge, columns=block, weights=huge[:2])
    for seed in range(50):
        sampler = make_sampler(Sampling(temperature=0.5, seed=seed, verification=rule), V)
        verdict = unpack(pack(sampler.judge(huge, Position(0), draft), draft, 2))
        assert set(verdict.tokens) == {0}


def test_nothing_scheduled_is_a_plain_step():
    verdicts = judged([LEFT], np.zeros((0, V)), [], seeds=50)
    assert {v.tokens for v in verdicts} == {(0,), (1,)} and not any(v.accepted for v in verdicts)
