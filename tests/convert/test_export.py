"""Drafters exported to DeepSpec's packaging: read back equal, drafting the same, or refused."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import pytest
from helpers.edits import CONFIG, WEIGHTS, config, nan, tensors
from helpers.pairs import DRAFTERS, TARGET, checkpoint, tokens_of, traces

import dspark_mlx
from dspark_mlx.calibration.by_temperature import (
    Calibrations,
    read_calibrations,
    write_calibrations,
)
from dspark_mlx.calibration.sts import identity
from dspark_mlx.convert import __main__ as command
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.errors import InputError
from dspark_mlx.system.files import read_json

KEYS = {
    "architectures",
    "model_type",
    "num_hidden_layers",
    "num_target_layers",
    "layer_types",
    "block_size",
    "mask_token_id",
    "target_layer_ids",
    "num_anchors",
    "markov_rank",
    "markov_head_type",
    "enable_confidence_head",
    "confidence_head_with_markov",
    "tie_word_embeddings",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rope_parameters",
    "rms_norm_eps",
    "attention_bias",
    "sliding_window",
    "dtype",
    "transformers_version",
}


def export(source, to, *more) -> None:
    flags = ["--from", str(source), "--target", str(TARGET), "--to", str(to)]
    assert command.main(["export", *flags, *more]) == 0


def canonical(name, tmp_path, **settings):
    source = checkpoint(name, tmp_path / "source")
    return convert_drafter(source, tmp_path / "canonical", progress=False, **settings)


@pytest.mark.parametrize("name", DRAFTERS)
def test_exported_drafters_come_back_equal(name, tmp_path):
    """A tensor lost or cast twice, a key that reads back as another convention."""
    written = canonical(name, tmp_path)
    export(tmp_path / "canonical", tmp_path / "out", "--dtype", "float32")
    before, after = (mx.load(str(tmp_path / f / WEIGHTS)) for f in ("source", "out"))
    assert set(after) == set(before)
    for key, tensor in after.items():
        assert mx.array_equal(tensor, before[key].astype(mx.float32)).item(), key
    assert convert_drafter(tmp_path / "out", tmp_path / "again", progress=False) == written
    absent = {"markov_head_type"} if written.head == "none" else set()
    absent |= set() if written.has_confidence else {"confidence_head_with_markov"}
    found = read_json(tmp_path / "out" / CONFIG)
    assert KEYS - set(found) == absent
    published = read_json(tmp_path / "source" / CONFIG)
    same = KEYS - absent - {"num_anchors", "dtype"}
    assert {key: found[key] for key in same} == {key: published[key] for key in same}


def test_an_exported_drafter_drafts_the_same(tmp_path):
    """An export that only its own reader takes."""
    canonical("rnn", tmp_path)
    export(tmp_path / "canonical", tmp_path / "out", "--dtype", "float32")
    runs, prompt = [], traces("rnn")[0]["prompt_ids"]
    for folder in ("canonical", "out"):
        decoder = dspark_mlx.load(TARGET, tmp_path / folder, "full", precision="float32")
        done = list(decoder.rounds(prompt, 16))
        runs.append((tokens_of(done), [(one.drafted, one.accepted) for one in done]))
        decoder.engine.target.close()
    assert runs[0] == runs[1]


def test_quantized_drafters_are_dequantized(tmp_path):
    """Packed words exported as weights; a default type that is not the packaging's."""
    canonical("vanilla", tmp_path, quantize=True, q_group_size=32)
    export(tmp_path / "canonical", tmp_path / "out")
    stored, after = (mx.load(str(tmp_path / f / WEIGHTS)) for f in ("canonical", "out"))
    assert {tensor.dtype for tensor in after.values()} == {mx.bfloat16}
    parts = [stored[f"fc.{x}"].astype(mx.float32) for x in ("scales", "biases")]
    plain = mx.dequantize(stored["fc.weight"], *parts, group_size=32, bits=4)
    assert mx.array_equal(after["fc.weight"], plain.astype(mx.bfloat16)).item()


def test_greedy_temperatures_travel(tmp_path):
    """A calibration lost on the way, or that of hot requests exported as the greedy one."""
    fitted = dataclasses.replace(identity(5), temperatures=(1.5, 1.0, 0.5, 2.0, 3.0))
    canonical("vanilla", tmp_path)
    write_calibrations(tmp_path / "canonical", Calibrations({0.0: fitted, 1.0: identity(5)}))
    export(tmp_path / "canonical", tmp_path / "out")
    convert_drafter(tmp_path / "out", tmp_path / "again", progress=False)
    again = read_calibrations(tmp_path / "again", 5)
    assert again.at(0.0).temperatures == fitted.temperatures


REFUSED = {
    "sinks": (config(sinks=True), "sinks True"),
    "noise levels": (config(noise_width=8), "noise_width 8"),
    "windows": (config(windows=[4, 0]), "windows (4, 0)"),
    "causal": (config(causal=[True, False]), "causal (True, False)"),
    "partial rope": (config(rope_dims=8), "rope_dims 8"),
    "interleaved": (config(rope_interleaved=True), "rope_interleaved True"),
    "yarn": (config(rope_scaling={"rope_type": "yarn"}), "rope_scaling"),
    "bonus-anchor": (config(logits_start=1), "logits_start 1"),
    "gated queries": (config(gated_queries=True), "gated_queries True"),
    "values": (config(values="keys"), "values 'keys'"),
    "scale": (config(attention_scale=1.0), "attention_scale 1.0"),
    "sandwich": (config(sandwich_norms=True), "sandwich_norms True"),
    "scalars": (config(layer_scalars=True), "layer_scalars True"),
    "activation": (config(activation="gelu_tanh"), "activation 'gelu_tanh'"),
    "embedding": (config(embedding_scale=8.0), "embedding_scale 8.0"),
    "softcap": (config(softcap=30.0), "softcap 30.0"),
    "vocabulary": (config(draft_vocab_size=40, owns_head=True), "draft_vocab_size 40"),
    "narrow target": (config(target_hidden_size=32), "target_hidden_size 32"),
    "eagle3": (config(method="eagle3"), "eagle3"),
    "other vocabulary": (config(vocab_size=400), "vocabulary 400"),
    "other depth": (config(target_num_layers=9), "number of layers 9"),
    "last layer": (config(taps=[0, 2, 5]), "a tap of the last layer, 5"),
    "published": (config(format=None), "format"),
    "tensor missing": (tensors(norm__weight=None), "no tensor norm.weight"),
    "NaN": (tensors(norm__weight=nan), "NaN"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_packaging_cannot_say_is_refused(case, tmp_path):
    """An export that other engines read as another drafter; a half-written folder left behind."""
    edit, words = REFUSED[case]
    canonical("vanilla", tmp_path)
    if case == "eagle3":
        values = read_json(tmp_path / "canonical" / CONFIG)
        names = "num_layers block_size logits_start mask_token_id head head_rank confidence"
        gone = [*names.split(), "windows", "window_by_row", "causal", "noise_width"]
        config(**{k: None for k in gone if k in values}, steps=5)(tmp_path / "canonical")
    edit(tmp_path / "canonical")
    with pytest.raises(InputError) as error:
        export(tmp_path / "canonical", tmp_path / "out")
    assert words in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["canonical", "source"]
