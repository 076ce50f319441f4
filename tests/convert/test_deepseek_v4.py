"""DeepSeek V4 converted: the same numbers, mixed bits, and a conversion that goes on."""

from __future__ import annotations

import shutil
import signal
from collections import namedtuple

import mlx.core as mx
import pytest
from helpers import bare
from helpers.deepseek_v4 import FOLDER, check_close, numbers, read
from helpers.pairs import tokens_of
from mlx.utils import tree_flatten

import dspark_mlx
from dspark_mlx.checkpoint.block_floats import decode_fp4, decode_fp8, is_fp4
from dspark_mlx.checkpoint.precision import apply_precision
from dspark_mlx.convert.__main__ import main
from dspark_mlx.convert.deepseek_v4 import plan, run
from dspark_mlx.convert.drafter import read_as_canonical
from dspark_mlx.convert.target import convert_target
from dspark_mlx.errors import InputError
from dspark_mlx.system import resumable
from dspark_mlx.system.files import read_json, write_json
from dspark_mlx.system.memory import Memory
from dspark_mlx.targets.network import open_network

SHARD = 100_000


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(plan, "SHARD_BYTES", SHARD)


def held(folder):
    network, _ = open_network(folder)
    return dict(tree_flatten(network.parameters()))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype and mx.array_equal(array, other[name]), name


def changed(folder, change):
    """A copy of the tiny release with its tensors changed in place."""
    shutil.copytree(FOLDER, folder, ignore=lambda *_: ["drafter_golden.safetensors"])
    tensors = numbers("model")
    change(tensors)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folder


def test_a_conversion_changes_no_number(tmp_path, small_shards):
    """Experts in another order, a scale of the wrong rows, a tensor that is lost on the way."""
    out = convert_target(FOLDER, tmp_path / "out")
    assert len(list(out.glob("*.safetensors"))) > 5
    same(held(out), held(FOLDER))
    (config, tensors), (expected, released) = read_as_canonical(out), read_as_canonical(FOLDER)
    assert config == expected
    same(tensors, released)


def test_the_converted_pair_writes_the_reference_trace(tmp_path):
    """A head that `load` does not find in the new folder, or that reads it otherwise."""
    out = convert_target(FOLDER, tmp_path / "out")
    decoder = dspark_mlx.load(out, precision="float32", scheduler="threshold:0.5")
    assert decoder.drafter_folder == out
    trace = read("loop_golden")["traces"][13]
    rounds = list(decoder.rounds(trace["prompt_ids"], 64, stop_tokens=[1]))
    assert trace["prompt_ids"] + tokens_of(rounds) == trace["output_ids"]


def test_the_head_alone_is_a_drafter(tmp_path):
    """A folder of gigabytes of target where only the head was asked for."""
    out = tmp_path / "out"
    assert main(["target", "--from", str(FOLDER), "--to", str(out), "--head-only"]) == 0
    assert all(name.startswith("mtp.") for name in mx.load(str(out / "model.safetensors")))
    same(read_as_canonical(out)[1], read_as_canonical(FOLDER)[1])


def forms(folder):
    network, _ = open_network(folder)
    return {
        path: (module.mode, module.bits, module.group_size)
        for path, module in network.named_modules()
        if hasattr(module, "mode")
    }


def test_bits_by_name(tmp_path):
    """A recipe that reaches the head or attention; an exception that the recipe undoes."""
    out, command = tmp_path / "out", ["target", "--from", str(FOLDER), "--to"]
    more = ["--quant-predicate", "experts_2", "--q-except", "layers.3*down_proj=6"]
    assert main([*command, str(out), *more, "--q-except", "wo_b=none"]) == 0
    found = forms(out)
    assert found["layers.2.ffn.experts.gate_proj"] == ("affine", 2, 64)
    assert found["layers.2.ffn.experts.down_proj"] == ("affine", 2, 32)
    assert found["layers.3.ffn.experts.down_proj"] == ("affine", 6, 32)
    assert found["layers.2.attn.wq_a"] == ("mxfp8", 8, 32)
    assert "layers.2.attn.wo_b" not in found and "layers.2.ffn.gate" not in found
    head, _ = read_as_canonical(out)
    assert head.quantization.of("layers.0.ffn.experts.0.w1") == (4, 32)
    assert head.quantization.of("layers.0.attn.wo_b") is None


