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
    CLUSTERS,
    GLOBAL_HEAD_DIM,
    HEAD_DIM,
    OWN,
    ROPE,
    SHARED,
    SHARING,
    TARGET,
    VOCAB,
    WINDOW,
    target_model,
    write_assistant,
)
from helpers.packaged_case import close
from helpers.pairs import tokens_of
from mlx.utils import tree_flatten

from dspark_mlx.checkpoint.layout import check_tensors
from dspark_mlx.checkpoint.linear import Matrix
from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.drafters.batch import Wanted, context_batch
from dspark_mlx.drafters.gemma4_assistant.clusters import ClusteredOutput
from dspark_mlx.drafters.gemma4_assistant.drafter import Gemma4AssistantDrafter
from dspark_mlx.engine.active import ActiveRequests
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.errors import InputError
from dspark_mlx.sampling import greedy
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.system.files import read_json
from dspark_mlx.targets.compatibility import check_pair
from dspark_mlx.targets.tap import Target
from dspark_mlx.types import Round

ROUNDS = (5, 13)
TOKENS = mx.array(np.random.default_rng(3).integers(0, VOCAB, ROUNDS[-1] + 1))


class Case:
    """An assistant's checkpoint, its target, and the target's taps of a text.

    Args:
        folder: for the files.
        shared: how many of the target's last layers read keys of earlier ones; the assistant of a
            target with some has ordered embeddings.
    """

    def __init__(self, folder, shared=0) -> None:
        self.source, self.out = folder / "source", folder / "out"
        write_assistant(self.source, **(CLUSTERS if shared else {}))
        self.shared, self.changes = shared, SHARING if shared else {}
        self.taps_at = (1, 2, OWN + shared - 1)
        self.target = self.other_target()
        self.caches = self.target.new_caches()
        _, self.taps = self.target(TOKENS, self.caches)
        self.embed = np.array(self.target.embed(mx.arange(VOCAB)), dtype=np.float64)

    def other_target(self, **changes):
        return Target(target_model(**(self.changes | changes)), self.taps_at, "tiny")

    def convert(self, **options):
        depth = {"target_layers": OWN + self.shared, "kv_shared_layers": self.shared}
        settings = {"progress": False} | depth | options
        return convert_drafter(self.source, self.out, **settings)

    def drafter(self, config, target=None, dequantize=False, **options):
        stored = read_tensors(self.out)
        check_tensors(config, stored, self.out)
        target = target or self.target
        parts = (target.embed, target.logits, mx.float32, dequantize)
        return assemble(config, stored, *parts, target=target, **options)

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


@pytest.fixture(params=[0, SHARED], ids=["plain", "clustered"])
def case(tmp_path, request):
    case = Case(tmp_path, request.param)
    yield case
    case.target.close()


@pytest.fixture
def plain(tmp_path):
    case = Case(tmp_path)
    yield case
    case.target.close()


@pytest.fixture
def clustered(tmp_path):
    case = Case(tmp_path, SHARED)
    yield case
    case.target.close()


def whole(draft):
    """A draft's logits over the vocabulary, -inf where it has none."""
    if draft.ids is None:
        return np.array(draft.logits)
    logits = np.full((len(draft.logits), VOCAB), -np.inf)
    np.put_along_axis(logits, np.array(draft.ids), np.array(draft.logits), axis=-1)
    return logits


def test_it_drafts_as_published(case):
    """Keys of another layer, in another order or of rows that were cut off: nothing raises."""
    config = case.convert()
    assert (config.taps, config.sliding_layer, config.full_layer) == (case.taps_at, 2, 3)
    drafter = case.drafter(config)
    context, there = drafter.new_context(), 0
    for rows in ROUNDS:
        case.feed(drafter, context, there, rows - 1)
        drafter.flush(context)
        case.feed(drafter, context, rows - 1, rows)
        draft = observed(drafter, context, TOKENS[rows : rows + 1])
        tokens, logits = case.expected(rows)
        assert draft.tokens.tolist() == tokens and close(whole(draft), logits)
        again = observed(drafter, context, TOKENS[rows : rows + 1])
        assert mx.array_equal(again.logits, draft.logits)
        there = rows


