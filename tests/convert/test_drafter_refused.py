"""Drafter checkpoints that cannot be used: one clear error, and nothing left on disk."""

from __future__ import annotations

import math

import mlx.core as mx
import pytest
from helpers.edits import CONFIG, WEIGHTS, config, cut, nan, pickles_only, tensors
from helpers.packaged import PACKAGED
from helpers.packaged_parts import TARGET_DEPTH
from helpers.pairs import TARGET, checkpoint

import dspark_mlx
from dspark_mlx.convert.__main__ import main
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.errors import InputError

ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
FC = {"fc__weight": lambda t: t[:, :190]}
# Name, edit, and what the message must hold: the place, the value found, the value expected.
BROKEN = {
    "weights cut off": (cut(WEIGHTS, 0.6), (WEIGHTS, "bytes", "a whole safetensors file")),
    "weights empty": (cut(WEIGHTS, 0), (WEIGHTS, "0 bytes", "a whole safetensors file")),
    "tensor missing": (tensors(norm__weight=None), ("no tensor norm.weight", "every tensor")),
    "tensor extra": (
        tensors(layers__2__extra=lambda t: mx.zeros((2,))),
        ("layers.2.extra", "tensors only"),
    ),
    "wrong shape": (
        tensors(hidden_norm__weight=lambda t: t[:-1]),
        ("hidden_norm.weight", "[63]", "[64]"),
    ),
    "fc of no whole taps": (tensors(**FC), ("fc.weight", "[64, 190]", "3 x 64 columns")),
    "fc of one dimension": (
        tensors(fc__weight=lambda t: t.reshape(-1)),
        ("fc.weight", "[12288]", "expected"),
    ),
    "NaN": (tensors(norm__weight=nan), ("norm.weight", "NaN", "finite")),
    "infinite": (
        tensors(fc__weight=lambda t: t.at[0, 0].add(mx.inf)),
        ("fc.weight", "infinite", "finite"),
    ),
    "wrong type": (
        tensors(norm__weight=lambda t: t.astype(mx.int32)),
        ("norm.weight", "int32", "floating"),
    ),
    "architecture": (
        config(architectures=["FancyModel"]),
        ("FancyModel", "packagings known here", "DeepSpec"),
    ),
    "config key missing": (config(block_size=None), (CONFIG, "no block_size", "key block_size")),
    "rope theta missing": (config(rope_parameters=None), (CONFIG, "no rope_theta", "expected")),
    "config key of another type": (
        config(hidden_size="64"),
        (CONFIG, "hidden_size '64'", "whole number"),
    ),
    "norm epsilon no number": (config(rms_norm_eps="small"), (CONFIG, "rms_norm_eps", "small")),
    "rope parameters no object": (config(rope_parameters=[1]), (CONFIG, "rope_parameters", "[1]")),
    "rope theta no number": (
        config(rope_parameters={"rope_theta": "big"}),
        (CONFIG, "rope_theta", "big"),
    ),
    "config cut off": (cut(CONFIG, 0.5), (CONFIG, "not JSON", "a JSON object")),
    "config no object": (
        lambda folder: (folder / CONFIG).write_text("[]"),
        (CONFIG, "a JSON list", "a JSON object"),
    ),
    "config missing": (
        lambda folder: (folder / CONFIG).unlink(),
        (CONFIG, "0 .gguf files", "exactly one .gguf file"),
    ),
    "pickles only": (pickles_only, ("pickled weights only (pytorch_model.bin)", "*.safetensors")),
    "rope type": (config(rope_parameters=ROPE), (CONFIG, "rope type 'yarn'", "'default'")),
    "taps past the target": (
        config(target_layer_ids=[0, 2, 9]),
        (CONFIG, "taps [0, 2, 9]", "-1..5"),
    ),
    "taps not ascending": (config(target_layer_ids=[2, 0, 4]), (CONFIG, "taps [2, 0, 4]", "-1..5")),
    "mask outside": (config(mask_token_id=512), (CONFIG, "mask_token_id 512", "vocabulary")),
    "one tap fewer": (
        config(target_layer_ids=[0, 2]),
        ("fc.weight [64, 192] with taps [0, 2]", "2 x 64 columns"),
    ),
    "no taps": (config(target_layer_ids=None), (CONFIG, "no target_layer_ids")),
    "layers that fill the memory": (
        config(num_hidden_layers=10**9, layer_types=None),
        (CONFIG, "num_hidden_layers 1000000000", "tensors"),
    ),
    "sizes that fill the memory": (
        config(hidden_size=10**12),
        (CONFIG, "hidden_size 1000000000000", "below 2**31"),
    ),
    "block that fills the memory": (
        config(block_size=10**9),
        (CONFIG, "block_size 1000000000", "from 1 to 256"),
    ),
    "norm epsilon NaN": (config(rms_norm_eps=math.nan), (CONFIG, "rms_norm_eps nan", "number")),
    "rope theta infinite": (
        config(rope_parameters={"rope_theta": math.inf}),
        (CONFIG, "rope_theta inf", "number"),
    ),
    "rope theta negative": (
        config(rope_parameters={"rope_theta": -1e4}),
        (CONFIG, "rope_theta -10000.0", "number from 1"),
    ),
    "vocabulary": (config(vocab_size=500), ("shape [512, 8]", "[500, 8]")),
    "head": (config(markov_head_type="lstm"), (CONFIG, "'lstm'", "vanilla")),
    "activation": (config(hidden_act="relu"), (CONFIG, "'relu'", "'silu'")),
    "sliding": (
        config(layer_types=["sliding_attention"] * 2),
        (CONFIG, "sliding_attention", "each full_attention"),
    ),
}


