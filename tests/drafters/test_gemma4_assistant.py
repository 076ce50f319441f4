"""Gemma 4's assistants: equal to a NumPy reference, their silent traps, and their target's part."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from helpers.edits import config as edit_config
from helpers.edits import tensors as edit_tensors
from helpers.numpy_assistant import key_values, reference
from helpers.observed import observed
from helpers.packaged_assistant import (
    DEPTH,
    GLOBAL_HEAD_DIM,
    HEAD_DIM,
    ROPE,
    TARGET,
    VOCAB,
    target_model,
    write_assistant,
)
from helpers.packaged_case import close
from helpers.pairs import tokens_of
from mlx.utils import tree_flatten

from dspark_mlx.checkpoint.layout import check_tensors
from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.drafters.batch import Wanted, context_batch
from dspark_mlx.drafters.gemma4_assistant.drafter import Gemma4AssistantDrafter
from dspark_mlx.engine.active import ActiveRequests
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.errors import InputError
from dspark_mlx.sampling import greedy
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.targets.compatibility import check_pair
from dspark_mlx.targets.tap import Target
from dspark_mlx.types import Round

ROUNDS = (5, 13)
TOKENS = mx.array(np.random.default_rng(3).integers(0, VOCAB, ROUNDS[-1] + 1))


class Case:
    """An assistant's checkpoint, its target, and the target's taps of a text."""

    def __init__(self, folder) -> None:
        self.source, self.out = folder / "source", folder / "out"
        write_assistant(self.source)
        self.target = Target(target_model(), (1, 2, 3), "tiny")
        self.caches = self.target.new_caches()
        _, self.taps = self.target(TOKENS, self.caches)
        self.embed = np.array(self.target.embed(mx.arange(VOCAB)), dtype=np.float64)

    def convert(self, **options):
        settings = {"target_layers": DEPTH, "progress": False} | options
        return convert_drafter(self.source, self.out, **settings)

    def drafter(self, config, target=None):
        stored = read_tensors(self.out)
        check_tensors(config, stored, self.out)
        target = target or self.target
        parts = (target.embed, target.logits, mx.float32, False)
        return assemble(config, stored, *parts, target=target)

    def feed(self, drafter, context, first, last):
        drafter.extend(context, [tap[first:last] for tap in self.taps], TOKENS[first:last])

    def draft(self, config, rows=ROUNDS[-1]):
        drafter = self.drafter(config)
        context = drafter.new_context()
        self.feed(drafter, context, 0, rows)
        return observed(drafter, context, TOKENS[rows : rows + 1])

    def expected(self, rows=ROUNDS[-1]):
        flat = tree_flatten(self.target.model.parameters())
        weights = {name: np.array(value, dtype=np.float64) for name, value in flat}
        low, high, last = (np.array(tap[:rows], dtype=np.float64) for tap in self.taps)
        kv = {
            kind: key_values(weights, layer, entering, size, ROPE[kind])
            for kind, layer, entering, size in (
                ("sliding_attention", 2, low, HEAD_DIM),
                ("full_attention", 3, high, GLOBAL_HEAD_DIM),
            )
        }
        scale = np.sqrt(np.mean(last[-1] ** 2) + 1e-6)
        state = last[-1] / scale * weights["model.norm.weight"]
        return reference(self.source, kv, state, int(TOKENS[rows]), self.embed, 3)


@pytest.fixture
def case(tmp_path):
    case = Case(tmp_path)
    yield case
    case.target.close()


def test_it_drafts_as_published(case):
    """Keys of another layer, in another order or of rows that were cut off: nothing raises."""
    config = case.convert()
    assert (config.taps, config.sliding_layer, config.full_layer) == ((1, 2, 3), 2, 3)
    drafter = case.drafter(config)
    context, there = drafter.new_context(), 0
    for rows in ROUNDS:
        case.feed(drafter, context, there, rows - 1)
        drafter.flush(context)
        case.feed(drafter, context, rows - 1, rows)
        draft = observed(drafter, context, TOKENS[rows : rows + 1])
        tokens, logits = case.expected(rows)
        assert draft.tokens.tolist() == tokens and close(draft.logits, logits)
        again = observed(drafter, context, TOKENS[rows : rows + 1])
        assert mx.array_equal(again.logits, draft.logits)
        there = rows


def test_keys_are_those_of_the_targets_own_cache(case):
    """A norm, a rotation or a position that the target's forward does not have."""
    keys, values = case.target.key_values(3, case.taps[1][4:], 4)
    own_keys, own_values = case.caches[3].keys_and_values()
    assert close(keys, np.array(own_keys[..., 4:, :]))
    assert close(values, np.array(own_values[..., 4:, :]))


def test_greedy_output_is_plain_decodings_beyond_the_window(case):
    drafter = case.drafter(case.convert())

    def tokens(one):
        settings = {"max_tokens": 30, "stop_tokens": (), "sampler": make_sampler(Sampling(), VOCAB)}
        return tokens_of(rounds(Engine(case.target, one, FullScheduler()), [1, 5, 2], **settings))

    assert tokens(drafter) == tokens(None)


def test_requests_that_share_forwards_decode_as_alone(case):
    """A batch's caches, and taps of requests whose rows stand at different positions."""
    engine = Engine(case.target, case.drafter(case.convert()), FullScheduler())
    prompts = ([1, 5, 2], list(range(3, 15)), [7])

    def settings():
        sampler = make_sampler(Sampling(), VOCAB)
        return {"max_tokens": 20, "stop_tokens": (), "sampler": sampler}

    active = ActiveRequests(engine)
    made = {active.add(prompt, **settings()): [] for prompt in prompts}
    while len(active):
        for request, done in active.step():
            assert isinstance(done, Round), done
            made[request].append((done.tokens, done.accepted))
            if request.ended:
                active.remove(request)
    for prompt, rounds_ in zip(prompts, made.values(), strict=True):
        alone = rounds(engine, prompt, **settings())
        assert rounds_ == [(done.tokens, done.accepted) for done in alone]


