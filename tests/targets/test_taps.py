"""Taps: what they record is right, and recording it changes not one bit of a logit."""

from __future__ import annotations

import mlx.core as mx
import pytest
from helpers.pairs import tokens_of, traces
from helpers.tiny_models import FAMILIES, LAYERS, random_tokens, tiny
from mlx_lm.models.cache import make_prompt_cache

from dspark_mlx.errors import InputError
from dspark_mlx.targets.tap import Target
from dspark_mlx.targets.tap_check import check_taps, probe_logits

SPLITS = (7, 4, 1)
TAPS = (-1, 0, LAYERS - 1)


def cached_logits(model, tokens: mx.array) -> list[mx.array]:
    """The bare model over a prefill, several rows and one row."""
    caches, rows, start = make_prompt_cache(model), [], 0
    for width in SPLITS:
        rows.append(model(tokens[None, start : start + width], cache=caches)[0])
        start += width
    mx.eval(rows)
    return rows


def tapped_logits(target: Target, tokens: mx.array) -> tuple[list[mx.array], list[mx.array]]:
    """As above through the target; also each tap's rows, joined."""
    caches, rows, taps, start = make_prompt_cache(target.model), [], [], 0
    for width in SPLITS:
        logits, recorded = target(tokens[start : start + width], caches)
        rows.append(logits)
        taps.append(recorded)
        start += width
    joined = [mx.concatenate(list(parts)) for parts in zip(*taps, strict=True)]
    mx.eval(rows, joined)
    return rows, joined


def same(a: list[mx.array], b: list[mx.array]) -> bool:
    return all(mx.array_equal(x, y).item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_bit_equal_before_during_and_after(family):
    """A layer loop of our own, or a wrapper that changes what a layer is given or gives back; a
    close() that leaves a class behind."""
    model, tokens = tiny(family), random_tokens(sum(SPLITS))
    classes = [type(layer) for layer in model.layers]
    before = cached_logits(model, tokens)
    target = Target(model, TAPS, family)
    assert target.num_layers == LAYERS
    assert (target.vocab_size, target.hidden_size) == (64, 64)
    during, taps = tapped_logits(target, tokens)
    assert same(before, during)
    assert [tap.shape for tap in taps] == [(sum(SPLITS), target.hidden_size)] * len(TAPS)
    assert not mx.array_equal(taps[0], taps[1]).item()
    target.close()
    assert [type(layer) for layer in model.layers] == classes
    assert same(before, cached_logits(model, tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_check_taps_accepts_every_family(family):
    """The check at load refusing a family that works."""
    model = tiny(family)
    untapped = probe_logits(model)
    target = Target(model, TAPS, family)
    check_taps(model, target, untapped, family)
    target.close()


def test_check_taps_refuses_other_logits():
    """A check at load that compares nothing."""
    model = tiny("llama")
    target = Target(model, TAPS, "tiny llama")
    with pytest.raises(InputError, match="tiny llama: found other logits"):
        check_taps(model, target, probe_logits(model) + 1e-6, "tiny llama")


def test_tapped_values_equal_layers_run_by_hand():
    """A tap that is a layer off, or records the input for the output."""
    model, tokens = tiny("llama"), random_tokens(sum(SPLITS))
    x = model.model.embed_tokens(tokens[None])
    by_hand = [x]
    for layer in model.layers:
        x = layer(x, "causal", None)
        by_hand.append(x)
    target = Target(model, range(-1, LAYERS), "llama")
    _, taps = tapped_logits(target, tokens)
    for tap, expected in zip(taps, by_hand, strict=True):
        assert mx.allclose(tap, expected[0], rtol=1e-4, atol=1e-5).item()
    target.close()


@pytest.mark.parametrize(
    "family, scale", [("llama", 1), ("gemma", 8), ("gemma3_text", 8), ("granite", 3)]
)
def test_tap_minus_one_is_what_enters_layer_0(family, scale):
    """The bare table taken for the embedding output in families that scale it; a scale on the
    rows that the drafter shares."""
    model, tokens = tiny(family), random_tokens(5)
    table = model.model.embed_tokens.weight
    target = Target(model, (-1,), family)
    _, (tap,) = target(tokens, make_prompt_cache(model))
    assert mx.allclose(tap, table[tokens] * scale, rtol=1e-6).item()
    assert mx.array_equal(target.embed(tokens), table[tokens]).item()
    target.close()


def test_taps_come_in_the_order_asked_for():
    """Taps sorted by layer where the drafter's config gives another order."""
    model, tokens = tiny("qwen3"), random_tokens(4)
    ascending = Target(model, (0, 2), "a")
    _, (low, high) = ascending(tokens, make_prompt_cache(model))
    mx.eval(low, high)
    ascending.close()
    descending = Target(model, (2, 0), "b")
    _, (first, second) = descending(tokens, make_prompt_cache(model))
    assert mx.array_equal(first, high).item() and mx.array_equal(second, low).item()
    descending.close()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "cohere", "granite", "gpt2"])
def test_shared_head_is_the_bare_matrix(family):
    """A softcap or logit scale applied to the drafter's base logits; a tied head not found."""
    model = tiny(family)
    target = Target(model, (), family)
    head = getattr(model, "lm_head", None)
    matrix = target._tables.embedding.weight if head is None else head.weight
    hidden = mx.random.normal((3, 64), key=mx.random.key(2))
    assert mx.allclose(target.logits(hidden), hidden @ matrix.T, rtol=1e-4, atol=1e-4).item()


def test_double_tapping_is_refused():
    """Two targets on one model, whose recordings would mix."""
    model = tiny("llama")
    first = Target(model, (1,), "tiny llama")
    with pytest.raises(InputError, match="tiny llama: found a model that is tapped already"):
        Target(model, (1,), "tiny llama")
    first.close()
    Target(model, (1,), "tiny llama").close()


@pytest.mark.parametrize("taps", [(0, LAYERS), (-2,)])
def test_taps_outside_the_model_are_refused(taps):
    """Negative indices that count from the end, or an IndexError."""
    with pytest.raises(InputError, match=r"tiny: found 3 layers; expected layers to tap"):
        Target(tiny("llama"), taps, "tiny")


def test_other_instances_stay_untouched():
    """Patching a class of mlx-lm for the whole process."""
    model, other = tiny("llama"), tiny("llama")
    target = Target(model, (0,), "tiny")
    assert type(other.layers[0]) is not type(model.layers[0])
    assert type(other.layers[0]).__call__ is not type(model.layers[0]).__call__
    assert type(model.layers[1]) is type(other.layers[1])
    assert set(dict(model.parameters())) == set(dict(other.parameters()))
    target.close()


def test_untapped_block_restores_and_taps_again():
    """Comparing with the bare model and forgetting to tap it again."""
    model, tokens = tiny("llama"), random_tokens(3)
    bare = type(model.layers[0])
    target = Target(model, (0,), "tiny")
    with target.untapped():
        assert type(model.layers[0]) is bare
    _, (tap,) = target(tokens, make_prompt_cache(model))
    assert tap.shape == (3, 64)
    target.close()


@pytest.mark.parametrize("step", [1, 3, 9, 10])
def test_chunked_prefill_commits_the_same_tokens(pair, step):
    """A chunk's features missing from the drafter's context, or out of order."""
    decoder = pair("vanilla")
    prompt = traces("vanilla")[5]["prompt_ids"]

    def run(size):
        rounds = list(decoder.rounds(prompt, 32, stop_tokens=(), prefill_step_size=size))
        return tokens_of(rounds), [done.accepted for done in rounds]

    assert run(step) == run(2048)
