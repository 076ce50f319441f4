"""DeepSeek V4's embedded head against the reference's numbers, in float32."""

from __future__ import annotations

import dataclasses
import shutil

import mlx.core as mx
import pytest
from helpers.deepseek_v4 import FOLDER, check_close, model, numbers
from helpers.golden_rounds import FEEDS
from helpers.observed import observed

from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.convert.packagings.deepseek_v4 import _canonical
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.errors import InputError
from dspark_mlx.pairs.stored import read_drafter

GOLDEN = numbers("drafter_golden")
TAPS = numbers("target_golden")["taps"][0]
ROUNDS = range(4)
WIDTH = 64


def assembled(stored, dtype=mx.float32, dequantize=True):
    network = model()
    return assemble(
        stored.config, stored.tensors, network.embed, network.lm_head, dtype, dequantize
    )


@pytest.fixture(scope="module")
def drafter():
    return assembled(read_drafter(FOLDER))


def taps_until(start: int, begin: int = 0) -> list[mx.array]:
    return [TAPS[begin:start, i : i + WIDTH] for i in range(0, 3 * WIDTH, WIDTH)]


def round_of(index: int) -> dict[str, mx.array]:
    prefix = f"round{index}."
    return {k.removeprefix(prefix): v[0] for k, v in GOLDEN.items() if k.startswith(prefix)}


def check_block(drafter, context, values):
    """The block after a context, and what the confidence head read."""
    read = []
    confidence = drafter._confidence
    drafter._confidence = lambda rows, embeddings: read.append(rows) or confidence(rows, embeddings)
    try:
        draft = observed(drafter, context, values["draft_input_ids"][:1].astype(mx.int32))
    finally:
        drafter._confidence = confidence
    assert draft.tokens.tolist() == values["tokens"].tolist()
    check_close(read[0], values["reduced"])
    check_close(draft.base_logits, values["base_logits"])
    check_close(draft.logits, values["logits"])
    check_close(draft.confidence_logits, values["confidence_logits"])


@pytest.mark.parametrize("feed", FEEDS.values(), ids=FEEDS)
@pytest.mark.parametrize("index", ROUNDS)
def test_rounds_equal_the_reference(drafter, index, feed):
    """Rows of the block or of the ring that are not seen, a confidence that reads normed rows, a
    ring that depends on how its rows arrived."""
    values = round_of(index)
    start = int(values["start"].item())
    context = drafter.new_context()
    feed(drafter, context, taps_until(start))
    assert context.length == start
    check_block(drafter, context, values)
    for stage, ring in enumerate(context.caches):
        check_close(ring.newest[0], values["context_kv"][stage])
        assert ring.offset == start


def test_one_request_grows_through_all_rounds(drafter):
    """Rows of a block that stay in a ring."""
    context, begin = drafter.new_context(), 0
    for index in ROUNDS:
        values = round_of(index)
        start = int(values["start"].item())
        drafter.extend(context, taps_until(start, begin), mx.arange(begin, start))
        check_block(drafter, context, values)
        begin = start


def test_rows_of_the_projection_equal_the_reference(drafter):
    values = round_of(3)
    positions = values["context_positions"].astype(mx.int32)
    check_close(drafter._projection(TAPS[positions]), values["main_x"])


def test_a_converted_head_is_the_embedded_one(tmp_path):
    """Another packing or other values by way of the canonical folder; the head left packed."""
    config = convert_drafter(FOLDER, tmp_path / "head", progress=False)
    converted, embedded = read_drafter(tmp_path / "head"), read_drafter(FOLDER)
    assert converted.config == embedded.config == config
    assert converted.tensors.keys() == embedded.tensors.keys()
    for name, tensor in embedded.tensors.items():
        assert mx.array_equal(tensor, converted.tensors[name]).item(), name
    packing = config.quantization
    assert packing is not None
    assert packing.mode_of("layers.1.ffn.experts.3.w2") == "mxfp4"
    assert packing.mode_of("layers.1.attn.wo_b") == packing.mode_of("fc") == "mxfp8"
    assert packing.of("confidence_head.proj") is packing.of("layers.0.hc_attn.fn") is None


