"""Drafters in GGUF files: converted as their safetensors twins, and kept as they are quantised."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from helpers.edits import config as edit_config
from helpers.gguf_drafters import gguf_name, kind_of, metadata_of, write_prismml, write_twins
from helpers.gguf_writer import Raw, dequantize, quantize, write_gguf
from helpers.packaged_case import Case, close
from helpers.packaged_parts import HIDDEN, MASK, VOCAB, WINDOW
from helpers.pairs import TARGET, checkpoint, tokens_of, traces
from safetensors.numpy import load_file, save_file

import dspark_mlx
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.convert.gguf.header import read_header
from dspark_mlx.drafters.batch import Wanted
from dspark_mlx.errors import InputError
from dspark_mlx.sampling import greedy
from dspark_mlx.system.files import read_json

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
BITS = {"Q8_0": 8, "Q4_0": 4, "Q4_1": 4}
# Packaged drafters that llama.cpp's converter reads, and edits that it has keys for.
SOURCES = {
    "deepspec_qwen3": {},
    "deepspec_dflash_qwen3": {},
    "speculators_dspark": {},
    "specforge": {},
    "specforge sliding": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": WINDOW,
    },
    "dflash": {},
    "dflash_nested": {},
    "dflash2": {},
    "nemotron": {},
}


class GgufCase(Case):
    """A packaged drafter written as a GGUF file."""

    def __init__(self, name, folder, kind="F32", **changes) -> None:
        super().__init__(name.split()[0], folder)
        if name == "speculators_dspark":  # its windows are measured in a third way
            values = read_json(self.source / "config.json")["transformer_layer_config"]
            values["layer_types"] = ["full_attention"] * 3
            edit_config(transformer_layer_config=values)(self.source)
        elif edits := SOURCES[name]:
            edit_config(**edits)(self.source)
        if name == "deepspec_dflash_qwen3":  # the anchor's row is read out, without any head
            changes = {"sample_from_anchor": True} | changes
        self.file = write_twins(self.source, folder / "drafter.gguf", kind, **changes)

    def convert(self, **options):
        return convert_drafter(self.file, self.out, progress=False, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SOURCES)
def test_it_drafts_as_its_twin(tmp_path, name, kind):
    """A tap too late, ids taken for offsets, another tensor's name, another block's level."""
    case = GgufCase(name, tmp_path, kind)
    config = case.convert(keep_embeddings=True)
    expected, draft = case.expected(), case.draft(config)
    assert draft.tokens.tolist() == expected.tokens
    ids = np.arange(VOCAB) if draft.ids is None else np.array(draft.ids)
    assert close(draft.logits, expected.logits[:, ids])
    assert close(draft.hidden, expected.hidden)
    if expected.confidence_logits is not None:
        assert close(draft.confidence_logits, expected.confidence_logits)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_is_the_files(tmp_path, kind):
    """A matrix quantised again, a scale rounded, a plain type widened."""
    case = GgufCase("deepspec_qwen3", tmp_path, kind)
    config = case.convert(keep_embeddings=True)
    source = load_file(case.source / "model.safetensors")  # what the file's types keep
    stored = mx.load(str(case.out / "model.safetensors"))
    types = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
    for name, array in source.items():
        base, form = name.removesuffix(".weight"), kind_of(array, kind)
        if form not in BITS:
            assert stored[name].dtype == types[form]
            found = np.array(stored[name].astype(mx.float32))
        else:
            assert config.quantization.of(base) == (BITS[kind], 32)
            scales, biases = (stored[f"{base}.{x}"] for x in ("scales", "biases"))
            assert scales.dtype == mx.float16
            parts = (stored[name], scales.astype(mx.float32), biases.astype(mx.float32))
            found = np.array(mx.dequantize(*parts, group_size=32, bits=BITS[kind]))
        assert np.array_equal(found, array), name
    plain = [name for name in source if kind_of(source[name], kind) not in BITS]
    if kind in BITS:
        assert all(
            config.quantization.of(name.removesuffix(".weight")) is None
            for name in plain
            if source[name].ndim == 2
        )
    else:
        assert config.quantization is None


def test_types_may_be_mixed(tmp_path):
    """One kind written down for all matrices."""
    case = GgufCase("deepspec_qwen3", tmp_path, "Q4_0")
    source = load_file(case.source / "model.safetensors")
    tensors = {gguf_name(n): (a, kind_of(a, "Q4_0")) for n, a in source.items()}
    array = source["layers.1.self_attn.v_proj.weight"]
    kept = dequantize(quantize(array, "Q8_0"), "Q8_0", array.shape)
    tensors["blk.1.attn_v.weight"] = (array, "Q8_0")
    tensors["fc.weight"] = (source["fc.weight"], "BF16")
    metadata = metadata_of(read_json(case.source / "config.json"), True)
    write_gguf(case.file, metadata, tensors)
    config = case.convert()
    assert config.quantization.of("layers.0.self_attn.v_proj") == (4, 32)
    assert config.quantization.of("layers.1.self_attn.v_proj") == (8, 32)
    assert config.quantization.of("fc") is None
    stored = mx.load(str(case.out / "model.safetensors"))
    name = "layers.1.self_attn.v_proj"
    scales, biases = (stored[f"{name}.{x}"].astype(mx.float32) for x in ("scales", "biases"))
    found = mx.dequantize(stored[f"{name}.weight"], scales, biases, group_size=32, bits=8)
    assert np.array_equal(np.array(found), kept)
    assert case.draft(config).tokens.size == config.gamma


def test_it_can_be_quantized_anew(tmp_path):
    """What the file has quantised kept, though other bits were asked for."""
    case = GgufCase("deepspec_qwen3", tmp_path, "Q8_0")
    config = case.convert(quantize=True, q_bits=4, q_group_size=32)
    assert config.quantization.of("fc") == (4, 32)
    stored = mx.load(str(case.out / "model.safetensors"))
    fc = load_file(case.source / "model.safetensors")["fc.weight"]
    expected = mx.quantize(mx.array(fc), group_size=32, bits=4)
    assert mx.array_equal(stored["fc.weight"], expected[0])
    assert stored["fc.scales"].dtype == mx.float16
    assert mx.array_equal(stored["fc.scales"], expected[1].astype(mx.float16))
    assert case.draft(config).tokens.size == config.gamma


def test_early_files_have_unshifted_taps(tmp_path):
    """One shift for two keys."""
    case = GgufCase("dflash", tmp_path)
    expected = case.convert()
    source = load_file(case.source / "model.safetensors")
    tensors = {gguf_name(n): (a, kind_of(a, "F32")) for n, a in source.items()}
    values = metadata_of(read_json(case.source / "config.json"), False)
    early = {k.replace("dflash.", "dflash-draft.", 1): v for k, v in values.items()}
    early["general.architecture"] = "dflash-draft"
    taps = early.pop("dflash-draft.target_layers")
    early["dflash-draft.dflash.target_layer_ids"] = [i - 1 for i in taps]
    early["dflash-draft.dflash.mask_token_id"] = early.pop("tokenizer.ggml.mask_token_id")
    write_gguf(case.file, early, tensors)
    assert case.convert(overwrite=True) == expected


@pytest.mark.parametrize(
    "name, start", [("deepspec_qwen3", 0), ("deepspec_dflash_qwen3", 1), ("dflash", 1)]
)
def test_files_without_the_anchor_key(tmp_path, name, start):
    """A DSpark file reads the anchor's row out by default, a plain DFlash file does not."""
    case = GgufCase(name, tmp_path, sample_from_anchor=None)
    assert case.convert().logits_start == start
    for said in (True, False):
        write_twins(case.source, case.file, "F32", sample_from_anchor=said)
        assert case.convert(overwrite=True).logits_start == (0 if said else 1)


