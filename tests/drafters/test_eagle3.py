"""Eagle3 drafters: converted, loaded strictly, and equal to a straight-line NumPy reference."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.edits import CONFIG, WEIGHTS
from helpers.edits import config as edit_config
from helpers.edits import tensors as edit_tensors
from helpers.numpy_eagle3 import reference
from helpers.observed import observed
from helpers.packaged_eagle3 import EAGLE3, STEPS, TAPS
from helpers.packaged_parts import HIDDEN, TARGET_DEPTH, VOCAB

from dspark_mlx.checkpoint.layout import check_tensors
from dspark_mlx.checkpoint.linear import Matrix
from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.convert.packagings import PACKAGINGS
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.drafters.dspark.config import DSparkConfig
from dspark_mlx.drafters.eagle3.config import Eagle3Config
from dspark_mlx.drafters.eagle3.rows import Eagle3Rows
from dspark_mlx.drafters.methods import read_config
from dspark_mlx.errors import InputError
from dspark_mlx.system.files import read_json

ROUNDS = (7, 10, 11)


class Case:
    """A checkpoint, and a text with every layer's output at each of its positions."""

    def __init__(self, family: str, folder) -> None:
        self.source, self.out = folder / "source", folder / "out"
        EAGLE3[family](self.source)
        rng = np.random.default_rng(6)
        rows = max(ROUNDS)
        self.tokens = rng.integers(0, VOCAB, rows + 1).tolist()
        self.taps = {i: rng.normal(0, 1, (rows, HIDDEN)) for i in range(-1, TARGET_DEPTH)}

    def convert(self, **options) -> Eagle3Config:
        config = convert_drafter(self.source, self.out, progress=False, **options)
        assert isinstance(config, Eagle3Config)
        return config

    def drafter(self, config: Eagle3Config, vocabulary="full"):
        """Of what was stored and loaded again, with tables of its own."""
        stored = read_tensors(self.out)
        check_tensors(config, stored, self.out)
        assert read_config(read_json(self.out / CONFIG), "test") == config
        source: Any = mx.load(str(self.source / WEIGHTS))
        head = Matrix(source["lm_head.weight"])
        return assemble(
            config,
            stored,
            lambda ids: source["embed_tokens.weight"][ids],
            head,
            mx.float32,
            dequantize=False,
            output=head,
            draft_vocabulary=vocabulary,
        )

    def feed(self, drafter, context, there: int, rows: int, taps=TAPS) -> None:
        values = [mx.array(self.taps[i][there:rows].astype(np.float32)) for i in taps]
        drafter.extend(context, values, mx.array(self.tokens[there:rows], dtype=mx.int32))

    def anchor(self, rows: int) -> mx.array:
        return mx.array(self.tokens[rows : rows + 1], dtype=mx.int32)

    def expected(self, rows: int):
        taps = {i: values[:rows] for i, values in self.taps.items()}
        return reference(self.source, taps, self.tokens[: rows + 1])

    def first(self, drafter):
        """The first round's block."""
        context = drafter.new_context()
        self.feed(drafter, context, 0, ROUNDS[0], drafter.config.taps)
        return observed(drafter, context, self.anchor(ROUNDS[0]))


@pytest.fixture(params=EAGLE3)
def case(request, tmp_path):
    return Case(request.param, tmp_path)


def close(found, expected) -> bool:
    return np.allclose(np.array(found), expected, rtol=2e-4, atol=2e-4)


def at_once(case, drafter, context, there, rows):
    case.feed(drafter, context, there, rows)


def row_by_row(case, drafter, context, there, rows):
    for i in range(there, rows):
        case.feed(drafter, context, i, i + 1)


def flushed(case, drafter, context, there, rows):
    """As a prefill does, whose chunks end before their last token's successor is known."""
    for i in range(there, rows, 2):
        case.feed(drafter, context, i, min(i + 2, rows))
        drafter.flush(context)


@pytest.mark.parametrize("feed", [at_once, row_by_row, flushed])
def test_it_drafts_as_published(case, feed):
    """A feature with another token, a state normed before it is fed back, a block that stays in the
    context, the drafter's own states kept where the target's features came: nothing of this raises,
    it only accepts less."""
    drafter = case.drafter(case.convert())
    context, there = drafter.new_context(), 0
    for rows in ROUNDS:
        feed(case, drafter, context, there, rows)
        there = rows
        for _ in range(2):
            draft, expected = observed(drafter, context, case.anchor(rows)), case.expected(rows)
            assert draft.tokens.tolist() == draft.columns.tolist() == expected.tokens
            assert close(draft.logits, expected.logits)
            assert close(draft.base_logits, expected.logits)
            assert close(draft.hidden, expected.hidden)
            assert draft.confidence is None and draft.confidence_logits is None
            assert context.length == rows