def test_affine_bits_are_those_of_the_values(tmp_path):
    """Codes quantized as if they were numbers, or scales of another matrix."""
    out = convert_target(FOLDER, tmp_path / "out", quantize=True, q_bits=8, q_group_size=32)
    found, released = held(out), numbers("model")
    assert forms(out)["layers.0.ffn.experts.up_proj"] == ("mxfp4", 4, 32)
    for name in ("layers.0.attn.wq_a", "layers.4.ffn.shared_experts.w1", "embed"):
        values = released[f"{name}.weight"]
        if scale := released.get(f"{name}.scale"):
            values = decode_fp8(values, scale)
        new = name.replace("w1", "gate_proj")
        parts = [found[f"{new}.{part}"] for part in ("weight", "scales", "biases")]
        assert parts[1].dtype == mx.bfloat16
        unpacked = mx.dequantize(*parts, group_size=32, bits=8)
        assert mx.abs(unpacked - values).max() < 0.02 * mx.abs(values).max()


def test_a_plain_checkpoint_is_quantized(tmp_path):
    """A checkpoint that was decoded before, whose experts are matrices of their own."""

    def decode(tensors):
        for name in [name for name in tensors if f"{name[:-6]}.weight" in tensors]:
            if name.endswith(".scale"):
                weight = f"{name[:-6]}.weight"
                decoded = decode_fp4 if is_fp4(tensors[weight]) else decode_fp8
                tensors[weight] = decoded(tensors[weight], tensors.pop(name))

    source = changed(tmp_path / "source", decode)
    whole = convert_target(source, tmp_path / "whole")
    network, _ = open_network(whole)
    tokens = mx.array([[3, 5, 7]])
    reference, _ = open_network(FOLDER)
    for each in (network, reference):
        apply_precision(each, mx.float32)
    check_close(network(tokens), reference(tokens))
    out = convert_target(source, tmp_path / "out", quantize=True, q_group_size=32)
    assert forms(out)["layers.1.ffn.experts.gate_proj"] == ("affine", 4, 32)


def test_another_type_for_what_is_plain(tmp_path):
    """Scales of one type and norms of another; what must stay exact cast as well."""
    out = convert_target(FOLDER, tmp_path / "out", quantize=True, dtype="float32")
    found = held(out)
    assert found["norm.weight"].dtype == found["layers.0.attn.wq_a.scales"].dtype == mx.float32
    assert read_json(out / "config.json")["torch_dtype"] == "float32"


