"""P-EAGLE as vLLM publishes it: converted, loaded strictly, and equal to a NumPy reference."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from helpers.edits import config as edit_config
from helpers.edits import tensors as edit_tensors
from helpers.numpy_peagle import reference
from helpers.observed import observed
from helpers.packaged_case import close
from helpers.packaged_llama_eagle3 import DEPTH, PEAGLE, TAPS
from helpers.packaged_parts import DRAFT_VOCAB, HIDDEN, VOCAB

from dspark_mlx.checkpoint.layout import check_tensors
from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.drafters.methods import read_config
from dspark_mlx.drafters.peagle import PEagleConfig
from dspark_mlx.errors import InputError
from dspark_mlx.system.files import read_json

ROWS = 9


class Case:
    """A checkpoint, and a text with every layer's output at each of its positions."""

    def __init__(self, name: str, folder) -> None:
        self.source, self.out = folder / "source", folder / "out"
        PEAGLE[name](self.source)
        rng = np.random.default_rng(6)
        self.tokens = rng.integers(0, VOCAB, ROWS + 1).tolist()
        self.taps = {i: rng.normal(0, 1, (ROWS, HIDDEN)) for i in range(-1, DEPTH)}

    def convert(self, **options) -> PEagleConfig:
        config = convert_drafter(self.source, self.out, progress=False, **options)
        assert isinstance(config, PEagleConfig)
        return config

    def drafter(self, config: PEagleConfig):
        """Of what was stored and loaded again; it has tables of its own."""
        stored = read_tensors(self.out)
        check_tensors(config, stored, self.out)
        assert read_config(read_json(self.out / "config.json"), "test") == config
        return assemble(config, stored, lambda x: x, lambda x: x, mx.float32, False)

    def feed(self, drafter, context, rows: slice) -> None:
        taps = [mx.array(self.taps[i][rows].astype(np.float32)) for i in drafter.config.taps]
        drafter.extend(context, taps, mx.array(self.tokens[rows], dtype=mx.int32))

    def draft(self, drafter, context, rows: int = ROWS):
        return observed(drafter, context, mx.array(self.tokens[rows : rows + 1], dtype=mx.int32))

    def expected(self, rows: int = ROWS):
        taps = {i: tap[:rows] for i, tap in self.taps.items()}
        return reference(self.source, taps, self.tokens[: rows + 1])


@pytest.fixture(params=PEAGLE)
def case(request, tmp_path):
    return Case(request.param, tmp_path)


def test_it_drafts_as_published(case):
    """A mask's row of another position, tokens fed back, a feature that is not projected, rows of a
    block that stay in the context of one of the layers: nothing of this raises."""
    config = case.convert()
    assert config.taps == tuple(TAPS) and config.draft_vocab_size == DRAFT_VOCAB
    assert config.owns_embedding and config.owns_head and config.gamma == 4
    drafter = case.drafter(config)
    context, there = drafter.new_context(), 0
    for rows in (4, 7, ROWS):
        case.feed(drafter, context, slice(there, rows))
        there = rows
        if rows == 7:
            drafter.flush(context)
        for _ in range(2):
            draft, (tokens, logits) = case.draft(drafter, context, rows), case.expected(rows)
            assert draft.tokens.tolist() == tokens
            assert close(draft.logits, logits[:, np.array(draft.ids)])


CONVENTIONS = {
    "ids of taps": edit_config(eagle_aux_hidden_state_layer_ids=TAPS),
    "residual": edit_config(norm_before_residual=False),
    "mask token": edit_config(mask_token_id=6),
    "learnt feature": edit_tensors(mask_hidden=lambda t: t * 0),
    "embedding": edit_tensors(embed_tokens__weight=lambda t: t[::-1]),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_shows(tmp_path, name):
    """A convention that the fixture cannot tell from its neglect."""
    case = Case("three layers", tmp_path)
    _, before = case.expected()
    CONVENTIONS[name](case.source)
    _, after = case.expected()
    finite = np.isfinite(before)
    assert not close(after[finite], before[finite])
    config = case.convert()
    drafter = case.drafter(config)
    context = drafter.new_context()
    case.feed(drafter, context, slice(0, ROWS))
    draft = case.draft(drafter, context)
    assert close(draft.logits, after[:, np.array(draft.ids)])


BROKEN = {
    "no embedding": (edit_tensors(embed_tokens__weight=None), "no tensor embed_tokens.weight"),
    "no learnt feature": (edit_tensors(mask_hidden=None), "no tensor mask_hidden"),
    "another width": (edit_tensors(mask_hidden=lambda t: t[..., :-1]), "mask_hidden"),
    "no mask token": (edit_config(mask_token_id=None), "no mask_token_id"),
    "a mask token outside": (edit_config(mask_token_id=VOCAB), f"mask_token_id {VOCAB}"),
    "a layer missing": (
        edit_tensors(layers__2__mlp__up_proj__weight=None),
        "no tensor layers.2.mlp.up_proj.weight",
    ),
    "NaN": (edit_tensors(mask_hidden=lambda t: t * np.nan), "mask_hidden: found NaN"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_used_is_refused(tmp_path, what):
    edit, message = BROKEN[what]
    case = Case("three layers", tmp_path)
    edit(case.source)
    with pytest.raises(InputError) as error:
        case.convert()
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not case.out.exists()


def test_layers_may_be_quantized(tmp_path):
    case = Case("three layers", tmp_path)
    config = case.convert(quantize=True, q_bits=8, q_group_size=32)
    drafter = case.drafter(config)
    context = drafter.new_context()
    case.feed(drafter, context, slice(0, ROWS))
    assert case.draft(drafter, context).tokens.size == config.gamma
