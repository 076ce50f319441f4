"""Every packaging: converted, loaded strictly, and equal to a straight-line NumPy reference."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.deepseek_v4 import FOLDER as DEEPSEEK_V4
from helpers.edits import config as edit_config
from helpers.edits import tensors as edit_tensors
from helpers.gguf_assistant import write_assistant_gguf
from helpers.gguf_drafters import write_prismml, write_twins
from helpers.gguf_ds4 import write_ds4
from helpers.packaged import PACKAGED
from helpers.packaged_assistant import write_assistant
from helpers.packaged_case import ANCHOR, Case, close
from helpers.packaged_eagle3 import EAGLE3
from helpers.packaged_llama_eagle3 import LLAMA_EAGLE3
from helpers.packaged_nemotron import NESTED as NEMOTRON
from helpers.packaged_parts import MASK, VOCAB

from dspark_mlx.calibration.by_temperature import read_calibrations
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.convert.packagings import PACKAGINGS, deepseek_v4_mtp, find_packaging
from dspark_mlx.convert.packagings.names import canonical_name
from dspark_mlx.convert.published import read_published
from dspark_mlx.errors import InputError
from dspark_mlx.system.files import read_json


@pytest.fixture
def case(request, tmp_path):
    return Case(request.param, tmp_path)


ALL = pytest.mark.parametrize("case", PACKAGED, indirect=True)


@ALL
@pytest.mark.parametrize("pieces", [1, 4])
def test_it_drafts_as_published(case, pieces):
    """Taps of another layer, another row read out, rope in other pairs, a window off by one, a
    tensor left out: nothing of this raises, it only accepts less."""
    config = case.convert(keep_embeddings=True)
    expected, draft = case.expected(), case.draft(config, pieces)
    assert draft.tokens.tolist() == expected.tokens
    ids = np.arange(VOCAB) if draft.ids is None else np.array(draft.ids)
    assert close(draft.logits, expected.logits[:, ids])
    assert np.isneginf(np.delete(expected.logits, ids, axis=1)).all()
    assert close(draft.hidden, expected.hidden)
    if expected.confidence_logits is None:
        assert draft.confidence_logits is None
    else:
        assert close(draft.confidence_logits, expected.confidence_logits)


@ALL
def test_a_packaging_is_one_of_those_known(case):
    """Two packagings that claim one file, which a converter would decide by their order."""
    raw = read_json(case.source / "config.json")
    shapes = {
        name.removeprefix("logit_head."): tensor.shape
        for name, tensor in mx.load(str(case.source / "model.safetensors")).items()
    }
    assert sum(packaging.matches(raw, shapes) for packaging in PACKAGINGS) == 1


def test_every_packaging_has_a_case(tmp_path):
    """A packaging added to the table, and no test that sees it."""
    sources = PACKAGED | {f"eagle3_{name}": write for name, write in EAGLE3.items()}
    sources |= {f"llama_eagle3_{name}": write for name, write in LLAMA_EAGLE3.items()}
    sources["gemma4_assistant"] = write_assistant
    claimed: set[str] = set()
    for name, write in sources.items():
        write(tmp_path / name)
        claimed.add(_packaging(tmp_path / name))
    file = tmp_path / "drafter.gguf"
    write_twins(tmp_path / "deepspec_qwen3", file, "F32")
    claimed.add(_packaging(file))
    write_prismml(tmp_path / "deepspec_qwen3", file)
    claimed.add(_packaging(file))
    write_assistant_gguf(tmp_path / "gemma4_assistant", file)
    claimed.add(_packaging(file))
    claimed.add(_packaging(write_ds4(tmp_path / "ds4")))
    PACKAGED["deepspec_qwen3"](tmp_path / "deepspec_qwen3")
    convert_drafter(tmp_path / "deepspec_qwen3", tmp_path / "canonical", progress=False)
    claimed.add(_packaging(tmp_path / "canonical"))
    # Their numbers are in tests/drafters/test_deepseek_v4.py and test_deepseek_v4_mtp.py.
    claimed |= {_packaging(DEEPSEEK_V4), deepseek_v4_mtp.NAME}
    assert claimed == {packaging.NAME for packaging in PACKAGINGS}


def _packaging(source: Path) -> str:
    raw, tensors = read_published(source, lambda config, shapes: None)
    shapes = {canonical_name(name) or name: tuple(t.shape) for name, t in tensors.items()}
    return find_packaging(raw, shapes, source).NAME


@ALL
def test_quantized_checkpoints_load(case):
    """An odd width or the ids of a draft vocabulary that quantisation breaks."""
    config = case.convert(quantize=True, q_bits=8, q_group_size=32, keep_embeddings=True)
    assert config.quantization is not None
    draft = case.draft(config)
    # d2t alone is not a floating tensor, and stays as it is.
    assert draft.tokens.size == config.gamma


def traps() -> list:
    """A source's convention, changed: what a converter would read that ignores it."""
    return [
        ("speculators_dspark", {"aux_hidden_state_layer_ids": [0, 2, 4]}, "tap shift"),
        ("speculators_dspark", {"sample_from_anchor": False}, "anchor's row"),
        ("speculators_dspark", {"sliding_window_non_causal": True}, "causal sliding layers"),
        ("lfm2", {"rope_is_neox_style": True}, "rope pairs"),
        ("dflash_nested", {"is_causal": True}, "causality"),
        ("nemotron", {"dspark_bonus_anchor": False, "dflash_config": NEMOTRON}, "Nemotron's row"),
        ("nemotron", {"dflash_config": NEMOTRON | {"causal": False}}, "Nemotron's causality"),
        ("jetspec", {"is_causal": False}, "JetSpec's causality"),
        ("dflash_nested", {"sliding_window": 5}, "window"),
        ("dflash", {"final_logit_softcapping": None}, "softcap and embedding scale"),
        ("specforge", {"rope_parameters": {"rope_theta": 10000.0}}, "YaRN"),
        ("deepspec_gemma4", {"final_logit_softcapping": 30.0}, "softcap"),
        ("speculators_dflash2", {"aux_hidden_state_layer_ids": [0, 2, 4]}, "DFlash 2 tap shift"),
        ("speculators_dflash2", {"sliding_window_non_causal": False}, "DFlash 2 non-causal"),
        ("speculators_dflash2", {"sample_from_anchor": True}, "DFlash 2 anchor's row"),
        ("speculators_dflash2", {"selector_top_k": 1}, "candidates"),
        ("dflash2_bare", {"is_causal": False}, "DFlash 2 causality by layer type"),
        ("dflash2_bare", {"sliding_window": 5}, "DFlash 2 window"),
        ("dflash2_bare", {"output_multiplier": 0.9}, "multiplier and embedding scale"),
        ("dflash2_bare", {"input_embedding_scale": 0.5}, "embedding scale"),
        ("dspine", {"dspine_config": {"top_k": 1}}, "candidates read again"),
        ("speculators_xpress", {"aux_hidden_state_layer_ids": [0, 2, 4]}, "XPress tap shift"),
        ("speculators_xpress", {"sample_from_anchor": True}, "XPress anchor's row"),
        ("speculators_xpress", {"sliding_window_non_causal": True}, "XPress causal layers"),
    ]