def test_kept_tables_are_used(case):
    """Stored copies that are loaded and not read."""
    config = case.convert(keep_embeddings=True)
    assert config.owns_embedding and config.owns_head
    changed = edit_tensors(
        lm_head__weight=lambda t: t * 2, embed_tokens__weight=lambda t: mx.roll(t, 1, axis=0)
    )
    expected = case.expected(ROUNDS[0])
    changed(case.source)
    # The source's own tables, which stand for the target's here, are not what was kept.
    assert close(case.first(case.drafter(config)).logits, expected.logits)


def test_another_token_that_is_picked_is_fed_back(case):
    """Steps that follow the likeliest token in place of the one that was drawn."""
    drafter = case.drafter(case.convert())
    context = drafter.new_context()
    case.feed(drafter, context, 0, ROUNDS[0])
    other = observed(
        drafter,
        context,
        case.anchor(ROUNDS[0]),
        lambda *_: (mx.full((1,), 7, dtype=mx.int32), None),
    )
    best = observed(drafter, context, case.anchor(ROUNDS[0]))
    assert other.tokens.tolist() == [7] * STEPS
    assert close(other.logits[:1], np.array(best.logits[:1]))
    assert not close(other.logits[1:], np.array(best.logits[1:]))


def test_a_draft_vocabulary(case):
    """Columns taken for token ids when they are fed back."""
    config = case.convert()
    whole, cut = case.drafter(config), case.drafter(config, vocabulary=20)
    assert (whole.vocabulary_size, cut.vocabulary_size) == (VOCAB, VOCAB if config.softcap else 20)
    context = cut.new_context([45, 50])
    case.feed(cut, context, 0, ROUNDS[0])
    draft = observed(cut, context, case.anchor(ROUNDS[0]))
    if config.softcap:
        # What is capped behind the product is read out whole, as for every drafter.
        assert draft.ids is None
        return
    ids = [*range(20), 45, 50]
    assert draft.ids.tolist() == ids
    assert draft.tokens.tolist() == [ids[column] for column in draft.columns.tolist()]
    expected = case.expected(ROUNDS[0])
    assert close(draft.logits[0], expected.logits[0][ids])
    forced = iter(draft.tokens.tolist())
    again = whole.new_context()
    case.feed(whole, again, 0, ROUNDS[0])
    follow = observed(
        whole,
        again,
        case.anchor(ROUNDS[0]),
        lambda *_: (mx.array([next(forced)], dtype=mx.int32), None),
    )
    assert close(draft.logits, np.array(follow.logits)[:, ids])


def test_its_folder_says_what_it_is(case):
    """An Eagle3 folder that passes for a DSpark one, or the other way round."""
    config = case.convert()
    stored = read_json(case.out / CONFIG)
    assert stored["method"] == "eagle3" and "mask_token_id" not in stored
    assert config.gamma == STEPS and not config.has_confidence and "Eagle3" in config.summary
    assert config.target == "tiny/target"
    with pytest.raises(InputError, match="method 'eagle3'"):
        DSparkConfig.from_dict(stored, "test")
    for change, message in (
        ({"method": "medusa"}, "method 'medusa'; expected one of dspark, "),
        ({"method": 3}, "method 3; expected one of dspark, "),
        ({"method": "dspark"}, "no block_size"),
        ({"steps": 0}, "steps 0"),
        ({"steps": True}, "steps True"),
        ({"mask_token_id": 1}, "unknown keys mask_token_id"),
    ):
        with pytest.raises(InputError) as error:
            read_config(stored | change, "test")
        assert message in str(error.value)


def test_it_is_of_one_packaging(case):
    """Two packagings that claim one file, which a converter would decide by their order."""
    shapes = {name: a.shape for name, a in mx.load(str(case.source / WEIGHTS)).items()}
    raw = read_json(case.source / CONFIG)
    assert [p.NAME for p in PACKAGINGS if p.matches(raw, shapes)] == ["DeepSpec Eagle3"]


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_folders_load(case, bits):
    """A width that quantisation breaks, or a matrix that is fused with one of other bits."""
    exceptions = {"q_proj": 8, "down_proj": None}
    config = case.convert(
        quantize=True, q_bits=bits, q_group_size=32, q_exceptions=exceptions, keep_embeddings=True
    )
    draft, expected = case.first(case.drafter(config)), case.expected(ROUNDS[0])
    assert draft.tokens.size == STEPS
    off = np.abs(np.array(draft.logits[0]) - expected.logits[0]).max()
    assert off < (0.1 if bits == 8 else 1.5)