def test_keys_are_those_of_the_targets_own_cache(case):
    """A norm, a rotation or a position that the target's forward does not have."""
    for layer, entering, first in ((2, 0, ROUNDS[-1] + 1 - WINDOW), (3, 1, 4)):
        keys, values = case.target.key_values(layer, case.taps[entering][first:], first)
        own_keys, own_values = case.caches[layer].keys_and_values()
        newest = keys.shape[-2]
        assert close(keys, np.array(own_keys[..., -newest:, :]))
        assert close(values, np.array(own_values[..., -newest:, :]))


def test_greedy_output_is_plain_decodings_beyond_the_window(case):
    drafter = case.drafter(case.convert())

    def tokens(one):
        settings = {"max_tokens": 30, "stop_tokens": (), "sampler": make_sampler(Sampling(), VOCAB)}
        return tokens_of(rounds(Engine(case.target, one, FullScheduler()), [1, 5, 2], **settings))

    assert tokens(drafter) == tokens(None)


def test_drafts_behind_any_rollback_are_those_of_a_fresh_context(case, monkeypatch):
    """Rows of rejected tokens among the keys, or a state that is theirs."""
    drafter, made, prompt = case.drafter(case.convert()), [], [1, 5, 2]
    settings = {"max_tokens": 30, "stop_tokens": (), "sampler": make_sampler(Sampling(), VOCAB)}
    plain = rounds(Engine(case.target, None, FullScheduler()), prompt, **settings)
    text = mx.array([*prompt, *tokens_of(plain)])
    honest = Gemma4AssistantDrafter.draft

    def draft(self, context, anchor, pick):
        """The block, of which the first tokens are the target's own, so that they are accepted."""
        block, first = honest(self, context, anchor, pick), context.length + 1
        made.append((context.length, block.tokens.tolist()))
        right = text[first : first + len(made) % 4]
        return replace(block, tokens=mx.concatenate([right, block.tokens[right.size :]]))

    monkeypatch.setattr(Gemma4AssistantDrafter, "draft", draft)
    done = list(rounds(Engine(case.target, drafter, FullScheduler()), prompt, **settings))
    assert tokens_of(done) == text[len(prompt) :].tolist()
    assert {one.accepted for one in done} == {0, 1, 2, 3}
    _, taps = case.target(text, case.target.new_caches())
    for length, tokens in made:
        context = drafter.new_context()
        drafter.extend(context, [tap[:length] for tap in taps], text[:length])
        anchor = text[length : length + 1]
        assert honest(drafter, context, anchor, greedy).tokens.tolist() == tokens


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
    assert close(whole(case.draft(config)), logits)
    trap(monkeypatch)
    assert not close(whole(case.draft(config)), logits)


@pytest.mark.parametrize(
    "change", [{"state": "raw"}, {"window": 6}, {"window": 13}, {"embedding_scale": 1.0}]
)
def test_every_convention_shows(case, change):
    config = case.convert()
    _, logits = case.expected()
    assert not close(whole(case.draft(replace(config, **change))), logits)


def test_quantized_checkpoints_load(case):
    config = case.convert(quantize=True, q_bits=8, q_group_size=32)
    assert config.quantization is not None and case.draft(config).tokens.size == config.gamma


def test_a_target_of_other_heads_is_refused(case):
    """An assistant of another size of target."""
    config = case.convert()
    other = case.other_target(global_head_dim=32)
    with pytest.raises(InputError, match="1 keys of 32 columns in its layer 3"):
        case.drafter(config, other)
    other.close()


def test_a_target_whose_norm_is_not_found_is_refused(case):
    """An error with the first draft, where the load should have said it."""
    config, other = case.convert(), case.other_target()
    del other.model.model.norm
    with pytest.raises(InputError, match="without a module `norm`"):
        case.drafter(config, other)
    other.close()


def test_a_target_of_another_width_is_refused(case):
    """The assistant's own rows, of another width, taken for those of the target's table."""
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


def test_a_target_whose_last_keys_are_of_other_layers_is_refused(clustered):
    """Layers that share keys, or others than the last that make some: it would only accept less."""
    for shared, named in ((0, r"layers \[6, 7\] read"), (SHARED + 2, r"layers \[0, 1\] read")):
        config = clustered.convert(kv_shared_layers=shared, overwrite=True)
        with pytest.raises(InputError, match=named) as error:
            clustered.drafter(config)
        assert "[2, 3]" in str(error.value) and "--kv-shared-layers" in str(error.value)


