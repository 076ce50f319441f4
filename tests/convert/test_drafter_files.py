"""Converted drafters: what is stored, quantised or not, and the cache of conversions."""

from __future__ import annotations

import os
from typing import Any

import mlx.core as mx
import pytest
from helpers.observed import observed
from helpers.pairs import DRAFTERS, TARGET, checkpoint, golden, tokens_of, traces

import dspark_mlx
from dspark_mlx.checkpoint.quantization import QUANTIZED_BITS
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.drafters.dspark.config import DSparkConfig
from dspark_mlx.errors import InputError
from dspark_mlx.system.files import read_json

WEIGHTS = "model.safetensors"
COPIES = {"embed_tokens.weight", "lm_head.weight"}


def stored(folder) -> dict[str, mx.array]:
    tensors: Any = mx.load(str(folder / WEIGHTS))
    return tensors


def first_draft(decoder):
    """The block after a golden context, without a target forward."""
    file = mx.load(str(golden("vanilla") / "drafter_golden.safetensors"))
    rows = file["context_features"][0, :20]
    drafter = decoder.engine.drafter
    context = drafter.new_context()
    taps = [rows[:, i : i + 64] for i in range(0, 192, 64)]
    drafter.extend(context, taps, mx.zeros((rows.shape[0],), dtype=mx.int32))
    return observed(drafter, context, mx.array([9]))


@pytest.mark.parametrize("name", DRAFTERS)
def test_conversion_changes_no_bit(name, tmp_path):
    """A tensor cast, transposed, dropped or renamed to another one's place."""
    source = checkpoint(name, tmp_path / "source")
    written = convert_drafter(source, tmp_path / "out", progress=False)
    before, after = stored(source), stored(tmp_path / "out")
    assert set(after) == set(before) - COPIES
    for key, tensor in after.items():
        assert tensor.dtype == before[key].dtype
        assert mx.array_equal(tensor, before[key]).item()
    assert not written.owns_embedding and not written.owns_head
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", WEIGHTS]