def test_packed_and_plain_weights_draft_the_same():
    """Scales of other rows where weights stay packed, as they do on a GPU."""
    stored = read_drafter(FOLDER)
    drafter, values = assembled(stored, dequantize=False), round_of(1)
    context = drafter.new_context()
    drafter.extend(context, taps_until(10), mx.arange(10))
    draft = observed(drafter, context, values["draft_input_ids"][:1].astype(mx.int32))
    assert draft.tokens.tolist() == values["tokens"].tolist()
    check_close(draft.logits, values["logits"])
    held = drafter._stages.layers[0].ffn.experts.gate_proj
    assert held.mode == "mxfp4" and held.weight.dtype == mx.uint32


def test_other_bits_are_affine(tmp_path):
    """A head whose experts cannot be made smaller for a smaller machine."""
    config = convert_drafter(
        FOLDER,
        tmp_path / "head",
        quantize=True,
        q_bits=8,
        q_group_size=32,
        q_exceptions={"ffn.experts": 2},
        progress=False,
    )
    assert config.quantization is not None
    assert config.quantization.of("layers.2.ffn.experts.7.w1") == (2, 32)
    assert config.quantization.of("layers.2.attn.wkv") == (8, 32)
    assert config.quantization.of("layers.2.ffn.gate") is None
    drafter = assembled(read_drafter(tmp_path / "head"), dequantize=False)
    context = drafter.new_context()
    drafter.extend(context, taps_until(10), mx.arange(10))
    draft = observed(drafter, context, mx.array([3]))
    assert mx.isfinite(draft.logits).all().item() and draft.tokens.shape == (5,)


# Tensors of the releases' stages, which their shards list.
COUNTS = (1568, 1565, 1572)


def test_the_releases_counts_are_reproduced():
    """A tensor of V4-Flash's stages that the format has no name for, or one too many."""
    flash = dataclasses.replace(read_drafter(FOLDER).config, num_experts=256)
    plain = ("hc_", "gate", "norm", "markov", "confidence", "attn_sink")
    counts = [0, 0, 0]
    matrices = (f"{name}.weight" for name in flash.matrix_shapes())
    for name in (*matrices, *flash.vector_shapes()):
        first, last = name.startswith(("fc.", "hidden_norm.")), not name.startswith("layers.")
        stage = int(name.split(".")[1]) if not last else 0 if first else 2
        packed = name.endswith(".weight") and not any(
            part in name.replace("gate_proj", "w1") for part in plain
        )
        counts[stage] += 2 if packed else 1
    assert tuple(counts) == COUNTS


def test_copies_of_the_targets_tables_are_left_out():
    """Exports that repeat the embedding in every stage, refused as unknown tensors."""
    assert _canonical("mtp.1.emb.tok_emb.weight") is _canonical("mtp.2.head.weight") is None
    assert _canonical("layers.0.attn.wkv.weight") is _canonical("embed.weight") is None
    assert _canonical("mtp.1.hc_ffn_fn") == "layers.1.hc_ffn.fn.weight"


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        (
            "mtp.1.attn.wkv.scale",
            lambda t: mx.repeat(t, 2, 0),
            r"wkv\.scale.*uint8 \[2, 1\] for uint8 \[48, 64\]",
        ),
        ("mtp.1.ffn.experts.3.w1.scale", lambda t: t[:-1], r"uint8 \[31, 2\] for int8"),
        ("mtp.2.attn.wo_b.scale", lambda t: None, r"layers\.2\.attn\.wo_b\.weight.*uint8"),
        ("mtp.0.ffn.gate.bias", lambda t: None, r"no tensor layers\.0\.ffn\.gate\.bias"),
        ("mtp.2.attn_norm.weight", lambda t: t * mx.nan, "NaN"),
    ],
)
def test_a_damaged_head_is_refused(tmp_path, name, edit, words):
    """Scales of other blocks, bytes taken for weights, a stage that lacks a part."""
    shutil.copy(FOLDER / "config.json", tmp_path)
    tensors = numbers("model")
    tensors[name] = edit(tensors[name])
    kept = {n: t for n, t in tensors.items() if t is not None}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), kept)
    with pytest.raises(InputError, match=words):
        read_drafter(tmp_path)
