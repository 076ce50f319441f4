"""DeepSeek V4's target against the numbers of the reference implementations, in float32."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from helpers.deepseek_v4 import FOLDER, check_close, model, numbers, read
from mlx.utils import tree_flatten

from dspark_mlx.caches.deepseek_v4 import MOST_TAKEN_BACK, CompressedRows
from dspark_mlx.deepseek_v4.config import ModelArgs
from dspark_mlx.deepseek_v4.hyper_connections import (
    balanced,
    copies_of,
    plainly_balanced,
    reduce,
)
from dspark_mlx.deepseek_v4.rotary import Rotary
from dspark_mlx.errors import InputError
from dspark_mlx.system.files import write_json
from dspark_mlx.targets.deepseek_v4 import attention, compression
from dspark_mlx.targets.network import open_network
from dspark_mlx.targets.tap import Target

GOLDEN = numbers("target_golden")
TOKENS = GOLDEN["input_ids"].astype(mx.int32)
TAPS = (2, 3, 4)


@pytest.fixture(scope="module")
def target():
    target = Target(model(), TAPS, "golden")
    yield target
    target.close()


def test_a_prefill_equals_the_reference():
    """Anything that is computed in another way; two texts at once."""
    check_close(model()(TOKENS), GOLDEN["logits"])


@pytest.mark.parametrize("size", [1, 3, 5, 16])
def test_chunks_equal_the_reference(size):
    """A mask that is the same for all rows, a window's half that a call forgets, a choice of
    entries that is not each row's own."""
    cache = model().make_cache()
    parts = [TOKENS[:, start : start + size] for start in range(0, TOKENS.shape[1], size)]
    check_close(mx.concatenate([model()(part, cache=cache) for part in parts], 1), GOLDEN["logits"])


def test_taps_are_means_over_the_copies(target):
    """Taps of one copy, or of the stream that enters a layer."""
    logits, taps = target(TOKENS[0], target.new_caches())
    check_close(logits, GOLDEN["logits"][0])
    check_close(mx.concatenate(taps, axis=-1), GOLDEN["taps"][0])


def test_parts_of_a_layer_equal_the_reference():
    """Errors that cancel, or that only larger inputs would show."""
    streams = copies_of(model().embed(TOKENS[:1]), 4)
    for i, layer in enumerate(model().layers):
        into, weights, comb = layer.hc_attn(streams)
        x = reduce(streams, into)
        cache, normed = layer.attn.make_cache(), layer.attn_norm(x)
        output = layer.attn(normed, cache)
        if i < 3:
            for name, found in (("reduced", x), ("post", weights), ("comb", comb)):
                check_close(found[0], GOLDEN[f"layer{i}.hc_attn.{name}"])
            check_close(output[0], GOLDEN[f"layer{i}.attention.output"])
        if i in (1, 2):
            check_close(cache.compressed.entries[0], GOLDEN[f"layer{i}.compressed_kv"])
        if i == 1:
            _check_indexer(layer.attn, normed, cache)
        if i in (0, 1, 2, 4):
            between = _after_attention(layer, streams)
            after = reduce(between, layer.hc_ffn(between)[0])
            _check_router(layer.ffn.gate(layer.ffn_norm(after), TOKENS[:1]), i)
        streams = layer(streams, layer.attn.make_cache(), TOKENS[:1])


def _after_attention(layer, streams):
    """The copies between a layer's attention and its experts."""
    ffn = layer.ffn
    layer.ffn = lambda x, tokens: mx.zeros_like(x)
    seen = []
    mixing = layer.hc_ffn
    layer.hc_ffn = lambda copies: seen.append(copies) or mixing(copies)
    try:
        layer(streams, layer.attn.make_cache(), TOKENS[:1])
    finally:
        layer.ffn, layer.hc_ffn = ffn, mixing
    return seen[0]