CONVENTIONS = [
    ("qwen3", edit_config(target_layer_ids=[0, 1, 2, 3, 4]), "taps"),
    ("qwen3", edit_config(rope_parameters={"rope_theta": 100.0}), "rope base"),
    ("gemma4", edit_config(final_logit_softcapping=30.0), "softcap"),
    ("gemma4", edit_tensors(layers__0__layer_scalar=lambda t: t / t), "layer scalar"),
    (
        "gemma4",
        edit_config(
            rope_parameters={
                "full_attention": {
                    "partial_rotary_factor": 1.0,
                    "rope_theta": 1e6,
                    "rope_type": "proportional",
                }
            }
        ),
        "partial rope",
    ),
]


@pytest.mark.parametrize("family, edit, what", CONVENTIONS, ids=[c[2] for c in CONVENTIONS])
def test_every_convention_shows(tmp_path, family, edit, what):
    """A convention that the fixture cannot tell from its neglect."""
    case = Case(family, tmp_path)
    expected = case.expected(ROUNDS[0])
    edit(case.source)
    assert not close(case.first(case.drafter(case.convert())).logits, expected.logits)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_scale": 0.0},
        {"activation": "silu"},
        {"rope_interleaved": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_convention_of_gemma4_shows(tmp_path, changes):
    """As above, for what the converter states and no key of the source says. The scale of the
    embeddings is not among it: they are normed at once, so that only the norm's epsilon sees it."""
    case = Case("gemma4", tmp_path)
    config = case.convert()
    stored = read_config(read_json(case.out / CONFIG) | changes, "test")
    assert stored != config
    head = Matrix(mx.load(str(case.source / WEIGHTS))["lm_head.weight"])
    embed = mx.load(str(case.source / WEIGHTS))["embed_tokens.weight"]
    tensors = read_tensors(case.out)
    wrong = assemble(stored, tensors, lambda ids: embed[ids], head, mx.float32, dequantize=False)
    assert not close(case.first(wrong).logits, case.expected(ROUNDS[0]).logits)


def _same_token(honest):
    """Each feature with its own token, not the one after it."""

    def inputs(self, features, tokens):
        shifted = tokens if tokens.size == 1 else mx.concatenate([tokens[:1], tokens[:-1]])
        return honest(self, features, shifted)

    return inputs


def _feature_first(honest):
    def inputs(self, features, tokens):
        return mx.roll(honest(self, features, tokens), features.shape[-1], axis=-1)

    return inputs


@pytest.mark.parametrize("wrong", [_same_token, _feature_first])
def test_a_wrong_input_is_seen(case, monkeypatch, wrong):
    """Fixtures on which the layer's input does not matter."""
    drafter = case.drafter(case.convert())
    monkeypatch.setattr(Eagle3Rows, "inputs", wrong(Eagle3Rows.inputs))
    assert not close(case.first(drafter).logits, case.expected(ROUNDS[0]).logits)


def test_a_normed_feature_is_seen(case, monkeypatch):
    """As above for what is added to the attention's output: the feature as it came, not normed."""
    drafter = case.drafter(case.convert())
    honest = Eagle3Rows.features

    def features(self, taps):
        return mx.fast.rms_norm(honest(self, taps), None, 1e-6)

    monkeypatch.setattr(Eagle3Rows, "features", features)
    assert not close(case.first(drafter).logits, case.expected(ROUNDS[0]).logits)


def test_a_normed_state_that_is_fed_back_is_seen(case, monkeypatch):
    """As above for the state: only the slots after the first can tell."""
    drafter = case.drafter(case.convert())
    honest = Eagle3Rows.newest

    def step(self, cache, features, tokens):
        if features.shape[0] == 1 and cache.offset >= ROUNDS[0]:
            eps = self._config.rms_norm_eps
            features = mx.fast.rms_norm(features, self.weights.norm, eps)
        return honest(self, cache, features, tokens)

    monkeypatch.setattr(Eagle3Rows, "newest", step)
    draft, expected = case.first(drafter), case.expected(ROUNDS[0])
    assert close(draft.logits[0], expected.logits[0])
    assert not close(draft.logits[1], expected.logits[1])


def test_a_block_that_stays_in_the_context_is_seen(case, monkeypatch):
    """Rows of the drafter's own states in place of the target's features, a round later."""
    drafter = case.drafter(case.convert())
    context = drafter.new_context()
    case.feed(drafter, context, 0, ROUNDS[0])
    monkeypatch.setattr(type(context), "trim", lambda self, rows: None)
    observed(drafter, context, case.anchor(ROUNDS[0]))
    monkeypatch.undo()
    case.feed(drafter, context, ROUNDS[0], ROUNDS[1])
    draft = observed(drafter, context, case.anchor(ROUNDS[1]))
    assert not close(draft.logits, case.expected(ROUNDS[1]).logits)
