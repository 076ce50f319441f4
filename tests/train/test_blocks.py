"""The backbone over whole texts against the drafter block by block, and the anchors' mask."""

from __future__ import annotations

import dataclasses
import itertools

import mlx.core as mx
import numpy as np
import pytest
from helpers.observed import observed
from helpers.pairs import DRAFTERS, golden

from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.drafters.dspark.config import Attention
from dspark_mlx.drafters.tensors import DrafterTensors
from dspark_mlx.train.step.blocks import TrainingBlocks, anchor_mask, block_hidden

LENGTH = 12
ANCHORS = (1, 4, 5, 11)
CONVENTIONS = {
    "bidirectional": {},
    "causal": {"causal": True},
    "window": {"windows": 3},
    "window by row": {"windows": 3, "window_by_row": True},
    "causal window": {"causal": True, "windows": 5, "window_by_row": True},
}


def drafter_with(name, folder, changes):
    config = convert_drafter(golden(name), folder, progress=False)
    by_layer = {
        key: (value,) * config.num_layers if key != "window_by_row" else value
        for key, value in changes.items()
    }
    return dataclasses.replace(config, **by_layer), read_tensors(folder)


def features_of(config):
    key = mx.random.key(3)
    return mx.random.normal((LENGTH, len(config.taps) * config.target_hidden_size), key=key)


def block_by_block(config, tensors, table, features):
    """What the drafter of `assemble` computes after each anchor."""

    def embed(ids):
        return table[ids]

    drafter = assemble(config, tensors, embed, lambda h: h @ table.T, mx.float32, dequantize=False)
    width = config.target_hidden_size
    for anchor in ANCHORS:
        context = drafter.new_context()
        taps = [features[:anchor, i : i + width] for i in range(0, features.shape[1], width)]
        drafter.extend(context, taps, mx.zeros((anchor,), dtype=mx.int32))
        yield observed(drafter, context, mx.array([anchor])).hidden


@pytest.mark.parametrize("checkpoint", (False, True))
@pytest.mark.parametrize("changes", CONVENTIONS.values(), ids=CONVENTIONS)
@pytest.mark.parametrize("name", (*DRAFTERS, "gemma4_vanilla"))
def test_whole_texts_give_what_single_blocks_give(tmp_path, name, changes, checkpoint):
    """A training forward that is not the one that drafts: a context that holds the anchor or a
    neighbour's block, positions counted from elsewhere, a convention that only inference knows."""
    config, tensors = drafter_with(name, tmp_path / "drafter", changes)
    table = mx.random.normal((config.vocab_size, config.hidden_size), key=mx.random.key(1)) / 8
    features = features_of(config)
    ids = mx.array(
        [[anchor] + [config.mask_token_id] * (config.block_size - 1) for anchor in ANCHORS]
    )
    blocks = TrainingBlocks(
        mx.stack([features, mx.zeros_like(features)]),
        mx.array([ANCHORS, ANCHORS]),
        mx.stack([table[ids], table[ids]]),
    )
    stored = DrafterTensors(config, tensors, mx.float32, dequantize=False)
    found = block_hidden(stored, config, blocks, checkpoint=checkpoint)[0]
    for rows, expected in zip(found, block_by_block(config, tensors, table, features), strict=True):
        difference = mx.abs(rows[config.logits_start :] - expected).max() / mx.abs(expected).max()
        assert difference.item() < 1e-5


@pytest.mark.parametrize(
    ("window", "causal", "by_row"), list(itertools.product((0, 2), (False, True), (False, True)))
)
def test_the_mask_is_the_definition(window, causal, by_row):
    """A mask built by broadcasting that is off by one somewhere."""
    rows, anchors = 3, np.array([[0, 2, 5], [4, 1, 0]])
    found = np.array(anchor_mask(Attention(window, causal, by_row), mx.array(anchors), 6, rows))
    assert found.shape == (2, 1, 9, 15)
    for text, query, column in np.ndindex(2, 9, 15):
        block, row = divmod(query, rows)
        anchor = anchors[text, block]
        if column < 6:
            first = anchor - window + (row if by_row else 0) if window else 0
            expected = first <= column < anchor
        else:
            other, place = divmod(column - 6, rows)
            expected = other == block and (place <= row or not causal)
        assert found[text, 0, query, column] == expected