def _check_indexer(attention, x, cache):
    low, keys = attention.low_rank_queries(x), cache.index.entries
    check_close(keys[0], GOLDEN["layer1.index.keys"])
    scores = attention.indexer.scores(x, low, keys, 0, attention.rotary)
    check_close(scores[0], GOLDEN["layer1.index.scores"])
    chosen = attention.indexer(x, low, attention.make_cache().index, 0, attention.rotary)
    expected = np.array(GOLDEN["layer1.index.selected"])
    assert [set(row) for row in np.array(chosen[0])] == [set(row) for row in expected]


def _check_router(found, layer):
    experts, weights = (np.array(part[0]) for part in found)
    names = [f"layer{layer}.router.{name}" for name in ("experts", "weights")]
    wanted, of = (np.array(GOLDEN[name]) for name in names)
    order, ordered = np.argsort(experts, axis=-1), np.argsort(wanted, axis=-1)
    assert (np.take_along_axis(experts, order, -1) == np.take_along_axis(wanted, ordered, -1)).all()
    mine, theirs = np.take_along_axis(weights, order, -1), np.take_along_axis(of, ordered, -1)
    assert np.abs(mine - theirs).max() < 1e-5


def test_both_rotations_have_the_references_steps():
    """YaRN where the base has none, a ramp that is off by one pair."""
    args = ModelArgs.from_dict(read("config"))
    for name, ratio in (("main", 0), ("compress", 4)):
        check_close(1 / Rotary.of_layer(args, ratio)._periods, GOLDEN[f"rope.{name}.inv_freq"])


@pytest.mark.parametrize("case", range(16))
def test_rows_taken_back_leave_nothing(target, case):
    """A window that lost what the block pushed out; an entry of a rejected row; a window that was
    opened again without its raw rows, in every phase of both compressions."""
    row = read("rollback")["cases"][case]
    caches = target.new_caches()
    target(TOKENS[0, : row["prefix_length"]], caches)
    _, _, rollback = target.verify(mx.array(row["block"]), caches)
    rollback.keep(row["keep"])
    logits, _ = target(mx.array(row["next"]), caches)
    check_close(logits, numbers("rollback")["next_logits"][case])


def test_a_long_prompt_keeps_no_raw_rows(target):
    """Memory of a prompt's chunk that stays until the next forward; what is let go being wrong."""
    long = mx.concatenate([TOKENS[0]] * 4)[: MOST_TAKEN_BACK + 30]
    caches, fresh = target.new_caches(), target.new_caches()
    target(long, caches)
    for cache in caches[1:3]:
        assert cache.compressed.values.shape[1] < cache.compressed.ratio
        assert cache.window.shape[1] == cache.window_size - 1
    target(long[:200], fresh)
    target(long[200:], fresh)
    check_close(target(TOKENS[1, :6], caches)[0], target(TOKENS[1, :6], fresh)[0])


def test_packed_weights_stay_packed():
    """FP8 and FP4 that are unpacked on the way, which a release's size forbids."""
    network, config = open_network(FOLDER)
    held = dict(tree_flatten(network.parameters()))
    assert held["layers.0.ffn.experts.gate_proj.weight"].dtype == mx.uint32
    assert held["layers.1.attn.wo_a.weight"].shape == (2, 16, 24)
    assert held["layers.1.attn.indexer.wq_b.scales"].dtype == mx.uint8
    modes = {m.mode for _, m in network.named_modules() if hasattr(m, "mode")}
    assert modes == {"mxfp4", "mxfp8"}
    assert "quantization_config" not in config


def test_a_missing_expert_is_named(tmp_path):
    """A checkpoint of which a shard is missing, loaded with other experts' numbers."""
    (tmp_path / "config.json").write_bytes((FOLDER / "config.json").read_bytes())
    tensors = {
        name: tensor
        for name, tensor in numbers("model").items()
        if not name.startswith("layers.2.ffn.experts.7.w3")
    }
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    with pytest.raises(InputError, match=r"7 tensors for layers\.2\.ffn\.experts\.up_proj"):
        open_network(tmp_path)


