"""Every setting's distribution, number by number, against NumPy: the target's and the drafter's."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from helpers.reference_settings import no_repeats, reference, softmax

from dspark_mlx.errors import InputError
from dspark_mlx.sampling import Position
from dspark_mlx.sampling.chooser import Chooser
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.sampling.transform import make_processors

V = 24
PREFIX = (3, 7, 3, 1, 9, 3, 20, 7)
BLOCK = (5, 3, 11)
SETTINGS = [
    {},
    {"temperature": 0.4},
    {"top_p": 0.7},
    {"top_p": 0.3, "temperature": 1.6},
    {"top_k": 4},
    {"min_p": 0.3},
    {"min_p": 0.9, "min_tokens_to_keep": 5},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 1.7, "repetition_context_size": 2},
    {"presence_penalty": 1.5, "presence_context_size": 3},
    {"frequency_penalty": 0.9, "frequency_context_size": 4},
    {"frequency_penalty": 0.9},
    {"logit_bias": {2: 4.0, 3: -1.0}, "banned_tokens": (0, 8)},
    {"logits_processors": (no_repeats,)},
    {"top_p": 0.8, "top_k": 6, "min_p": 0.05, "temperature": 0.8, "presence_penalty": 0.5},
    {"xtc_probability": 0.5, "xtc_threshold": 0.05},
    {"xtc_probability": 0.5, "xtc_threshold": 0.05, "xtc_special_tokens": (2, 5, 14)},
    {"xtc_probability": 0.5, "top_p": 0.9, "top_k": 5, "temperature": 0.7},
]


def logits(rows: int) -> np.ndarray:
    return np.random.default_rng(3).normal(0, 2, (rows, V))


def chooser(settings) -> Chooser:
    sampling = Sampling(**{"temperature": 1.0, **settings})
    sampling.check()
    return Chooser(sampling, make_processors(sampling, 0))


def expected(settings, row: np.ndarray, prefix, coin: bool) -> np.ndarray:
    """XTC's coin is known here: it applies with certainty or not at all."""
    settings = {"temperature": 1.0, **settings}
    if "xtc_probability" in settings:
        settings["xtc_probability"] = float(coin)
    return reference(**settings)(row, prefix)


def coins(settings, rows: int, coin: bool):
    return mx.full((rows, 1), coin) if "xtc_probability" in settings else None


@pytest.mark.parametrize("coin", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_targets_rows(settings, coin):
    """A setting that is ignored, off by one, in another order, or shown another row's prefix."""
    z = logits(len(BLOCK) + 1)
    place = Position(len(PREFIX) - 1, mx.array(PREFIX, dtype=mx.int32))
    block = mx.array(BLOCK, dtype=mx.int32)
    rows = chooser(settings).target_weights(
        mx.array(z), place, block, coins(settings, len(z), coin)
    )
    for i, row in enumerate(np.array(rows.weights, dtype=np.float64)):
        p = expected(settings, z[i], (*PREFIX, *BLOCK[:i]), coin)
        assert np.allclose(softmax(row), p, atol=2e-6)


@pytest.mark.parametrize("coin", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("ids", [None, [14, 3, 0, 5, 2, 9, 20, 11]], ids=["whole", "cut"])
def test_a_drafts_row(settings, coin, ids):
    """Columns of a draft vocabulary taken for token ids."""
    (z,) = logits(1)
    drawn = [mx.array([t], dtype=mx.int32) for t in BLOCK[:2]]
    place = Position(len(PREFIX) - 1, mx.array(PREFIX, dtype=mx.int32))
    columns = None if ids is None else mx.array(ids, dtype=mx.int32)
    shown = z[None] if ids is None else z[None, ids]
    weights = chooser(settings).draft_weights(
        mx.array(shown), place, drawn, columns, V, coins(settings, 1, coin)
    )
    inside = slice(None) if ids is None else ids
    kept = np.full(V, -1e9)
    kept[inside] = z[inside]
    p = expected(settings, kept, (*PREFIX, *BLOCK[:2]), coin)
    assert np.allclose(softmax(np.array(weights[0], dtype=np.float64)), p[inside], atol=2e-6)


def narrow(tokens: mx.array, row: mx.array) -> mx.array:
    """A processor that leaves float32."""
    return row.astype(mx.bfloat16)


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"logits_processors": (narrow,)}])
def test_arithmetic_is_float32(settings):
    """bfloat16 logits, or a processor's bfloat16 result, whose softmax sums to anything."""
    z = mx.array(logits(1)).astype(mx.bfloat16)
    place, made = Position(0, mx.array([1], dtype=mx.int32)), chooser(settings)
    assert made.target_weights(z, place, None, None).weights.dtype == mx.float32
    assert made.draft_weights(z, place, [], None, V, None).dtype == mx.float32


def test_coins_differ_by_row_and_fall_as_often():
    """One coin for a whole block, or a share that is not the probability."""
    made = chooser({"xtc_probability": 0.3})
    tossed = np.array(made.draw_xtc(mx.random.split(mx.random.key(1), 4000)))
    assert tossed.shape == (4000, 1)
    assert abs(tossed.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)


class Forgetful:
    """A processor of a class, made new for a request, that forgets to return its logits."""

    def start(self, prompt_tokens):
        return self

    def __call__(self, tokens, logits):
        logits[:, 3] = 0.0


def listing(tokens, logits):
    return logits.tolist()


def squeezed(tokens, logits):
    return logits[0]


def masking(tokens, logits):
    return logits > 0


@pytest.mark.parametrize(
    ("processor", "found"),
    [
        (Forgetful(), r"Forgetful: found None \(NoneType\) returned"),
        (listing, r"listing: found \[\[.*\(list\) returned"),
        (squeezed, r"squeezed: found an mx.array of float32 of the shape \(24,\) returned"),
        (masking, r"masking: found an mx.array of bool of the shape \(1, 24\) returned"),
    ],
    ids=["none", "list", "shape", "dtype"],
)
def test_a_processor_that_returns_no_logits_is_named(processor, found):
    """An AttributeError or a broadcast far from the processor that is to blame."""
    found = f"^logits_processors: {found}; expected an mx.array of floats of the shape"
    made = chooser({"logits_processors": (processor,)})
    position = Position(mx.array(PREFIX), mx.array([0]))
    with pytest.raises(InputError, match=found):
        made.target_weights(mx.array(logits(1)), position, None, None)


def test_a_processor_whose_start_makes_none():
    """ "NoneType is not callable", in the middle of a round."""

    class Empty:
        def start(self, prompt_tokens):
            return None

    with pytest.raises(InputError, match=r"^logits_processors: start of .*Empty: found None"):
        chooser({"logits_processors": (Empty(),)})
    bare = type("Bare", (), {"start": 3})()
    with pytest.raises(InputError, match=r"^logits_processors: found .*; expected functions"):
        chooser({"logits_processors": (bare,)})


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty", "logit_bias"])
def test_integers_beyond_those_of_mlx_are_numbers_too(name):
    """A RuntimeError, and a server's 500, for a penalty of 10**30, which is within its range."""
    sampling = Sampling(**{name: {1: 10**30} if name == "logit_bias" else 10**30})
    sampling.check()
    (processor,) = make_processors(sampling, 0)
    found = processor(mx.array([1, 1]), mx.zeros((1, 4)))
    assert abs(found[0, 1].item()) >= 1e30 and found[0, 2].item() == 0
