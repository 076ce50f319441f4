"""A network and a tokenizer that the application has loaded already."""

from __future__ import annotations

import mlx.core as mx
import mlx_lm
import pytest
from helpers.loadable import loadable
from helpers.pairs import golden
from helpers.worded import worded_target
from mlx.utils import tree_flatten

import dspark_mlx
from dspark_mlx import InputError
from dspark_mlx.profiling.pair import Pair

MESSAGES = [{"role": "user", "content": "w5 w6 w7"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return worded_target(tmp_path_factory.mktemp("given") / "target")


@pytest.fixture
def loaded(folder):
    return mlx_lm.load(str(folder))


def test_a_given_pair_decodes_as_a_folders(folder, loaded):
    """Another drafter, other end tokens, or another template than the folder's."""
    given = dspark_mlx.load(loaded, golden("vanilla"), "full")
    usual = dspark_mlx.load(folder, golden("vanilla"), "full")
    assert given.generate(MESSAGES, 24) == usual.generate(MESSAGES, 24)
    assert given.stop_tokens == usual.stop_tokens and given.max_length == usual.max_length
    assert (given.is_given, usual.is_given) == (True, False)
    done = list(given.rounds([5, 6], 24, stop_tokens=()))
    assert any(round_.drafted for round_ in done)
    other = dspark_mlx.add_drafter(given, golden("gated"), "full")
    assert other.generate(MESSAGES, 24) == usual.generate(MESSAGES, 24)
    assert other.is_given and other.tokenizer is given.tokenizer


def test_the_network_stays_as_it_is(loaded):
    """An application whose own weights are cast to float32 behind its back."""
    network, _ = loaded
    network.set_dtype(mx.bfloat16)
    before = dict(tree_flatten(network.parameters()))
    decoder = dspark_mlx.load(loaded, drafter=False)
    assert decoder.generate([5, 6], 3, stop_tokens=()) is not None
    after = dict(tree_flatten(network.parameters()))
    assert decoder.precision == "stored"
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_a_tokenizer_of_transformers_serves(folder, loaded):
    """AttributeError deep in a request."""
    network, tokenizer = loaded
    decoder = dspark_mlx.load((network, tokenizer._tokenizer), drafter=False)
    usual = dspark_mlx.load(folder, drafter=False)
    assert decoder.generate(MESSAGES, 12) == usual.generate(MESSAGES, 12)


def test_its_profile_is_its_weights(loaded):
    """A key that all given networks share, or that changes from run to run."""
    network, _ = loaded
    decoder = dspark_mlx.load(loaded, golden("vanilla"), "full")
    key = Pair.of(decoder).key()
    assert Pair.of(decoder.with_scheduler(decoder.engine.scheduler)).key() == key
    head = network.model.norm.weight
    network.model.norm.weight = head * 1.5
    assert Pair.of(decoder).key() != key
    network.model.norm.weight = head
    assert Pair.of(decoder).key() == key


def test_checks_of_load_are_made(loaded, tmp_path):
    """NaN, a drafter for another target, or caches that are not known, met in the first request."""
    network, _ = loaded
    with pytest.raises(InputError, match="heads of size 16"):
        dspark_mlx.load(loaded, drafter=False, kv_bits=4)
    other = mlx_lm.load(str(loadable(tmp_path / "other")))
    with pytest.raises(InputError, match="3 layers"):
        dspark_mlx.load(other, golden("vanilla"), "full")
    with pytest.raises(InputError, match="no drafter"):
        dspark_mlx.load(loaded)
    network.model.norm.weight = network.model.norm.weight * float("nan")
    with pytest.raises(InputError, match=r"NaN or infinity in model\.norm\.weight"):
        dspark_mlx.load(loaded, drafter=False)


@pytest.mark.parametrize("which", range(7))
def test_what_is_no_such_pair_is_refused(loaded, which, tmp_path):
    """AttributeError, dropout in a text, or a precision that changes the application's weights."""
    network, tokenizer = loaded
    cases = [
        (((network,), {}), "model: found a tuple of 1"),
        (((tokenizer, network), {}), "model[0]: found"),
        (((network, "tokenizer"), {}), "model[1]: found"),
        ((loaded, {"precision": "float32"}), "precision: found"),
        ((loaded, {"precision": "int7"}), "precision: found"),
        ((loaded, {"adapter_path": "somewhere"}), "adapter_path: found"),
        ((loaded, {}), "model[0]: found training mode"),
    ]
    (model, settings), says = cases[which]
    if "training" in says:
        network.train()
    with pytest.raises(InputError) as caught:
        dspark_mlx.load(model, drafter=False, **settings)
    assert str(caught.value).startswith(says)


def test_one_network_has_one_decoder(tmp_path):
    """Taps of two decoders on the same layers."""
    loaded = mlx_lm.load(str(loadable(tmp_path / "target")))
    first = dspark_mlx.load(loaded, drafter=False)
    assert first.plain().generate([5, 6], 2, stop_tokens=()) is not None