def test_causality_said_of_all_layers(tmp_path):
    case = GgufCase("dflash_nested", tmp_path, attention__causal=True)
    assert case.convert().causal == (True, True, True)


def test_load_and_convert_take_the_file(tmp_path, cache_home):
    """A GGUF drafter that only the converter reads; a folder with it alone."""
    source = checkpoint("vanilla", tmp_path / "source")
    folder = tmp_path / "gguf"
    folder.mkdir()
    file = write_twins(source, folder / "drafter.gguf", "F32")
    trace = traces("vanilla")[0]
    prompt = trace["prompt_ids"]
    for place in (file, folder):
        decoder = dspark_mlx.load(TARGET, place, "full")
        rounds = list(decoder.rounds(prompt, 16))
        assert prompt + tokens_of(rounds) == trace["output_ids"][: len(prompt) + 16]
        # Rounds as long as the reference's: the drafter is the golden one, not any drafter.
        lengths = [len(done.tokens) for done in rounds[1:-1]]
        assert lengths == trace["acceptance_lengths"][: len(lengths)]
        decoder.engine.target.close()
    assert len(list((cache_home / "dspark_mlx" / "drafters").iterdir())) == 1
    out = convert_drafter(folder, tmp_path / "out", progress=False)
    assert out == convert_drafter(file, tmp_path / "again", progress=False)