def _transposed(output):
    clusters, size = output.tokens.shape
    return replace(output, tokens=output.tokens.reshape(size, clusters).T)


def _inverse(output):
    tokens = mx.argsort(output.tokens.flatten()).astype(mx.int32)
    return replace(output, tokens=tokens.reshape(output.tokens.shape))


def _one_less(output):
    return replace(output, top=output.top - 1)


@pytest.mark.parametrize("trap", [_transposed, _inverse, _one_less])
def test_every_trap_of_clusters_shows(clustered, monkeypatch, trap):
    config = clustered.convert()
    _, logits = clustered.expected()
    monkeypatch.setattr(
        ClusteredOutput,
        "__call__",
        lambda self, row, honest=ClusteredOutput.__call__: honest(trap(self), row),
    )
    assert not close(whole(clustered.draft(config)), logits)


@pytest.mark.parametrize("dequantize", [False, True])
def test_packed_rows_of_clusters_are_those_of_the_table(clustered, dequantize):
    """A row's words beside the scales of another."""
    config = clustered.convert(quantize=True, q_bits=4, q_group_size=32)
    drafter = clustered.drafter(config, dequantize=dequantize)
    output = drafter._clusters
    assert output.table.quantized != dequantize and output.centroids.quantized != dequantize
    row = mx.random.normal((1, config.hidden_size), key=mx.random.key(5))
    logits, ids = output(row)
    assert ids.size == len(set(ids.tolist())) == 3 * VOCAB // 16
    assert close(logits, np.array(output.table(row)[:, ids]))


def test_a_step_reads_rows_of_its_clusters_alone(clustered, monkeypatch):
    """The product with the whole table, of which a few rows are read."""
    drafter, sizes = clustered.drafter(clustered.convert()), []
    honest = Matrix.__call__

    def call(self, x):
        sizes.append(self.out_features)
        return honest(self, x)

    monkeypatch.setattr(Matrix, "__call__", call)
    context = drafter.new_context()
    clustered.feed(drafter, context, 0, 5)
    drafter.draft(context, TOKENS[:1], greedy)
    assert 3 * VOCAB // 16 in sizes and VOCAB not in sizes