def test_requests_of_a_batch_draft_as_alone(case):
    drafter = case.drafter(case.convert())
    kept = (13, 5)

    def contexts():
        made = [drafter.new_context() for _ in kept]
        for context, count in zip(made, kept, strict=True):
            drafter.extend(context, case.taps, TOKENS, count)
        return made

    anchor = TOKENS[:1]
    alone = [drafter.draft(context, anchor, greedy) for context in contexts()]
    together = context_batch(drafter, contexts()).draft([Wanted(anchor, greedy, False)] * 2)
    for one, other, count in zip(alone, together, kept, strict=True):
        assert other is not None and mx.array_equal(one.logits, other.logits)
        context = drafter.new_context()
        case.feed(drafter, context, 0, count)
        assert close(drafter.draft(context, anchor, greedy).logits, np.array(one.logits))


def _moving(monkeypatch):
    """A later position in each step."""
    honest, calls = Gemma4AssistantDrafter._row, []

    def row(self, token, state, attended, position):
        calls.append(position)
        return honest(self, token, state, attended, position + len(calls) - 1)

    monkeypatch.setattr(Gemma4AssistantDrafter, "_row", row)


def _before(monkeypatch):
    """The position of the newest keys in place of the anchor's."""
    honest = Gemma4AssistantDrafter._row
    monkeypatch.setattr(
        Gemma4AssistantDrafter, "_row", lambda self, t, s, a, p: honest(self, t, s, a, p - 1)
    )


def _first_state(monkeypatch):
    """The target's state in every step."""
    honest, states = Gemma4AssistantDrafter._row, []

    def row(self, token, state, attended, position):
        states.append(state)
        return honest(self, token, states[0], attended, position)

    monkeypatch.setattr(Gemma4AssistantDrafter, "_row", row)


@pytest.mark.parametrize("trap", [_moving, _before, _first_state])
def test_every_trap_shows(case, monkeypatch, trap):
    config = case.convert()
    _, logits = case.expected()
    assert close(case.draft(config).logits, logits)
    trap(monkeypatch)
    assert not close(case.draft(config).logits, logits)


@pytest.mark.parametrize(
    "change", [{"state": "raw"}, {"window": 6}, {"window": 13}, {"embedding_scale": 1.0}]
)
def test_every_convention_shows(case, change):
    config = case.convert()
    _, logits = case.expected()
    assert not close(case.draft(replace(config, **change)).logits, logits)


def test_quantized_checkpoints_load(case):
    config = case.convert(quantize=True, q_bits=8, q_group_size=32)
    assert config.quantization is not None and case.draft(config).tokens.size == config.gamma


def test_a_target_of_other_heads_is_refused(case):
    """An assistant of another size of target."""
    config = case.convert()
    other = Target(target_model(global_head_dim=32), (1, 2, 3), "other")
    with pytest.raises(InputError, match="1 keys of 32 columns in its layer 3"):
        case.drafter(config, other)
    other.close()


def test_a_target_whose_norm_is_not_found_is_refused(case):
    """An error with the first draft, where the load should have said it."""
    config, model = case.convert(), target_model()
    del model.model.norm
    other = Target(model, (1, 2, 3), "other")
    with pytest.raises(InputError, match="without a module `norm`"):
        case.drafter(config, other)
    other.close()


def test_a_target_of_another_width_is_refused(case):
    """The assistant's own rows, which are narrower, taken for those of the target's table."""
    config = case.convert()
    check_pair(config, "assistant", case.target, "its target")
    with pytest.raises(InputError, match="hidden size 32"):
        wider = replace(config, target_hidden_size=32)
        check_pair(wider, "assistant", case.target, "another target")
    with pytest.raises(InputError, match="without an embedding and head of its own"):
        check_pair(replace(config, owns_head=False), "assistant", case.target, "its target")


def test_a_layer_without_keys_is_refused():
    """Layers that share the keys of layers before them."""
    model = target_model(num_kv_shared_layers=2, layer_types=TARGET["layer_types"])
    target = Target(model, (1, 2, 3), "shared")
    with pytest.raises(InputError, match="layer 3 without keys and values"):
        target.key_values(3, mx.zeros((1, TARGET["hidden_size"])), 0)
    target.close()


BROKEN = [
    (edit_config(use_ordered_embeddings=True), {}, "use_ordered_embeddings True"),
    (edit_config(backbone_hidden_size=None), {}, "no backbone_hidden_size"),
    (edit_config(backbone_hidden_size=23), {}, "fc.weight"),
    (edit_config(text_config=3), {}, "text_config 3"),
    (edit_config(block_size=0), {}, "block_size 0"),
    (edit_config(block_size=1), {}, "steps 0"),
    (edit_tensors(post_projection__weight=None), {}, "no tensor post_projection.weight"),
    (edit_tensors(model__norm__weight=None), {}, "no tensor norm.weight"),
    (lambda folder: None, {"target_layers": None}, "no num_target_layers"),
    (lambda folder: None, {"target_layers": 1}, "num_target_layers 1"),
]


@pytest.mark.parametrize("edit, options, message", BROKEN, ids=[b[2][:24] for b in BROKEN])
def test_what_contradicts_itself_is_named(case, edit, options, message):
    edit(case.source)
    with pytest.raises(InputError) as error:
        case.convert(**options)
    assert message in str(error.value)
    assert not case.out.exists()