BY_NAME = {
    "PrismML's GGUF for DeepSeek-V4": {
        "general.architecture": "dspark",
        "dspark.dspark.noise_token_id": 3,
    },
    "deepseek4-dflash-draft": {"general.architecture": "deepseek4-dflash-draft"},
    "multi-token prediction": {"general.architecture": "deepseek4_mtp_support"},
    "hyper-connections": {"dflash.hyper_connection.count": 4},
    "llama.cpp's GGUF": {"tensor": "output_hc_fn.weight"},
    "LiLiCorr": {"tensor": "lilicorr.token_proj.weight"},
    "Laguna": {"dflash.decoder_arch": "laguna"},
    "Lucebox": {"tensor": "dflash.dspark.markov.w1"},
    "another exporter": {"tensor": "dspark.blk.0.attn_q.weight"},
}


@pytest.mark.parametrize("what", BY_NAME)
def test_other_gguf_dialects_are_refused_by_name(tmp_path, what):
    """Refused for a type of tensor that is not read here, such as PrismML's 42, or for a key."""
    change = dict(BY_NAME[what])
    strange = Raw(42, b"\0" * 64, (1, 32))
    tensors = {change.pop("tensor", "fc.weight"): strange}
    file = write_gguf(tmp_path / "x.gguf", {"general.architecture": "dflash"} | change, tensors)
    with pytest.raises(InputError, match=what) as error:
        convert_drafter(file, tmp_path / "out", progress=False)
    assert error.value.where == str(file)
    assert not (tmp_path / "out").exists()


BROKEN = [
    ({"block_size": None}, "no block_size; expected the llama.cpp dflash GGUF key block_size"),
    ({"block_size": "big"}, "block_size 'big'"),
    ({"target_layers": [1, 3, 5, 7, 9]}, "with taps [1, 3, 5, 7, 9]"),
    ({"target_layers": None}, "no target_layers"),
    ({"attention__head_count_kv": [2, 2]}, "attention.head_count_kv [2, 2]"),
    ({"attention__value_length": 4}, "attention.value_length 4"),
    ({"attention__layer_norm_rms_epsilon": "no"}, "rms_epsilon 'no'"),
    ({"attention__sliding_window": 8, "attention__sliding_window_pattern": 2}, "pattern 2"),
    ({"rope__scaling__type": "linear"}, "rope.scaling.type 'linear'"),
    ({"rope__scaling__type": "yarn"}, "no rope.scaling.factor"),
    ({"rope__dimension_count": 3}, "rope_dims 3"),
    ({"logit_scale": 2.0}, "logit_scale 2.0"),
    ({"block_count": 3}, "no tensor layers.2"),
    ({"general__architecture": "llama"}, "architectures llama"),
]


@pytest.mark.parametrize("changes, message", BROKEN, ids=[b[1][:24] for b in BROKEN])
def test_what_contradicts_itself_is_named(tmp_path, changes, message):
    case = GgufCase("deepspec_qwen3", tmp_path, **changes)
    with pytest.raises(InputError) as error:
        case.convert()
    assert message in str(error.value) and str(case.file) in str(error.value)
    assert not case.out.exists()


def tensor_edits():
    nan = np.full((HIDDEN,), np.nan, np.float32)
    return [
        ({"output_norm.weight": (nan, "F32")}, "norm.weight: found NaN"),
        ({"blk.0.attn_sinks.weight": (nan[:4], "F32")}, "layers.1.self_attn.attention_sink_bias"),
        ({"fc.scale": (nan, "F32")}, "unknown tensors fc.scale"),
        ({"conf_proj.weight": None}, "unknown tensors confidence_head.proj.bias"),
        ({"blk.1.ffn_up.weight": None}, "no tensor layers.1.mlp.up_proj.weight"),
        ({"d2t": Raw(27, b"\0" * 16, (2,))}, "d2t of 2 tokens"),
        ({"fc.weight": Raw(26, b"\0" * HIDDEN * HIDDEN * 12, (HIDDEN, 3 * HIDDEN))}, "int32"),
    ]


@pytest.mark.parametrize("edit, message", tensor_edits(), ids=[e[1][:20] for e in tensor_edits()])
def test_broken_tensors_are_named(tmp_path, edit, message):
    case = GgufCase("deepspec_qwen3", tmp_path)
    source = load_file(case.source / "model.safetensors")
    copies = ("embed_tokens.weight", "lm_head.weight")
    tensors = {gguf_name(n): (a, kind_of(a, "F32")) for n, a in source.items() if n not in copies}
    tensors = {name: tensor for name, tensor in (tensors | edit).items() if tensor is not None}
    write_gguf(case.file, metadata_of(read_json(case.source / "config.json"), True), tensors)
    with pytest.raises(InputError) as error:
        case.convert()
    assert message in str(error.value)
    assert not case.out.exists()


