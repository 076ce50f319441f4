"""Numbers that are not finite: a drafter's decide nothing, a target's or processor's are named.

The drafters' weights are spoiled so that some blocks are good up to a slot: one row of the
sequential head's table makes the slot behind that token NaN, and the ones before it stay drafts.
"""

from __future__ import annotations

import shutil
import warnings

import mlx.core as mx
import numpy as np
import pytest
from helpers.pairs import TARGET, golden, tokens_of
from helpers.reference_settings import reference
from helpers.tiny_models import tiny
from helpers.toys import PROMPT, exact, misfit, sampled, toy_engine, toy_target

from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.decoder import Decoder
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.errors import InputError
from dspark_mlx.load import load
from dspark_mlx.replay.record import judged_drafts
from dspark_mlx.sampling.chooser import Chooser
from dspark_mlx.sampling.hindsight import Hindsight
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.targets.tap import Target
from dspark_mlx.targets.tap_check import check_taps, probe_logits

VOCABULARY = 8
TEXTS = 150
W1, W2 = "markov_head.markov_w1.weight", "markov_head.markov_w2.weight"
FINAL_NORM, CONFIDENCE = "norm.weight", "confidence_head.proj.bias"


def set_row(name: str, row: int, value: float):
    """A change of a drafter's tensors: one row of one of them."""

    def change(tensors: dict[str, mx.array]) -> None:
        tensors[name] = mx.array(tensors[name])
        tensors[name][row] = value

    return change


SPOILED = {
    "behind one token": set_row(W1, 6, np.nan),
    "one column": set_row(W2, 2, np.nan),
    "infinite": set_row(W2, 2, np.inf),
    "everything": set_row(FINAL_NORM, 0, np.nan),
}
RULES = {
    "block": {},
    "token": {"verification": "token"},
    "reproducible": {"reproducible": True},
    "greedy drafts": {"draft_temperature": 0.0},
    "top-k": {"top_k": 5},
    "penalty": {"repetition_penalty": 1.4},
}

_QUICK = (("block", "behind one token"), ("token", "behind one token"), ("block", "one column"))


@pytest.fixture
def target():
    made = toy_target(VOCABULARY)
    yield made
    made.close()


def decode(engine: Engine, prompt=PROMPT, max_tokens=12, prefill_step_size=2048, **settings):
    sampling = Sampling(**settings)
    sampler = make_sampler(sampling, engine.target.vocab_size, len(prompt))
    return rounds(
        engine,
        prompt,
        max_tokens=max_tokens,
        stop_tokens=(),
        sampler=sampler,
        prefill_step_size=prefill_step_size,
    )


def plain(engine: Engine) -> Engine:
    return Engine(engine.target, None, engine.scheduler)


@pytest.mark.parametrize(
    ("rule", "spoiled"),
    [
        *_QUICK,
        *(
            pytest.param(rule, spoiled, marks=pytest.mark.slow)
            for rule in RULES
            for spoiled in SPOILED
            if (rule, spoiled) not in _QUICK
        ),
    ],
)
def test_the_text_has_the_targets_distribution(target, rule, spoiled):
    """NaN drafts that were accepted: nearly every second token was id 0 under the block rule."""
    settings = {"temperature": 1.0, **RULES[rule]}
    engine = toy_engine(target, FullScheduler(), change=SPOILED[spoiled])
    samplers = (
        make_sampler(Sampling(seed=5, **settings), VOCABULARY, len(PROMPT), i) for i in range(TEXTS)
    )
    counts = sampled(engine, samplers, gamma=4)
    assert misfit(counts, exact(target, reference(**RULES[rule]))) < 1


def test_the_slots_before_are_judged_as_usual(target):
    """A whole block thrown away for its last slots."""
    good, bad = (
        toy_engine(target, FullScheduler(), change=change)
        for change in (lambda tensors: None, SPOILED["behind one token"])
    )
    accepted = [
        sum(r.accepted for seed in range(40) for r in decode(e, temperature=1.0, seed=seed))
        for e in (good, bad)
    ]
    assert 0.3 * accepted[0] < accepted[1] < accepted[0]


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.0, "seed": 2, "reproducible": True}], ids=str
)
def test_the_rule_of_equality_accepts_none(target, spoiled, settings):
    """A NaN draft, id 0, that counts as accepted where the target happens to choose 0."""
    engine = toy_engine(target, FullScheduler(), change=SPOILED[spoiled])
    found = list(decode(engine, max_tokens=40, **settings))
    assert tokens_of(found) == tokens_of(decode(plain(engine), max_tokens=40, **settings))
    if spoiled != "behind one token":
        assert sum(r.accepted for r in found) == 0