@pytest.mark.parametrize("name, change, what", traps(), ids=[t[2] for t in traps()])
def test_every_convention_shows(tmp_path, name, change, what):
    """A convention that the fixture cannot tell from its neglect."""
    case = Case(name, tmp_path)
    expected = case.expected()
    edit_config(**change)(case.source)
    draft = case.draft(case.convert(keep_embeddings=True))
    same = draft.logits.shape[0] == len(expected.tokens)
    ids = np.arange(VOCAB) if draft.ids is None else np.array(draft.ids)
    assert not same or not close(draft.logits, expected.logits[:, ids])


def test_a_missing_anchor_key_is_told_by_the_tokens_proposed(tmp_path):
    """Early speculators files have no `sample_from_anchor`."""
    case = Case("speculators_dspark_bonus", tmp_path)
    raw = read_json(case.source / "config.json")
    assert "sample_from_anchor" not in raw
    assert case.convert().logits_start == 1
    raw["speculators_config"]["proposal_methods"][0]["speculative_tokens"] = raw["block_size"]
    (case.source / "config.json").write_text(json.dumps(raw))
    assert case.convert(overwrite=True).logits_start == 0


def test_draft_ids_are_absolute(tmp_path):
    """Offsets taken for ids: every token is another one, and nothing raises."""
    case = Case("speculators_dspark", tmp_path)
    case.convert()
    offsets = mx.load(str(case.source / "model.safetensors"))["d2t"]
    stored = mx.load(str(case.out / "model.safetensors"))["d2t"]
    assert stored.dtype == mx.int32
    assert stored.tolist() == (offsets + mx.arange(offsets.size)).tolist() != offsets.tolist()


