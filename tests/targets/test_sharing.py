"""Several drafters on one target: each reads its own taps and decodes as if it were alone."""

from __future__ import annotations

import mlx.core as mx
import pytest
from helpers.pairs import TARGET, golden, tokens_of, traces
from helpers.tiny_models import LAYERS, random_tokens, tiny

import dspark_mlx
from dspark_mlx import InputError
from dspark_mlx.load import add_drafter
from dspark_mlx.targets.tap import Target


def test_targets_of_one_model_keep_their_own_taps():
    """Taps of the other drafter, or its order; a layer that stays tapped or is tapped no longer."""
    model, tokens = tiny("llama"), random_tokens(8)
    classes = [type(layer) for layer in model.layers]
    everything = Target(model, range(-1, LAYERS), "llama")
    logits, taps = everything(tokens, None)
    everything.close()
    first = Target(model, (0, 2), "llama")
    second = first.sharing((2, -1, 1), "llama")
    for target, own in ((first, (0, 2)), (second, (2, -1, 1)), (first, (0, 2))):
        found, recorded = target(tokens, None)
        assert mx.array_equal(found, logits).item()
        pairs = zip(recorded, own, strict=True)
        assert all(mx.array_equal(tap, taps[k + 1]).item() for tap, k in pairs)
        assert not target._tapped.recorded
    with first.untapped():
        assert [type(layer) for layer in model.layers] == classes
    assert len(second(tokens, None)[1]) == 3
    with pytest.raises(InputError, match=r"layers to tap at \[9\]"):
        first.sharing((9,), "llama")
    assert len(first(tokens, None)[1]) == 2
    second.close()
    assert [type(layer) for layer in model.layers] == classes


def test_drafters_side_by_side_decode_as_alone():
    """A drafter that reads another's taps: nothing fails, it only accepts less."""
    first = dspark_mlx.load(TARGET, golden("vanilla"), "full")
    others = {name: add_drafter(first, golden(name), "full") for name in ("embedding_tap", "rnn")}
    for name, decoder in {"vanilla": first, **others}.items():
        assert decoder.engine.target.model is first.engine.target.model
        trace = traces(name)[0]
        rounds = list(decoder.rounds(trace["prompt_ids"], 48, stop_tokens=()))
        alone = dspark_mlx.load(TARGET, golden(name), "full")
        expected = list(alone.rounds(trace["prompt_ids"], 48, stop_tokens=()))
        assert [done.accepted for done in rounds] == [done.accepted for done in expected]
        assert tokens_of(rounds) == tokens_of(expected)


def test_an_unusable_second_drafter_leaves_the_first_alone():
    """A refusal that leaves the target without the first drafter's taps."""
    first = dspark_mlx.load(TARGET, golden("vanilla"), "full")
    prompt = traces("vanilla")[0]["prompt_ids"]
    with pytest.raises(InputError, match="no such file or folder"):
        add_drafter(first, TARGET.parent / "nothing")
    with pytest.raises(InputError, match="without a confidence head"):
        add_drafter(first, golden("dflash"), "threshold:0.5")
    assert len(tokens_of(first.rounds(prompt, 8, stop_tokens=()))) == 8
