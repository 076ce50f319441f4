"""Nemotron's drafters in NVFP4: the numbers of the codes, packed where that is exact."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from helpers.edits import config as edit_config
from helpers.numpy_drafter import reference
from helpers.packaged_case import ANCHOR, Case, close
from helpers.packaged_nemotron import LAYERS, pack, write_raw
from safetensors import safe_open
from safetensors.numpy import load_file

from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.errors import InputError

# A power of two can go into the scales; 1.1 is rounded, and E4M3 has nothing below 2**-9.
FACTORS = {"folded": lambda i: 0.5, "decoded": lambda i: 1.1, "too small": lambda i: 2.0**-12}


class NemotronCase(Case):
    def __init__(self, folder, factor) -> None:
        super().__init__("nemotron", folder)
        self.packed = pack(self.source, factor)
        self.values = load_file(self.source / "values" / "model.safetensors")

    def stored(self, config, name: str) -> np.ndarray:
        tensors = read_tensors(self.out)
        if config.quantization is None or config.quantization.of(name) is None:
            return np.array(tensors[f"{name}.weight"].astype(mx.float32))
        words, scales = tensors[f"{name}.weight"], tensors[f"{name}.scales"]
        return np.array(mx.dequantize(words, scales, None, 16, 4, "nvfp4", dtype=mx.float32))


@pytest.mark.parametrize("kind", FACTORS)
def test_it_drafts_as_its_codes(tmp_path, kind):
    """Nibbles or scales in another order, a factor dropped or rounded, sinks left out."""
    case = NemotronCase(tmp_path, FACTORS[kind])
    assert len(case.packed) == 2 + 3 * LAYERS  # section 8: fc, markov_w2 and the MLP's linears
    config = case.convert()
    assert config.sinks and config.owns_embedding and not config.owns_head
    assert config.logits_start == 1 and all(config.causal) and all(config.windows)
    for name in case.packed:
        form = config.quantization and config.quantization.of(name)
        assert form == ((4, 16) if kind == "folded" else None)
        assert np.array_equal(case.stored(config, name), case.values[f"{name}.weight"])
    expected = reference(case.source / "values", case.taps, ANCHOR, case.embed, case.head)
    draft = case.draft(config)
    assert draft.tokens.tolist() == expected.tokens
    assert close(draft.logits, expected.logits) and close(draft.hidden, expected.hidden)


def test_matrices_may_be_of_both_kinds(tmp_path):
    """One factor that cannot be folded decoding all matrices."""
    case = NemotronCase(tmp_path, lambda i: 1.1 if i == 1 else 4.0)
    config = case.convert()
    kept = [name for name in case.packed if config.quantization.of(name)]
    assert len(kept) == len(case.packed) - 1
    for name in case.packed:
        assert np.array_equal(case.stored(config, name), case.values[f"{name}.weight"])


def raw_tensors(case: NemotronCase) -> dict:
    """What the NVFP4 file holds, with its types."""
    file = case.source / "model.safetensors"
    kinds = {}
    with safe_open(str(file), framework="numpy") as opened:
        for name in opened.keys():  # noqa: SIM118
            kinds[name] = opened.get_slice(name).get_dtype()
    arrays = mx.load(str(file))
    return {name: (kinds[name], np.array(arrays[name])) for name in kinds}


BROKEN = {
    "no scales": ("fc.weight_scale", None, "fc: found"),
    "no factor": ("fc.weight_scale_2", None, "compressed-tensors or FP8 weights"),
    "no codes": ("fc.weight", None, "fc: found"),
    "scales of other rows": ("fc.weight_scale", lambda a: a[:-1], "fc: found"),
    "two factors": ("fc.weight_scale_2", lambda a: np.ones(2, np.float32), "fc: found"),
    "a scale that is none": ("fc.weight_scale", lambda a: a | 127, "fc.weight: found NaN"),
    "a factor that is none": ("fc.weight_scale_2", lambda a: a * np.nan, "fc.weight: found NaN"),
    "fewer columns": ("fc.weight", lambda a: a[:, :-8], "fc: found"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_matrices_are_named(tmp_path, what):
    name, edit, pattern = BROKEN[what]
    case = NemotronCase(tmp_path, FACTORS["folded"])
    tensors = raw_tensors(case)
    kind, array = tensors.pop(name)
    if edit is not None:
        tensors[name] = (kind, np.ascontiguousarray(edit(array)))
    write_raw(case.source / "model.safetensors", tensors)
    with pytest.raises(InputError, match=pattern) as error:
        case.convert()
    assert "\n" not in str(error.value) and not case.out.exists()


@pytest.mark.parametrize(
    "edit, message",
    [
        ({"eagle_aux_hidden_state_layer_ids": [0, 2, 4]}, "those of target_layer_ids, plus one"),
        ({"sample_from_anchor": True, "dflash_config": {}}, "the contrary of dspark_bonus_anchor"),
        ({"block_size": None}, "no block_size"),
    ],
)
def test_what_contradicts_itself_is_named(tmp_path, edit, message):
    case = Case("nemotron", tmp_path)
    edit_config(**edit)(case.source)
    with pytest.raises(InputError, match=message):
        case.convert()
    assert not case.out.exists()


def test_a_sink_that_is_said_must_be_there(tmp_path):
    """The key believed, and attention without sinks."""
    case = Case("specforge", tmp_path)
    edit_config(attention_sink_bias=True)(case.source)
    with pytest.raises(InputError, match=r"tensors layers\.N\.self_attn.attention_sink_bias"):
        case.convert()