@pytest.mark.parametrize("stop", [1, 30, 200])
def test_an_interrupted_conversion_goes_on(tmp_path, small_shards, monkeypatch, capsys, stop):
    """Files that are made twice, left out, or half of them; other bytes than undisturbed."""
    whole = convert_target(FOLDER, tmp_path / "whole", quantize=True)
    made, original = [], run.pieces_of

    def interrupted(output, *rest):
        if len(made) == stop:
            raise KeyboardInterrupt
        made.append(output.name)
        return original(output, *rest)

    monkeypatch.setattr(run, "pieces_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_target(FOLDER, tmp_path / "out", quantize=True)
    assert not (tmp_path / "out").exists()
    assert ("the same command goes on" in capsys.readouterr().err) == (stop > 1)
    monkeypatch.setattr(
        run, "pieces_of", lambda *given: made.append(given[0].name) or original(*given)
    )
    before = len(made)
    convert_target(FOLDER, tmp_path / "out", quantize=True)
    assert contents(tmp_path / "out") == contents(whole)
    outputs = len(set(made))
    assert len(made) - before < outputs or stop == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


DAMAGED = '{"format": "dspark_mlx unfinished folder", "format_version": 1, "files": [1]}'


KILLED = """
from pathlib import Path
from dspark_mlx.checkpoint import tensor_writer
from dspark_mlx.convert.deepseek_v4 import plan
from dspark_mlx.convert.target import convert_target
plan.SHARD_BYTES = %d
calls, write = [], tensor_writer.TensorFile.write
def dying(*given):
    calls.append(given)
    if len(calls) == 150:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*given)
tensor_writer.TensorFile.write = dying
convert_target(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_conversion_goes_on(tmp_path, small_shards):
    """A half file that counts as done, a lock that nobody holds."""
    out = tmp_path / "out"
    done = bare.run(KILLED % SHARD, str(FOLDER), str(out))
    assert done.returncode == -signal.SIGKILL
    journal = read_json(tmp_path / ".out.unfinished/journal.json")
    assert journal["files"]
    convert_target(FOLDER, out)
    convert_target(FOLDER, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "journal", ["{", "[]", '{"format": 1}', DAMAGED, DAMAGED.replace("[1]", "{}")]
)
def test_a_damaged_journal_is_started_again_by_overwrite(tmp_path, journal):
    """A traceback, or an unfinished folder that only its user can remove."""
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".out.unfinished/journal.json").write_text(journal)
    with pytest.raises(InputError, match="start again with --overwrite"):
        convert_target(FOLDER, tmp_path / "out")
    convert_target(FOLDER, tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_journal_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    """A hidden folder beside the output, on a disk that takes no more files."""

    def full(*_):
        raise InputError("journal", "no space left", "a place with room")

    monkeypatch.setattr(resumable, "write_json", full)
    with pytest.raises(InputError, match="no space left"):
        convert_target(FOLDER, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_names_of_other_libraries_are_a_release_too(tmp_path):
    """A release under transformers' names, whose experts are not found."""

    def rename(tensors):
        for name in [name for name in tensors if not name.startswith("mtp.")]:
            tensors[f"model.{name.replace('.ffn.', '.mlp.')}"] = tensors.pop(name)

    source = changed(tmp_path / "source", rename)
    same(held(convert_target(source, tmp_path / "out")), held(FOLDER))
    same(held(source), held(FOLDER))


def stopped(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run, "_write_rest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert_target(FOLDER, tmp_path / "out")


def test_other_settings_do_not_go_on(tmp_path, small_shards, monkeypatch):
    """A folder of which half has 4 bits and half has 8."""
    stopped(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="not finished") as error:
        convert_target(FOLDER, tmp_path / "out", quantize=True)
    assert "--overwrite" in str(error.value)
    convert_target(FOLDER, tmp_path / "out", quantize=True, overwrite=True)
    convert_target(FOLDER, tmp_path / "whole", quantize=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_file_that_was_cut_is_made_again(tmp_path, small_shards, monkeypatch):
    """A file in the journal that is not what was written."""
    stopped(tmp_path, monkeypatch)
    first = next((tmp_path / ".out.unfinished/content").glob("model-00001-*"))
    first.write_bytes(first.read_bytes()[:-1])
    convert_target(FOLDER, tmp_path / "out")
    same(held(tmp_path / "out"), held(FOLDER))


def test_space_that_is_missing_is_said_before(tmp_path, monkeypatch, capsys):
    """Hours of work that end at a full disk, or a machine that swaps."""
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 10**6))
        with pytest.raises(InputError, match=r"1\.0 MB free on its disk; expected 1\.2 MB"):
            convert_target(FOLDER, tmp_path / "out")
    assert "1 files, 1.2 MB of disk (1.0 MB free)" in capsys.readouterr().err
    monkeypatch.setattr(run, "device_memory", lambda: Memory(10**9, 10**8, "the test"))
    with pytest.raises(InputError, match=r"100\.0 MB free of the test; expected 31\d\.\d MB"):
        convert_target(FOLDER, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def without(name):
    return lambda tensors: tensors.pop(name)


def with_values(name, value):
    return lambda tensors: tensors.update(
        {name: mx.full(tensors[name].shape, value, tensors[name].dtype)}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layers.2.ffn.experts.7.w3.weight"), "7 tensors for layers.2.ffn.experts.up_proj"),
        (without("layers.2.attn.wkv.scale"), "layers.2.attn.wkv.weight: found no scale"),
        (with_values("layers.2.attn.wkv.scale", 255), "layers.2.attn.wkv.weight: found NaN"),
        (with_values("mtp.1.attn.wkv.weight", 127), "mtp.1.attn.wkv.weight: found NaN"),
        (with_values("norm.weight", float("inf")), "norm.weight: found NaN or infinity"),
        (with_values("layers.2.attn.wkv.scale", 250), "layers.2.attn.wkv.weight: found NaN or inf"),
        (with_values("layers.2.ffn.experts.3.w1.scale", 254), "experts.3.w1.weight: found NaN or"),
        (
            with_values("layers.0.ffn.gate.tid2eid", 8),
            "found experts 8 to 8; expected experts 0 to 7",
        ),
        (
            with_values("layers.1.ffn.gate.tid2eid", -1),
            "layers.1.ffn.gate.tid2eid: found experts -1",
        ),
        (without("layers.2.attn_norm.weight"), "no layers.2.attn_norm.weight"),
        (without("mtp.2.norm.weight"), "no norm.weight"),
        (lambda t: t.update(other=mx.zeros(3)), "found other"),
    ],
)
def test_a_damaged_release_is_refused(tmp_path, change, message):
    """A checkpoint that is broken, found by the first answer."""
    source = changed(tmp_path / "source", change)
    with pytest.raises(InputError) as error:
        convert_target(source, tmp_path / "out")
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "no hidden_size"),
        ({"swiglu_limit": None}, "no swiglu_limit"),
        ({"hc_sinkhorn_iters": 10**9}, "1000 or less"),
        ({"num_hidden_layers": 6}, "no layers.5."),
        ({"num_hidden_layers": 4, "dspark_target_layer_ids": [1, 2, 3]}, "layers.4."),
        ({"num_hash_layers": 1}, "no layers.1.ffn.gate.bias"),
        ({"vocab_size": 1024}, r"expected \[1024, \d+\], as config.json has it"),
        ({"compress_ratios": [0, 4, 16, 4, 8]}, r"compressor.ape: found shape \[8, 48\]"),
        ({"compress_ratios": [0, 4, -8, 4, 8]}, "whole numbers, 0 or more"),
        ({"compress_ratios": [0, 4]}, "2 compress_ratios; expected one for each of 5 layers"),
        ({"num_attention_heads": 5}, "5 attention heads in 2 o_groups"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9"),
        ({"qk_rope_head_dim": 64}, "qk_rope_head_dim 64"),
        ({"rope_scaling": {"type": "linear", "factor": 8}}, "rope_scaling of type 'linear'"),
        ({"rope_scaling": {"type": "yarn", "factor": 8}}, "original_max_position_embeddings None"),
        ({"scoring_func": "sigmoid"}, "scoring_func 'sigmoid'"),
        ({"dspark_markov_rank": 16}, r"shape \[1, 96\]; expected \[1, 80\]"),
        ({"dspark_target_layer_ids": [2, 3]}, "fc.weight: found shape"),
        ({"dspark_noise_token_id": None}, "no dspark_noise_token_id"),
    ],
)
def test_a_config_of_other_tensors_is_refused(tmp_path, change, message):
    """Hours of work on a folder that nothing can load, or that writes another text."""
    source = changed(tmp_path / "source", lambda tensors: None)
    write_json(source / "config.json", read("config") | change)
    with pytest.raises(InputError, match=message):
        convert_target(source, tmp_path / "out", head_only="dspark_markov_rank" in change)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_has_nothing_to_act_on_is_refused(tmp_path):
    """A misspelt name that changes nothing; a converted folder; a flag of V4 alone."""
    out = convert_target(FOLDER, tmp_path / "out")
    with pytest.raises(InputError, match="quantisation exception: found expert_2"):
        convert_target(FOLDER, tmp_path / "other", q_exceptions={"expert_2": 2})
    with pytest.raises(InputError, match="in MLX's forms already"):
        convert_target(out, tmp_path / "other")
    with pytest.raises(InputError, match="--q-bits: found no -q beside it"):
        main(["target", "--from", str(FOLDER), "--to", str(tmp_path / "other"), "--q-bits", "6"])
    with pytest.raises(InputError, match="recipe: found 'two'"):
        convert_target(FOLDER, tmp_path / "other", recipe="two")
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama/config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="head_only: found one for"):
        convert_target(tmp_path / "llama", tmp_path / "other", head_only=True)
