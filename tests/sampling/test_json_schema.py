"""Texts that keep to a JSON schema, under speculation, from a target that knows no JSON."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from helpers.toys import PROMPT, toy_engine, toy_target
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dspark_mlx import InputError
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.sampling.json_schema import JsonSchema, _said
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler

END = "<end>"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer():
    """Every byte a token, a few words, and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([END, *alphabet])}
    merges = [("r", "e"), ("re", "d"), ("b", "l"), ("u", "e"), ("bl", "ue"), ('"', ":")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    raw = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END)


@pytest.mark.parametrize("rule", [{}, {"reproducible": True}, {"temperature": 0.0}])
def test_every_text_is_valid(tokenizer, rule):
    """A mask of the wrong prefix: of rejected drafts, of another row, of another request."""
    size = len(tokenizer)
    end = tokenizer.eos_token_id
    target = toy_target(size)
    try:
        schema = JsonSchema(SCHEMA, tokenizer, size, (end,))
        engine = toy_engine(target, FullScheduler())
        drafted = 0
        for seed in range(20):
            settings = {"temperature": 1.0, "seed": seed, **rule}
            sampling = Sampling(**settings, logits_processors=(schema,))
            sampler = make_sampler(sampling, size, len(PROMPT))
            done = list(rounds(engine, PROMPT, max_tokens=120, stop_tokens=(end,), sampler=sampler))
            tokens = [token for one in done for token in one.tokens]
            drafted += sum(one.accepted for one in done)
            assert tokens[-1] == end
            value = json.loads(tokenizer.decode(tokens[:-1]))
            assert set(value) == {"name", "age", "tags"} and 0 <= value["age"] <= 120
        assert drafted > 20
    finally:
        target.close()


def test_a_mask_is_a_function_of_its_prefix(tokenizer):
    """A state that a rejected draft leaves behind."""
    size = len(tokenizer)
    schema = JsonSchema(SCHEMA, tokenizer, size, (tokenizer.eos_token_id,))
    text = tokenizer.encode('{"name":"a","age":')
    wrong = tokenizer.encode('{"nxx')

    def masked(processor, prefix) -> mx.array:
        return processor(mx.array(prefix, dtype=mx.int32), mx.zeros((1, size)))

    fresh = [masked(schema.start(0), text[:n]) for n in range(len(text))]
    one = schema.start(0)
    for n in [*range(len(text)), 3, 9, 2, *reversed(range(len(text)))]:
        assert mx.array_equal(
            one(mx.array(text[:n], dtype=mx.int32), mx.zeros((1, size))), fresh[n]
        )
        # Nothing that is wrong may be kept, and nothing after it is masked.
        one._masks.clear()
        assert mx.array_equal(masked(one, wrong), mx.zeros((1, size)))


@pytest.mark.parametrize(
    "schema, stops, expected",
    [
        ({"type": "foo"}, (0,), "that llguidance supports"),
        ({"required": "é" * 50}, (0,), "that llguidance cannot read"),  # it panics, 1.9.1
        ({"type": "string", "pattern": "("}, (0,), r"regex parse error: \( error: unclosed group;"),
        (SCHEMA, (), "expected end tokens"),
        (
            {"oneOf": [{"type": "object"}, {"type": "object"}]},
            (2,),
            '"additionalProperties": false',
        ),
        ({"type": "object", "unevaluatedProperties": False}, (2,), '"additionalProperties": false'),
        (SCHEMA | {"required": ["other"]}, (2,), "each must stand in properties"),
    ],
)
def test_what_cannot_be_followed_is_refused(tokenizer, schema, stops, expected):
    with pytest.raises(InputError, match=expected):
        JsonSchema(schema, tokenizer, len(tokenizer), stops)


def test_a_complaint_is_told_without_the_state_of_the_parser():
    """A parser's state, thousands of characters of it, in a client's error message."""
    complaint = "Parser Error: too many items\n<state>\nTokens: ...\n</state><backtrace>..."
    assert _said(complaint) == "Parser Error: too many items"
    listing = "at 1(8): regex parse error:\n    (\n    ^\nerror: unclosed group\n   1 | start: ..."
    assert _said(listing) == "at 1(8): regex parse error: ( error: unclosed group"


def test_grammars_of_one_tokenizer_share_its_tokens(tokenizer, monkeypatch):
    """Half a second at every new schema, for a vocabulary that is the same."""
    hf = pytest.importorskip("llguidance.hf")
    made, make = [], hf.from_tokenizer
    monkeypatch.setattr(hf, "from_tokenizer", lambda *a, **k: made.append(k) or make(*a, **k))
    size = len(tokenizer) + 8  # of no other test
    for schema in (SCHEMA, {"type": "string"}):
        JsonSchema(schema, tokenizer, size, (0,))
    JsonSchema(SCHEMA, tokenizer, size, (0, 1))
    assert [each["eos_token"] for each in made] == [[0], [0, 1]]