@pytest.mark.parametrize("head", ["none", "eagle3"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafters_without_a_sequential_head(target, head, temperature):
    engine = toy_engine(target, FullScheduler(), head, change=SPOILED["everything"])
    found = list(decode(engine, temperature=temperature, seed=3))
    assert len(tokens_of(found)) == 12
    assert sum(r.accepted for r in found) == 0


@pytest.mark.parametrize("name", ["threshold:0.1", "fixed:2", "full"])
def test_confidences_that_are_nan_count_as_0(target, name):
    """NaN in a scheduler's sums, in the records, or a crash."""
    engine = toy_engine(target, make_scheduler(name), change=set_row(CONFIDENCE, 0, np.nan))
    found = list(decode(engine, max_tokens=20))
    assert tokens_of(found) == tokens_of(decode(plain(engine), max_tokens=20))
    assert all(c == 0 for r in found for c in r.confidence)
    assert any(r.accepted for r in found) == (name != "threshold:0.1")


@pytest.mark.parametrize("spoiled", [SPOILED["everything"], set_row(CONFIDENCE, 0, np.nan)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_is_said_once(target, tmp_path, spoiled, temperature):
    """A warning a round, or none."""
    engine = toy_engine(target, FullScheduler(), change=spoiled)
    decoder = Decoder(engine, tmp_path, {}, tmp_path / "my-drafter")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for seed in range(3):
            list(decoder.rounds(PROMPT, 12, temperature=temperature, seed=seed))
            list(decoder.plain().rounds(PROMPT, 12, temperature=temperature, seed=seed))
    (message,) = [str(w.message) for w in said]
    assert "my-drafter" in message and "not finite" in message and "\n" not in message


def test_a_good_drafter_is_not_warned_of(target, tmp_path):
    decoder = Decoder(toy_engine(target, FullScheduler()), tmp_path, {}, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(decoder.rounds(PROMPT, 12, temperature=1.0, top_k=3, seed=1))
        list(decoder.rounds(PROMPT, 12))


def spoiled_target(token: int) -> Target:
    """A target that is NaN as soon as its text has a certain token."""
    made = toy_target(VOCABULARY)
    table = made.model.model.embed_tokens
    table.weight[token] = np.nan
    mx.eval(made.model.parameters())
    return made


@pytest.mark.parametrize("drafting", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.5, "reproducible": True},
        {"repetition_penalty": 1.2},
        {"temperature": 1.0, "verification": "token", "logprobs": 2},
    ],
    ids=str,
)
def test_a_target_that_is_not_finite_ends_the_request(drafting, settings):
    """ "!!!!" for ever, and exit 0."""
    target = spoiled_target(token=4)
    # Token 4 is forced as the third of the text, and the next one cannot be chosen.
    after = len(PROMPT) + 2

    def force(tokens: mx.array, logits: mx.array) -> mx.array:
        forced = mx.where(mx.arange(VOCABULARY) == 4, 0.0, -mx.inf)[None]
        others = mx.where(mx.arange(VOCABULARY) == 4, -mx.inf, logits)
        return forced if tokens.size == after else others

    engine = toy_engine(target, FullScheduler())
    engine = engine if drafting else plain(engine)
    settings = {"seed": 1, **settings, "logits_processors": [force]}
    text = []
    with pytest.raises(InputError, match=r"toy: .*not finite .* position ") as refused:
        for done in decode(engine, **settings):
            text += done.tokens
    # NaN of a draft's row reaches the rows before it, as nothing times NaN.
    assert refused.value.found.endswith(f"position {len(PROMPT) + len(text)}")
    assert text.count(4) <= (len(text) == 3)
    if not drafting:
        assert len(text) == 3
    with pytest.raises(InputError, match=r"toy: .*not finite .* position 5; "):
        list(decode(engine, prompt=(1, 2, 4, 3, 1), prefill_step_size=2, **settings))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 1}], ids=str)
def test_one_damaged_logit_is_enough(value, settings):
    """NaN in one column, that the likeliest token or top-k passes by."""
    model = tiny("llama", vocab_size=VOCABULARY)
    model.lm_head.weight[5] = value
    target = Target(model, (), "some folder")
    with pytest.raises(InputError, match=r"some folder: .*not finite"):
        list(decode(Engine(target, None, FullScheduler()), **settings))


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 1}], ids=str)
def test_a_target_without_any_token(settings):
    """-inf in every logit, which no processor made; -inf in some is the target's right."""
    target = toy_target(VOCABULARY)
    model = target.model
    original = type(model)
    for less, fine in ((mx.array([-mx.inf] * 3 + [0.0] * 5), True), (mx.array(-mx.inf), False)):
        added = {
            "__call__": lambda self, *a, less=less, **k: original.__call__(self, *a, **k) + less
        }
        model.__class__ = type("Less", (original,), added)
        engine = toy_engine(target, FullScheduler())
        if fine:
            assert min(tokens_of(decode(engine, max_tokens=30, **settings))) >= 3
            continue
        with pytest.raises(InputError, match=r"toy: .*not finite"):
            list(decode(engine, **settings))