@pytest.mark.parametrize("bits", QUANTIZED_BITS)
def test_quantized_drafters_load_and_run(bits, tmp_path):
    """Packed shapes that the check or the fused matrices get wrong at odd bit widths; output that
    depends on the drafter's precision."""
    source = checkpoint("conf_hidden_only", tmp_path / "source")
    out = tmp_path / "out"
    written = convert_drafter(
        source, out, quantize=True, q_bits=bits, q_group_size=32, progress=False
    )
    assert written.quantization.bits == bits
    after = stored(out)
    assert after["layers.0.mlp.up_proj.weight"].shape == (128, 64 * bits // 32)
    assert after["layers.0.mlp.up_proj.scales"].shape == (128, 2)
    # 64 columns would allow it: the confidence head stays exact by rule.
    head = after["confidence_head.proj.weight"]
    assert mx.array_equal(head, stored(source)["confidence_head.proj.weight"]).item()
    trace = traces("conf_hidden_only")[0]
    prompt = trace["prompt_ids"]
    for precision in ("float32", "stored"):
        decoder = dspark_mlx.load(TARGET, out, "full", precision=precision)
        got = tokens_of(decoder.rounds(prompt, 12))
        assert prompt + got == trace["output_ids"][: len(prompt) + 12]
        decoder.engine.target.close()


def test_stored_and_dequantized_arithmetic_agree(tmp_path):
    """Scales and biases of fused or stacked matrices in another order than their rows."""
    source, out = checkpoint("vanilla", tmp_path / "source"), tmp_path / "out"
    exceptions = {"k_proj": 8, "layers.1.mlp.gate_proj": None, "o_proj": 3}
    settings = {"q_bits": 4, "q_group_size": 32, "q_exceptions": exceptions}
    convert_drafter(source, out, quantize=True, progress=False, **settings)
    plain = first_draft(dspark_mlx.load(TARGET, out, "full", precision="float32"))
    packed = first_draft(dspark_mlx.load(TARGET, out, "full", precision="stored"))
    exact = first_draft(dspark_mlx.load(TARGET, source, "full"))
    assert mx.allclose(plain.hidden, packed.hidden, rtol=1e-3, atol=1e-3).item()
    assert not mx.allclose(plain.hidden, exact.hidden, rtol=1e-3, atol=1e-3).item()


def test_eight_bits_are_close_to_the_original(tmp_path):
    """A quantised drafter that runs and drafts nonsense."""
    source, out = checkpoint("vanilla", tmp_path / "source"), tmp_path / "out"
    convert_drafter(source, out, quantize=True, q_bits=8, q_group_size=32, progress=False)
    exact = first_draft(dspark_mlx.load(TARGET, source, "full"))
    near = first_draft(dspark_mlx.load(TARGET, out, "full"))
    error = mx.abs(near.hidden - exact.hidden).max() / mx.abs(exact.hidden).max()
    assert error.item() < 0.05


def test_exceptions_are_honoured(tmp_path):
    """An exception that loses against a shorter one, or is written down and not applied."""
    source, out = checkpoint("vanilla", tmp_path / "source"), tmp_path / "out"
    exceptions = {"layers.0": 8, "layers.0.mlp": None, "fc": 2}
    settings = {"q_bits": 4, "q_group_size": 32, "q_exceptions": exceptions}
    convert_drafter(source, out, quantize=True, progress=False, **settings)
    after, config = stored(out), read_json(out / "config.json")
    read = DSparkConfig.from_dict(config, out).quantization
    expected = {
        "layers.0.self_attn.q_proj": (8, 32),
        "layers.0.mlp.up_proj": None,
        "layers.1.mlp.up_proj": (4, 32),
        "fc": (2, 32),
        "confidence_head.proj": None,
        # Rank 8 is no whole number of groups.
        "markov_head.markov_w1": None,
    }
    columns = {"fc": 192}
    for name, quantized in expected.items():
        assert read.of(name) == quantized
        assert (f"{name}.scales" in after) == (quantized is not None)
        if quantized:
            packed = columns.get(name, 64) * quantized[0] // 32
            assert after[f"{name}.weight"].shape[1] == packed
    assert first_draft(dspark_mlx.load(TARGET, out, "full")).tokens.shape == (5,)


def perturbed_copies(source):
    """A checkpoint whose own embedding and head are not the target's."""
    tensors = stored(source)
    for name in COPIES:
        tensors[name] = tensors[name][::-1] * 1.5
    mx.eval(tensors)
    (source / WEIGHTS).unlink()
    mx.save_safetensors(str(source / WEIGHTS), tensors)
    return tensors


def test_keep_embeddings_stores_and_uses_them(tmp_path):
    """A drafter with an embedding and head of its own that reads the target's, or the reverse."""
    source = checkpoint("vanilla", tmp_path / "source")
    tensors = perturbed_copies(source)
    kept = convert_drafter(source, tmp_path / "kept", keep_embeddings=True, progress=False)
    shared = convert_drafter(source, tmp_path / "shared", progress=False)
    assert kept.owns_embedding and kept.owns_head
    assert not shared.owns_embedding and not shared.owns_head
    assert set(stored(tmp_path / "kept")) == set(stored(source))
    own = first_draft(dspark_mlx.load(TARGET, tmp_path / "kept", "full"))
    others = first_draft(dspark_mlx.load(TARGET, tmp_path / "shared", "full"))
    head = tensors["lm_head.weight"]
    assert mx.allclose(own.base_logits, own.hidden @ head.T, rtol=1e-4, atol=1e-4).item()
    target_head = mx.load(str(TARGET / WEIGHTS))["lm_head.weight"]
    expected = others.hidden @ target_head.T
    assert mx.allclose(others.base_logits, expected, rtol=1e-4, atol=1e-4).item()
    assert not mx.allclose(own.hidden, others.hidden, rtol=1e-2, atol=1e-2).item()


def conversions(cache_home) -> dict[str, int]:
    """Converted drafter folders in the cache, with the time of their weights."""
    folders = (cache_home / "dspark_mlx" / "drafters").iterdir()
    return {folder.name: (folder / WEIGHTS).stat().st_mtime_ns for folder in folders}


def test_load_converts_once_and_again_when_a_file_changed(tmp_path, cache_home):
    """Converting at every load, or a stale conversion used for a changed checkpoint."""
    source = checkpoint("vanilla", tmp_path / "source")
    first = first_draft(dspark_mlx.load(TARGET, source, "full"))
    made = conversions(cache_home)
    assert len(made) == 1
    again = first_draft(dspark_mlx.load(TARGET, source, "full"))
    assert conversions(cache_home) == made
    assert mx.array_equal(first.hidden, again.hidden).item()
    tensors = stored(source)
    tensors["fc.weight"] = tensors["fc.weight"] * 2 + 0.1
    mx.eval(tensors)
    (source / WEIGHTS).unlink()
    mx.save_safetensors(str(source / WEIGHTS), tensors)
    os.utime(source / WEIGHTS, ns=(1, 1))
    changed = first_draft(dspark_mlx.load(TARGET, source, "full"))
    assert len(conversions(cache_home)) == 2
    assert not mx.allclose(changed.hidden, first.hidden, rtol=1e-3).item()


@pytest.mark.parametrize("quantize", [False, True])
def test_a_quantized_canonical_folder_says_what_to_do(tmp_path, quantize):
    """That quantizing twice loses more, as an answer to someone who asked for no quantizing."""
    source = tmp_path / "source"
    convert_drafter(golden("vanilla"), source, quantize=True, q_group_size=32, progress=False)
    with pytest.raises(InputError, match=r"a canonical folder with weights of 4 bits.*as it is"):
        convert_drafter(source, tmp_path / "to", quantize=quantize, q_bits=8, progress=False)
    assert not (tmp_path / "to").exists()


def test_a_canonical_folder_is_used_in_place(tmp_path, cache_home):
    """A converted folder converted once more, or copied into the cache."""
    source, out = checkpoint("rnn", tmp_path / "source"), tmp_path / "out"
    convert_drafter(source, out, progress=False)
    dspark_mlx.load(TARGET, out, "full")
    assert not cache_home.exists()


def test_load_decodes_plainly_without_a_drafter():
    """drafter=False that still drafts, or another output than with one."""
    trace = traces("vanilla")[0]
    prompt = trace["prompt_ids"]
    decoder = dspark_mlx.load(TARGET, drafter=False)
    assert decoder.engine.drafter is None
    rounds = list(decoder.rounds(prompt, 16))
    assert prompt + tokens_of(rounds) == trace["output_ids"][: len(prompt) + 16]
    assert {done.drafted for done in rounds} == {0}


def test_code_beside_the_weights_is_not_run(tmp_path):
    """auto_map of a checkpoint followed."""
    source = checkpoint("vanilla", tmp_path / "source")
    ran = tmp_path / "ran"
    (source / "modeling.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    text = (source / "config.json").read_text()
    text = text.replace("{", '{"auto_map": {"AutoModel": "modeling.Model"},', 1)
    (source / "config.json").write_text(text)
    convert_drafter(source, tmp_path / "out", progress=False)
    assert not ran.exists()
    assert not list((tmp_path / "out").glob("*.py"))


@pytest.mark.parametrize("leads", ["model.safetensors", "nowhere"])
def test_a_link_that_leads_nowhere_is_named(leads, tmp_path):
    """RuntimeError of a link to itself, which no handler of system errors knows."""
    source = checkpoint("vanilla", tmp_path / "source")
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to(leads)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        dspark_mlx.load(TARGET, source)