def test_a_draft_vocabulary_is_not_cut_out_of_clusters(clustered):
    """Clusters left out, and rows of the table copied for nothing."""
    config = clustered.convert()
    drafter = clustered.drafter(config, draft_vocabulary=8)
    assert drafter.new_context([1]).vocabulary is None and drafter.vocabulary_size == VOCAB
    draft = clustered.draft(config)
    assert draft.ids.shape == (config.gamma, 3 * VOCAB // 16)


def test_a_checkpoint_that_mlx_quantized_is_taken_as_it_is(clustered):
    """As mlx-community publishes assistants: packed tables, and ids beside them."""
    stored, form = read_tensors(clustered.source), {"group_size": 32, "bits": 4}
    for name in ("model.embed_tokens", "masked_embedding.centroids", "pre_projection"):
        if stored[f"{name}.weight"].shape[1] % 32 == 0:
            parts = mx.quantize(stored[f"{name}.weight"], **form)
            keys = (f"{name}.weight", f"{name}.scales", f"{name}.biases")
            stored |= dict(zip(keys, parts, strict=True))
    mx.save_safetensors(str(clustered.source / "model.safetensors"), stored)
    edit_config(quantization=form)(clustered.source)
    config = clustered.convert()
    drafter = clustered.drafter(config)
    output = drafter._clusters
    assert mx.array_equal(output.table.weight, stored["model.embed_tokens.weight"])
    assert mx.array_equal(output.centroids.weight, stored[CENTROIDS])
    assert clustered.draft(config).tokens.size == config.gamma


FULL = "full_attention"


def edit_text(**changes):
    """An edit of config.json's `text_config`."""

    def edit(folder):
        text = read_json(folder / "config.json")["text_config"]
        edit_config(text_config=text | changes)(folder)

    return edit


BROKEN = [
    (edit_config(backbone_hidden_size=None), {}, "no backbone_hidden_size"),
    (edit_config(backbone_hidden_size=23), {}, "fc.weight"),
    (edit_config(text_config=3), {}, "text_config 3"),
    (edit_config(block_size=0), {}, "block_size 0"),
    (edit_config(block_size=1), {}, "steps 0"),
    (edit_config(use_ordered_embeddings="yes"), {}, "use_ordered_embeddings 'yes'"),
    (edit_tensors(post_projection__weight=None), {}, "no tensor post_projection.weight"),
    (edit_tensors(model__norm__weight=None), {}, "no tensor norm.weight"),
    (edit_text(hidden_activation="silu"), {}, "hidden_activation 'silu'"),
    (edit_text(rope_parameters=3), {}, "rope_parameters 3"),
    (edit_text(rope_parameters={}), {}, "rope_parameters {}; expected an object with full_att"),
    (edit_text(rope_parameters=ROPE | {FULL: {}}), {}, "full_attention.rope_theta None"),
    (lambda folder: None, {"target_layers": None}, "no num_target_layers"),
    (lambda folder: None, {"target_layers": 1}, "num_target_layers 1"),
    (lambda folder: None, {"target_layers": 0}, "--target-layers: found 0"),
    (lambda folder: None, {"kv_shared_layers": 3}, "num_kv_shared_target_layers 3"),
    (lambda folder: None, {"kv_shared_layers": -1}, "--kv-shared-layers: found -1"),
    (edit_config(num_target_layers=6), {}, "--target-layers: found 4; expected 6, as"),
    (edit_config(num_kv_shared_target_layers=1), {}, "--kv-shared-layers: found 0; expected 1, as"),
    (edit_config(num_kv_shared_target_layers=False), {}, "num_kv_shared_target_layers False"),
]
ORDERING = "masked_embedding.token_ordering"
CENTROIDS = "masked_embedding.centroids.weight"


def _ordering(change):
    return edit_tensors(**{ORDERING.replace(".", "__"): change})


BROKEN_CLUSTERS = [
    (edit_config(use_ordered_embeddings=False), "unknown tensors centroids.weight, token_ordering"),
    (edit_config(num_centroids=None), "no num_centroids"),
    (edit_config(centroid_intermediate_top_k=None), "no centroid_intermediate_top_k"),
    (edit_config(centroid_intermediate_top_k=0), "centroid_intermediate_top_k 0"),
    (edit_config(num_centroids=12), "num_centroids 12; expected a number that divides"),
    (edit_config(num_centroids=8), "centroids.weight: found shape [16, 32]; expected [8, 32]"),
    (edit_config(centroid_intermediate_top_k=17), "centroid_top_k 17 of num_centroids 16"),
    (_ordering(None), "no tensor token_ordering"),
    (edit_tensors(**{CENTROIDS.replace(".", "__"): None}), "no tensor centroids.weight"),
    (_ordering(lambda ids: ids[1:]), "token_ordering: found shape [63]; expected [64]"),
    (_ordering(lambda ids: mx.maximum(ids, 1)), "token_ordering: found 63 ids from 1 to 63"),
    (_ordering(lambda ids: ids + 1), "token_ordering: found 64 ids from 1 to 64"),
    (_ordering(lambda ids: ids + (1 << 33)), "token_ordering: found 1 ids from 2147483647"),
    (_ordering(lambda ids: ids.astype(mx.uint8) + 1), "token_ordering: found 64 ids from 1 to 64"),
    (_ordering(lambda ids: ids.astype(mx.float32)), "token_ordering: found type mlx.core.float32"),
]


@pytest.mark.parametrize("kind", [mx.uint8, mx.int16, mx.int32, mx.uint32, mx.uint64])
def test_token_orderings_of_any_integer_type_are_read(clustered, kind):
    """A clip to numbers that a narrow or unsigned type lacks."""
    ids = read_tensors(clustered.source)[ORDERING].astype(mx.int32)
    _ordering(lambda old: old.astype(kind))(clustered.source)
    clustered.convert()
    assert mx.array_equal(read_tensors(clustered.out)["token_ordering"], ids)


@pytest.mark.parametrize("edit, options, message", BROKEN, ids=[b[2][:24] for b in BROKEN])
def test_what_contradicts_itself_is_named(plain, edit, options, message):
    edit(plain.source)
    with pytest.raises(InputError) as error:
        plain.convert(**options)
    assert message in str(error.value)
    assert not plain.out.exists()


@pytest.mark.parametrize("edit, message", BROKEN_CLUSTERS)
def test_broken_clusters_are_named(clustered, edit, message):
    edit(clustered.source)
    with pytest.raises(InputError) as error:
        clustered.convert()
    assert message in str(error.value)
    assert not clustered.out.exists()