def test_offset_norms_become_factors(tmp_path):
    case = Case("ornith", tmp_path)
    config = case.convert()
    before, after = (
        mx.load(str(folder / "model.safetensors")) for folder in (case.source, case.out)
    )
    assert config.gated_queries and config.rope_dims == 4
    for name, tensor in after.items():
        expected = before[name] + 1 if name.endswith("norm.weight") else before[name]
        assert mx.array_equal(tensor, expected)


@pytest.mark.parametrize("name", ["specforge", "ornith"])
def test_shipped_temperatures_are_kept(tmp_path, name):
    case = Case(name, tmp_path)
    config = case.convert()
    calibration = read_calibrations(case.out, config.gamma).at(0.0)
    assert calibration.temperatures == (1.0, 1.1, 1.2, 1.3, 1.4)


REFUSED = {
    "TorchSpec MLA": {"architectures": ["K3DSparkModel"]},
    "Laguna": {"architectures": ["DFlashLagunaForCausalLM"]},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_supported_is_refused_by_name(tmp_path, what):
    """A recognised packaging called unknown, or converted as another one."""
    case = Case("deepspec_qwen3", tmp_path)
    edit_config(**REFUSED[what])(case.source)
    with pytest.raises(InputError, match=what):
        case.convert()
    assert not case.out.exists()


BROKEN = [
    ("speculators_dspark", edit_tensors(d2t=None), "no d2t"),
    ("speculators_dspark", edit_tensors(lm_head__weight=None), "no lm_head.weight"),
    ("speculators_dspark", edit_tensors(d2t=lambda t: t + VOCAB), "different ids from 0 to"),
    ("speculators_dspark", edit_tensors(d2t=lambda t: t + (1 << 32)), "different ids from 0 to"),
    ("speculators_dspark", edit_tensors(d2t=lambda t: t.astype(mx.float16)), "type mlx.core"),
    ("speculators_dspark", edit_config(aux_hidden_state_layer_ids=None), "no aux_hidden_state"),
    ("speculators_dspark", edit_config(logit_scale=2.0), "logit_scale 2.0"),
    ("specforge", edit_config(num_target_layers=None), "no num_target_layers"),
    ("specforge", edit_config(sts_temperatures=[1.0]), "sts_temperatures"),
    ("lfm2", edit_config(rope_theta="big"), "rope_theta 'big'"),
    ("lfm2", edit_config(markov_rank=5), "markov_rank 5 with markov_w1"),
    ("dflash_nested", edit_config(layer_types=["full_attention"]), "layer_types"),
    ("dflash_nested", edit_config(sliding_window=None), "no sliding_window"),
    ("mislabelled", edit_config(enable_confidence_head=None, block_size=None), "no block_size"),
    ("deepspec_qwen3", edit_tensors(fc__weight=None), "expected a drafter in one of"),
    (
        "minicpm5",
        edit_tensors(confidence_head__proj__weight=lambda t: t[:, :-1]),
        "confidence_head.proj.weight",
    ),
    (
        "dflash2",
        edit_tensors(candidate_selector__predecessor_codebook=None),
        "predecessor_codebook: found no codebook",
    ),
    (
        "dflash2",
        edit_tensors(candidate_selector__successor_codebook=None),
        "no tensor candidate_selector.successor_codebook.weight",
    ),
    ("dflash2", edit_tensors(layers__0__attention_conv__base_kernel=None), "layers.0.attention_c"),
    ("dflash2", edit_tensors(layers__2__mlp_conv__base_kernel=None), "no tensor layers.2.mlp_conv"),
    ("speculators_dflash2", edit_config(conv_kernel_size=3), "conv_kernel_size 3; expected 2"),
    ("speculators_dflash2", edit_config(conv_group_size=8), "conv_group_size 8; expected 16"),
    ("speculators_dflash2", edit_config(selector_rank=8), "selector_rank 8; expected 4"),
    ("speculators_dflash2", edit_config(selector_top_k=0), "selector_top_k 0"),
    ("speculators_dflash2", edit_config(selector_top_k=65), "selector_top_k 65"),
    ("speculators_dflash2", edit_config(draft_vocab_size=40), "no lm_head.weight"),
    ("dspine", edit_tensors(transfer_codes=lambda t: t * 0), "codes of lengths 0 to 0"),
    ("dspine", edit_tensors(transfer_codes=None), "no tensor transfer_codes.weight"),
    ("dspine", edit_tensors(injection__bias=None), "no tensor injection.bias"),
    ("dspine", edit_config(dspine_config={"transfer_rank": 7}), "transfer_rank 7; expected 6"),
    ("dspine", edit_config(layer_types=["sliding_attention"] * 2), "layer_types"),
    ("dflash2_bare", edit_config(use_gemma_norm=True), "use_gemma_norm True"),
    ("dflash2_bare", edit_config(output_multiplier="much"), "output_multiplier 'much'"),
    ("speculators_xpress", edit_config(xpress_rank=3), "xpress_rank 3; expected 4"),
    ("speculators_xpress", edit_config(xpress_mlp_ratio=4), "xpress_mlp_ratio 4 with"),
    ("speculators_xpress", edit_config(xpress_mlp_ratio="2"), "xpress_mlp_ratio '2'"),
    ("speculators_xpress", edit_config(xpress_backbone="dflash2"), "xpress_backbone 'dflash2'"),
    ("speculators_xpress", edit_config(xpress_selector=True), "xpress_selector True"),
    ("speculators_xpress", edit_tensors(refiner_head__in_proj__weight=None), "no refiner_head.in"),
    ("speculators_xpress", edit_tensors(refiner_head__mix_l=None), "no tensor refiner_head.mix_l"),
    (
        "speculators_xpress",
        edit_tensors(refiner_head__mix_l=lambda t: t[:, 1:, 1:]),
        "refiner_head.mix_l",
    ),
    ("speculators_xpress_reduced", edit_tensors(d2t=None), "no d2t"),
    ("ornith", edit_config(rope_parameters={"rope_theta": 1e4}, partial_rotary_factor=None), "no"),
]


@pytest.mark.parametrize("name, edit, message", BROKEN, ids=[b[2][:24] for b in BROKEN])
def test_what_contradicts_itself_is_named(tmp_path, name, edit, message):
    case = Case(name, tmp_path)
    edit(case.source)
    with pytest.raises(InputError) as error:
        case.convert()
    assert message in str(error.value)
    assert not case.out.exists()


def test_the_fixtures_use_their_mask():
    """A mask that no fixture could tell from another id."""
    assert 0 < MASK < VOCAB and MASK != ANCHOR