def test_a_confidence_head_may_have_no_bias(tmp_path):
    case = GgufCase("deepspec_qwen3", tmp_path)
    source = load_file(case.source / "model.safetensors")
    tensors = {gguf_name(n): (a, kind_of(a, "F32")) for n, a in source.items()}
    del tensors["conf_proj.bias"]
    write_gguf(case.file, metadata_of(read_json(case.source / "config.json"), True), tensors)
    config = case.convert(keep_embeddings=True)
    assert close(
        case.draft(config).confidence_logits,
        case.expected().confidence_logits - source["confidence_head.proj.bias"],
    )


class PrismmlCase(Case):
    """A drafter for a Bonsai target."""

    def __init__(self, folder, **changes) -> None:
        super().__init__("deepspec_qwen3", folder)
        self.file = write_prismml(self.source, folder / "drafter.gguf", **changes)

    def convert(self, **options):
        return convert_drafter(self.file, self.out, progress=False, **options)


def test_prismml_drafts_as_its_formulas(tmp_path):
    """Noise levels left out, the other way round, or cosines before sines; taps shifted by one."""
    case = PrismmlCase(tmp_path)
    config = case.convert(keep_embeddings=True)
    assert config.noise_width == 40 and config.logits_start == 0
    expected, draft = case.expected(), case.draft(config)
    assert draft.tokens.tolist() == expected.tokens
    assert close(draft.logits, expected.logits) and close(draft.hidden, expected.hidden)
    assert close(draft.confidence_logits, expected.confidence_logits)
    # What is tested matters: without the levels it drafts otherwise.
    stored = load_file(case.source / "model.safetensors")
    stored["log_snr_fc2.weight"] *= 0
    save_file(stored, case.source / "model.safetensors")
    assert not close(draft.hidden, case.expected().hidden)


def test_prismml_drafts_in_a_batch(tmp_path):
    """Levels added to the rows of one request alone."""
    case = PrismmlCase(tmp_path)
    config = case.convert()
    drafter = case.drafter(config)
    contexts = []
    for rows in (13, 7):
        context = drafter.new_context()
        taps = [mx.array(case.taps[i][:rows].astype(np.float32)) for i in config.taps]
        drafter.extend(context, taps, mx.zeros((rows,), dtype=mx.int32))
        contexts.append(context)
    alone = [drafter.draft(context, mx.array([9]), greedy) for context in contexts]
    for context in contexts:
        drafter.flush(context)
    both = drafter.batch(contexts).draft([Wanted(mx.array([9]), greedy, False)] * 2)
    for one, other in zip(alone, both, strict=True):
        assert other is not None and close(one.logits, other.logits)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"target_layers": None}, "no target_layers; expected the PrismML GGUF key"),
        ({"twice": True}, "also under another name"),
        ({"mask_token_id": None}, "no tokenizer.ggml.mask_token_id"),
        ({"log_snr_conditioning": True, "block_count": 3}, "no tensor layers.2"),
        ({"embedding_length": 31}, "hidden_norm.weight: found shape [32]; expected [31]"),
    ],
)
def test_broken_prismml_files_are_named(tmp_path, changes, message):
    twice = changes == {"twice": True}
    case = PrismmlCase(tmp_path, **({} if twice else changes))
    if twice:  # llama.cpp's name beside PrismML's
        header = read_header(case.file)
        raw = case.file.read_bytes()
        tensors = {
            name: Raw(0, raw[row.start : row.start + row.size], row.shape)
            for name, row in header.tensors.items()
        }
        tensors["fc.weight"] = tensors["dspark.fc.weight"]
        write_gguf(case.file, header.metadata, tensors)
    with pytest.raises(InputError) as error:
        case.convert()
    assert message in str(error.value)
    assert str(case.file) in str(error.value) and not case.out.exists()


def test_a_cut_file_is_refused(tmp_path):
    case = GgufCase("deepspec_qwen3", tmp_path, "Q8_0")
    whole = case.file.read_bytes()
    for share in (0.1, 0.5, 0.99):
        case.file.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match="cut off or damaged"):
            case.convert()
    assert not case.out.exists()


def test_the_source_is_not_replaced(tmp_path):
    """--overwrite with the folder that the file lies in: the file would be gone."""
    case = GgufCase("deepspec_qwen3", tmp_path)
    for place in (case.file.parent, case.file):
        with pytest.raises(InputError, match="the source, or a folder around it"):
            convert_drafter(case.file, place, overwrite=True, progress=False)
    assert case.file.exists()


def test_the_mask_is_read(tmp_path):
    assert GgufCase("specforge", tmp_path).convert().mask_token_id == MASK