PROCESSORS = {
    "NaN": lambda tokens, logits: logits * np.nan,
    "one NaN": lambda tokens, logits: mx.where(mx.arange(VOCABULARY) == 3, np.nan, logits),
    "infinite": lambda tokens, logits: mx.where(mx.arange(VOCABULARY) == 3, np.inf, logits),
}


@pytest.mark.parametrize("drafting", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_is_named(target, name, temperature, drafting):
    """A processor's NaN that chooses token 0, or is laid to the target's account."""
    engine = toy_engine(target, FullScheduler())

    def later(tokens, logits):
        return PROCESSORS[name](tokens, logits) if tokens.size == 6 else logits

    request = decode(
        engine if drafting else plain(engine),
        temperature=temperature,
        seed=1,
        logits_processors=[later],
    )
    with pytest.raises(InputError, match=r"^logits_processors: found NaN or \+inf .* position 6"):
        list(request)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 1}], ids=str)
def test_a_block_does_not_pass_by_a_processor_that_leaves_nothing(target, settings):
    """A draft accepted where no token is left, because only the block's last row was looked at."""

    def nothing_at_6(tokens, logits):
        return mx.full(logits.shape, -mx.inf) if tokens.size == 6 else logits

    engine = toy_engine(target, FullScheduler())
    request = decode(engine, logits_processors=[nothing_at_6], **settings)
    with pytest.raises(InputError, match=r"no token left to choose .* position 6"):
        list(request)


def test_a_processors_own_minus_infinity_is_legal(target):
    def only_odd(tokens, logits):
        return mx.where(mx.arange(VOCABULARY) % 2 == 0, -mx.inf, logits)

    engine = toy_engine(target, FullScheduler())
    found = tokens_of(decode(engine, max_tokens=30, logits_processors=[only_odd]))
    assert len(found) == 30 and all(token % 2 for token in found)


@pytest.mark.parametrize(
    ("value", "found"),
    [(np.nan, "NaN or infinity in .*mlp.down_proj.weight"), (3e38, "logits that are not finite")],
)
@pytest.mark.parametrize("drafter", [False, "vanilla"])
def test_a_damaged_target_is_refused_at_load(tmp_path, drafter, value, found):
    """Taps blamed for other logits, because NaN does not equal itself; weights that overflow."""
    folder = tmp_path / "damaged"
    shutil.copytree(TARGET, folder)
    tensors = read_tensors(folder)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][0] = value
    mx.eval(tensors)  # what is not read yet is in the file that is written
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "mlx"})
    with pytest.raises(InputError, match=f"damaged: found {found}"):
        load(folder, drafter and golden(drafter), "full")


def test_taps_are_not_blamed():
    model = tiny("llama")
    model.lm_head.weight[5] = np.nan
    untapped = probe_logits(model)
    target = Target(model, (1,), "tiny llama")
    with pytest.raises(InputError, match="not finite"):
        check_taps(model, target, untapped, "tiny llama")


def test_rounds_seen_in_hindsight_keep_none_of_them():
    """Chances that are NaN in a calibration's records."""
    text = mx.array([1, 2, 3], dtype=mx.int32)
    logprobs = mx.full((3, VOCABULARY), float(np.log(1 / VOCABULARY)))
    chooser = Chooser(Sampling(temperature=1.0), [])
    for block in (True, False):
        pick = Hindsight(chooser, text, logprobs, mx.random.key(3), block)
        drawn: list[mx.array] = []
        for slot in range(3):
            row = mx.zeros((1, VOCABULARY)) if slot == 0 else mx.full((1, VOCABULARY), np.nan)
            drawn.append(pick(row, None, drawn)[0])
        kept, chances = np.array(pick.outcome)
        np.testing.assert_allclose(chances, [1, 0, 0], atol=1e-6)
        np.testing.assert_array_equal(kept, [1, 0, 0])


def test_recorded_greedy_drafts_count_none_of_them(target):
    engine = toy_engine(target, FullScheduler(), change=SPOILED["everything"])
    taps = [mx.zeros((len(PROMPT) + 8, 32))] * 2
    found = judged_drafts(engine.drafter, PROMPT, [0] * 8, taps)
    assert [accepted for _, accepted in found] == [0] * 4