def leftovers(folder) -> list[str]:
    """Everything in a folder's tree that a conversion made or was making."""
    return [str(p) for p in folder.rglob("*") if p.name.endswith((".partial", ".old"))]


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_refused(case, tmp_path, cache_home):
    """A traceback from the inside, a message without the name of what is wrong, a broken drafter
    that loads, or a half-written output."""
    edit, parts = BROKEN[case]
    source = checkpoint("vanilla", tmp_path / "source")
    edit(source)
    out = tmp_path / "out"
    with pytest.raises(InputError) as converting:
        convert_drafter(source, out / "drafter", progress=False)
    with pytest.raises(InputError) as loading:
        dspark_mlx.load(TARGET, source)
    for error in (converting, loading):
        message = str(error.value)
        assert str(source) in message
        assert [part for part in parts if part not in message] == []
    assert not (out / "drafter").exists()
    assert not any(cache_home.rglob("model.safetensors"))
    assert leftovers(tmp_path) == []


def smaller_vocabulary(folder):
    rows = {f"markov_head__markov_w{i}__weight": lambda t: t[:500] for i in (1, 2)}
    own = {"embed_tokens__weight": None, "lm_head__weight": None}
    tensors(**rows, **own)(folder)
    config(vocab_size=500)(folder)


def narrower_taps(folder):
    tensors(fc__weight=lambda t: t[:, :96])(folder)
    config(target_hidden_size=32)(folder)


OTHER_TARGETS = {
    "vocabulary": (smaller_vocabulary, "vocabulary 500", "vocabulary 512"),
    "depth": (config(num_target_layers=8), "number of layers 8", "number of layers 6"),
    "width": (narrower_taps, "hidden size 32", "hidden size 64"),
}


@pytest.mark.parametrize("case", OTHER_TARGETS)
def test_a_drafter_for_another_target_is_refused(case, tmp_path):
    """A pair that drafts garbage, whole in itself but made for another target."""
    edit, found, expected = OTHER_TARGETS[case]
    source = checkpoint("vanilla", tmp_path / "source")
    edit(source)
    with pytest.raises(InputError) as error:
        dspark_mlx.load(TARGET, source)
    assert found in error.value.found and expected in error.value.expected
    assert str(TARGET) in str(error.value)


def test_an_existing_output_stays_as_it_is(tmp_path):
    """An output folder overwritten without being asked to."""
    source = checkpoint("vanilla", tmp_path / "source")
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="out: found an existing file or non-empty folder"):
        convert_drafter(source, out, progress=False)
    assert [p.name for p in out.iterdir()] == ["notes.txt"]
    convert_drafter(source, out, overwrite=True, progress=False)
    assert sorted(p.name for p in out.iterdir()) == [CONFIG, WEIGHTS]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize(
    "stop", [OSError("disk full"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"]
)
def test_an_interrupted_conversion_leaves_nothing(stop, tmp_path, monkeypatch):
    """A half-written folder that the next load takes for a converted one."""
    source = checkpoint("vanilla", tmp_path / "source")

    def fail(path, data):
        raise stop

    monkeypatch.setattr("dspark_mlx.convert.canonical_folder.write_json", fail)
    with pytest.raises(type(stop)):
        convert_drafter(source, tmp_path / "out", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


SAID = [
    ("deepspec_qwen3", {"target_layers": TARGET_DEPTH}, None),
    ("deepspec_qwen3", {"target_layers": 9}, "--target-layers: found 9; expected 6, as"),
    ("dflash_nested", {"target_layers": 9}, "--target-layers: found 9; expected 6, as"),
    ("speculators_dspark", {"target_layers": 6}, "--target-layers: found 6; expected none"),
    ("dflash", {"kv_shared_layers": 2}, "--kv-shared-layers: found 2; expected none"),
    ("dflash", {"target_layers": -1}, "--target-layers: found -1; expected a whole number"),
]


@pytest.mark.parametrize("name, said, message", SAID)
def test_what_is_said_of_a_target_is_not_ignored(tmp_path, name, said, message):
    """A checkpoint's own number, or none, taken in place of what the command asks for."""
    source, out = tmp_path / "source", tmp_path / "out"
    PACKAGED[name](source)
    if message is None:
        config = convert_drafter(source, out, progress=False, **said)
        # The canonical folder, which is converted to be quantised, knows the number too.
        again = convert_drafter(out, tmp_path / "again", progress=False, **said)
        assert again == config and config.target_num_layers == TARGET_DEPTH
        with pytest.raises(InputError, match="--target-layers: found 9; expected 6"):
            convert_drafter(out, tmp_path / "other", progress=False, target_layers=9)
    else:
        with pytest.raises(InputError) as error:
            convert_drafter(source, out, progress=False, **said)
        assert message in str(error.value) and not out.exists()


def test_a_prediction_head_is_told_nothing_of_its_target(tmp_path):
    """A number that nobody reads, of a checkpoint that has its own."""
    command = ["drafter", "--from", str(tmp_path), "--to", str(tmp_path / "out"), "--mtp"]
    with pytest.raises(InputError, match="--target-layers: found 4; expected none beside --mtp"):
        main([*command, "--target-layers", "4"])
