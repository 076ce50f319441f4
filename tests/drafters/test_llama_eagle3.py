"""Eagle3 as EAGLE, SpecForge and vLLM publish it: converted, loaded, equal to a NumPy reference."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from helpers.edits import config as edit_config
from helpers.edits import tensors as edit_tensors
from helpers.numpy_llama_eagle3 import reference
from helpers.observed import observed
from helpers.packaged_case import close
from helpers.packaged_llama_eagle3 import DEPTH, LLAMA_EAGLE3, TAPS
from helpers.packaged_parts import DRAFT_VOCAB, HIDDEN, VOCAB

from dspark_mlx.checkpoint.layout import check_tensors
from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.drafters.eagle3.config import Eagle3Config
from dspark_mlx.drafters.methods import read_config
from dspark_mlx.errors import InputError
from dspark_mlx.system.files import read_json

ROWS = 9


class Case:
    """A checkpoint, and a text with every layer's output at each of its positions."""

    def __init__(self, name: str, folder) -> None:
        self.source, self.out = folder / "source", folder / "out"
        LLAMA_EAGLE3[name](self.source)
        rng = np.random.default_rng(6)
        width = read_tensors(self.source)["fc.weight"].shape[1] // 3
        self.tokens = rng.integers(0, VOCAB, ROWS + 1).tolist()
        self.taps = {i: rng.normal(0, 1, (ROWS, width)) for i in range(-1, DEPTH)}
        self.embed = rng.normal(0, 0.7, (VOCAB, HIDDEN))

    def convert(self, **options) -> Eagle3Config:
        config = convert_drafter(
            self.source, self.out, keep_embeddings=True, progress=False, **options
        )
        assert isinstance(config, Eagle3Config)
        return config

    def draft(self, config: Eagle3Config):
        """The block of what was stored and loaded again, its context in two pieces."""
        stored = read_tensors(self.out)
        check_tensors(config, stored, self.out)
        assert read_config(read_json(self.out / "config.json"), "test") == config
        embed = mx.array(self.embed.astype(np.float32))
        drafter = assemble(config, stored, lambda ids: embed[ids], lambda x: x, mx.float32, False)
        context = drafter.new_context()
        for rows in (slice(0, 4), slice(4, ROWS)):
            taps = [mx.array(self.taps[i][rows].astype(np.float32)) for i in config.taps]
            drafter.extend(context, taps, mx.array(self.tokens[rows], dtype=mx.int32))
            drafter.flush(context)
        return observed(drafter, context, mx.array(self.tokens[-1:], dtype=mx.int32))

    def expected(self, steps: int = 4):
        return reference(self.source, self.taps, self.tokens, self.embed, steps)


@pytest.fixture(params=LLAMA_EAGLE3)
def case(request, tmp_path):
    return Case(request.param, tmp_path)


def test_it_drafts_as_published(case):
    """Ids that mean another layer by where they stand, offsets taken for ids, a feature added as it
    is or normed, a state fed back before or after its norm: nothing of this raises."""
    config = case.convert()
    assert config.taps == ((1, 3, 4) if "num_target_layers" in case_keys(case) else tuple(TAPS))
    assert config.draft_vocab_size == DRAFT_VOCAB
    draft, (tokens, logits) = case.draft(config), case.expected(config.steps)
    assert draft.tokens.tolist() == tokens
    assert close(draft.logits, logits[:, np.array(draft.ids)])


def case_keys(case) -> set[str]:
    return set(read_json(case.source / "config.json"))


CONVENTIONS = {
    "ids at the top": ("speculators", edit_config(eagle_aux_hidden_state_layer_ids=TAPS)),
    "ids nested": (
        "specforge",
        edit_config(eagle_config={"eagle_aux_hidden_state_layer_ids": [2, 3, 4]}),
    ),
    "residual": ("speculators", edit_config(norm_before_residual=False)),
    "feedback": ("speculators_3.1", edit_config(norm_output=False)),
    "depth": ("eagle", edit_config(num_target_layers=10)),
    "rope scaling": ("eagle", edit_config(rope_scaling=None)),
    "ids of tokens": ("eagle", edit_tensors(d2t=lambda t: mx.maximum(t - 1, 0))),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_shows(tmp_path, name):
    """A convention that the fixture cannot tell from its neglect."""
    kind, edit = CONVENTIONS[name]
    case = Case(kind, tmp_path)
    _, logits = case.expected()
    if name == "depth":
        case.taps |= {i: case.taps[0] + i for i in range(DEPTH, 10)}
    edit(case.source)
    draft = case.draft(case.convert())
    assert not close(draft.logits[:4], logits[:, np.array(draft.ids)])


def test_the_depth_can_be_said(tmp_path):
    """EAGLE's own files do not say which layers they tap."""
    case = Case("eagle", tmp_path)
    edit_config(num_target_layers=None)(case.source)
    with pytest.raises(InputError, match="--target-layers"):
        case.convert()
    assert case.convert(target_layers=DEPTH).taps == (1, 3, 4)


BROKEN = {
    "two layers": ("eagle", edit_config(num_hidden_layers=2), "num_hidden_layers 2"),
    "no taps": (
        "specforge",
        edit_config(eagle_config={"use_aux_hidden_state": False}),
        "use_aux_hidden_state False",
    ),
    "no ids of tokens": ("eagle", edit_tensors(d2t=None), "no d2t"),
    "no head": ("eagle", edit_tensors(lm_head__weight=None), "no lm_head.weight"),
    "no embedding of another width": (
        "speculators_wide",
        edit_tensors(embed_tokens__weight=None),
        "no tensor embed_tokens.weight",
    ),
    "a norm missing": (
        "specforge",
        edit_tensors(aux_norm_mid__weight=None),
        "no tensor fc_norm.1.weight",
    ),
    "a bias": (
        "eagle",
        edit_tensors(fc__bias=lambda t: mx.zeros(HIDDEN)),
        "tensors fc.bias",
    ),
    "attention with biases": ("eagle", edit_config(attention_bias=True), "attention_bias True"),
    "taps of another width": (
        "speculators",
        edit_config(target_hidden_size=40),
        "expected 3 x 40 columns",
    ),
    "an unknown rope": ("eagle", edit_config(rope_scaling={"rope_type": "longrope"}), "longrope"),
    "half a rope": ("eagle", edit_config(rope_scaling={"rope_type": "llama3"}), "no factor"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_refused(tmp_path, name):
    kind, edit, part = BROKEN[name]
    case = Case(kind, tmp_path)
    edit(case.source)
    with pytest.raises(InputError) as error:
        case.convert()
    assert part in str(error.value) and not case.out.exists()


def test_the_configuration_is_read_strictly(tmp_path):
    case = Case("eagle", tmp_path)
    case.convert()
    stored = json.loads((case.out / "config.json").read_text())
    for key in ("tap_norms", "residual", "feedback"):
        with pytest.raises(InputError, match=f"{key} 'other'"):
            read_config(stored | {key: "other"}, "test")