def test_rounds_in_a_row_equal_a_prefill(target):
    """What is wrong only behind a row of rollbacks: 14 rounds that keep 1 to 6 of 6 rows."""
    committed, caches = TOKENS[0, :19].tolist(), target.new_caches()
    target(mx.array(committed), caches)
    rng = np.random.default_rng(0)
    for i in range(14):
        rows, keep = rng.integers(0, 512, 6).tolist(), 1 + (5 * i) % 6
        logits, _, rollback = target.verify(mx.array(rows), caches)
        rollback.keep(keep)
        committed += rows[:keep]
    fresh, _ = target(mx.array(committed), target.new_caches())
    check_close(logits[:keep], fresh[-keep:])


def test_rows_in_parts_equal_the_reference(monkeypatch):
    """A part's rows at the positions of the first one, or without the window before them."""
    monkeypatch.setattr(attention, "_ROWS_AT_ONCE", 7)
    monkeypatch.setattr(compression, "_MOST_SCORES", 2 * 16 * 25 * 3)
    cache = model().make_cache()
    parts = [TOKENS[:, :60], TOKENS[:, 60:]]
    check_close(mx.concatenate([model()(part, cache=cache) for part in parts], 1), GOLDEN["logits"])


def test_mlx_lms_balance_is_the_same():
    """A later mlx-lm whose private function does something else."""
    comb, eps = mx.exp(mx.random.normal((2, 3, 4, 4), key=mx.random.key(0))), mx.array([1e-6])
    for iters in (1, 20):
        check_close(
            balanced(comb, iters=iters, eps=eps), plainly_balanced(comb, iters=iters, eps=eps)
        )


@pytest.mark.parametrize("layer", [1, 2], ids=["overlapping", "apart"])
def test_entries_outgrow_their_room(layer):
    """Entries lost or moved where the array that holds them grows, with rows taken back before."""
    attn, rng = model().layers[layer].attn, np.random.default_rng(0)
    ratio = attn.compressor._ratio
    x = mx.array(rng.standard_normal((1, 270 * ratio, 64)).astype(np.float32))
    whole, pieces = (CompressedRows(ratio, overlaps=layer == 1) for _ in range(2))
    offset = 0
    attn.compressor(x, whole, 0, attn.rotary)
    while offset < x.shape[1]:
        rows = x[:, offset : offset + int(rng.integers(1, 60))]
        attn.compressor(rows, pieces, offset, attn.rotary)
        taken = int(rng.integers(0, rows.shape[1]))
        if taken:
            pieces.drop(taken)
        offset += rows.shape[1] - taken
    assert pieces.count == whole.count == 270
    check_close(pieces.entries, whole.entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"swiglu_limit": None}, "no swiglu_limit; expected a DeepSeek V4 config"),
        ({"hc_sinkhorn_iters": 10**9}, "hc_sinkhorn_iters: found 1000000000"),
        ({"index_topk": 0}, "index_topk: found 0"),
    ],
)
def test_a_config_that_writes_another_text_is_refused(tmp_path, change, message):
    """Activations without their limit, rounds without end, rows that see no entry."""
    (tmp_path / "model.safetensors").symlink_to(FOLDER / "model.safetensors")
    write_json(tmp_path / "config.json", read("config") | change)
    with pytest.raises(InputError, match=message):
        open_network(tmp_path)


def test_a_table_of_other_experts_is_refused(tmp_path):
    """Numbers from behind the experts' weights, for the tokens that no check decodes."""
    tensors = numbers("model")
    name = "layers.0.ffn.gate.tid2eid"
    tensors[name] = tensors[name] + 1
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    write_json(tmp_path / "config.json", read("config"))
    with pytest.raises(InputError, match=f"{name}: experts 1 to 8 of 8"):
        open_network(tmp_path)
