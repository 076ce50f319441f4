"""Speculative decoding equals plain decoding in every bit, with Apple's compiled kernels."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import qwen3 as mlx_qwen3

from dspark_mlx.kernels.metal.rows import Rows
from dspark_mlx.kernels.metal.tiles import Tiles

from . import qwen3
from .arrays import differing
from .own import run
from .qwen3 import HEADS, KV_HEADS, Cache, Qwen3, Weights
from .stock.attention import attend, plan

pytestmark = pytest.mark.slow
DRAFT = 4  # tokens a round
TOKENS = 14
CAPACITY = 1100


def model_with(emulator, stock, kernel, architecture="s") -> Qwen3:
    def rows(p):
        return run(emulator, kernel, p, checked=False)

    return Qwen3(emulator, stock, Weights(), rows, architecture)


def plain(model: Qwen3, start: int, count: int) -> tuple[list[int], np.ndarray]:
    """Tokens and the logits that chose them, one row at a time, behind `start` positions."""
    cache, tokens, logits = Cache(start, CAPACITY), [7], []
    for _ in range(count):
        logits.append(model(tokens[-1:], cache))
        cache.length += 1
        tokens += model.choose(logits[-1])
    return tokens[1:], np.concatenate(logits)


def speculative(
    model: Qwen3, start: int, right: list[int]
) -> tuple[list[int], np.ndarray, list[int]]:
    """The same by rounds, and tokens a round; drafts are right but for each third token."""
    cache, tokens, logits, committed = Cache(start, CAPACITY), [7], [], []
    while len(tokens) <= len(right):
        at = len(tokens) - 1
        draft = [
            (token + (i % 3 == 2)) % qwen3.VOCABULARY
            for i, token in enumerate(right[at : at + DRAFT], at)
        ]
        found = model([tokens[-1], *draft], cache)
        own = model.choose(found)
        accepted = next((i for i, token in enumerate(draft) if token != own[i]), len(draft))
        tokens += own[: accepted + 1]
        logits.append(found[: accepted + 1])
        cache.length += accepted + 1
        committed.append(accepted + 1)
    count = len(right)
    return tokens[1 : count + 1], np.concatenate(logits)[:count], committed


@pytest.mark.parametrize(
    ("architecture", "start"),
    # Across 1,024 keys a Max goes over to two passes, in the middle of a block; a Pro does not.
    [("s", 1024 - TOKENS // 2), ("g", 1024 - TOKENS // 2), ("s", 20)],
)
def test_speculative_equals_plain_in_every_bit(emulator, stock, architecture, start):
    """A verify forward whose logits differ from plain decoding's in any layer's last bit."""
    model = model_with(emulator, stock, Rows(stock.version), architecture)
    tokens, logits = plain(model, start, TOKENS)
    found, verified, committed = speculative(model, start, tokens)
    assert found == tokens and len(set(tokens)) > 3
    assert differing(verified, logits) == 0
    assert max(committed) > 2 and min(committed) < DRAFT + 1


def test_attention_that_is_chosen_for_the_whole_block_shows(emulator, stock):
    """What MLX does where a block crosses 1,024 keys on a Max: two passes for all rows."""

    class Together(Qwen3):
        def _attend(self, q, keys, values, before):
            count = q.shape[1]
            chosen = plan(self.architecture, before + count, HEADS, KV_HEADS, count)
            return attend(self.emulator, self.stock, chosen, q, keys, values, before + count)

    exact = model_with(emulator, stock, Rows(stock.version))
    together = Together(emulator, stock, exact.weights, exact.rows)
    block, start = [7, 1, 2], 1022
    by_rows = exact(block, Cache(start, CAPACITY))
    assert differing(together(block, Cache(start, CAPACITY)), by_rows) > 0
    _, first = plain(exact, start, 1)
    assert differing(by_rows[:1], first) == 0


def test_a_kernel_that_is_not_exact_shows(emulator, stock):
    """A comparison that nothing fails."""
    exact = model_with(emulator, stock, Rows(stock.version))
    _, logits = plain(exact, 20, 1)
    tiles = model_with(emulator, stock, Tiles())
    found = tiles([7, 1, 2], Cache(20, CAPACITY))
    assert differing(found[:1], logits) > 0
    assert np.abs(found[:1] - logits).max() < 1e-3 * np.abs(logits).max()


def test_it_is_qwen3(emulator, stock):
    """A forward that is exact and another model's: the logits are those of mlx-lm's class."""
    weights = Weights()
    model = mlx_qwen3.Model(
        mlx_qwen3.ModelArgs(
            model_type="qwen3",
            hidden_size=qwen3.HIDDEN,
            num_hidden_layers=qwen3.LAYERS,
            intermediate_size=qwen3.MIDDLE,
            num_attention_heads=qwen3.HEADS,
            num_key_value_heads=qwen3.KV_HEADS,
            head_dim=qwen3.SIZE,
            rms_norm_eps=qwen3.EPS,
            vocab_size=qwen3.VOCABULARY,
            rope_theta=qwen3.BASE,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
    )
    model.load_weights(list(named(weights).items()))
    expected = np.array(model(mx.array([[7, 1, 2]]))[0])
    emulated = model_with(emulator, stock, Rows(stock.version))
    found = emulated([7, 1, 2], Cache(0, 16))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def named(weights: Weights) -> dict[str, mx.array]:
    """By mlx-lm's names, as float32 matrices."""

    def wide(matrix):
        return mx.dequantize(*matrix.values(), group_size=qwen3.GROUP, bits=4)

    found = {"model.embed_tokens.weight": wide(weights.embedding)}
    found["model.norm.weight"] = mx.array(weights.final_norm)
    for i, (layer, norms) in enumerate(zip(weights.layers, weights.norms, strict=True)):
        at = f"model.layers.{i}."
        for name, matrix in layer.items():
            part = "self_attn" if name[0] in "qkvo" else "mlp"
            found[f"{at}{part}.{name}.weight"] = wide(matrix)
        found[f"{at}input_layernorm.weight"] = mx.array(norms["input"])
        found[f"{at}post_attention_layernorm.weight"] = mx.array(norms["post"])
        found[f"{at}self_attn.q_norm.weight"] = mx.array(norms["q"])
        found[f"{at}self_attn.k_norm.weight"] = mx.array(norms["k"])
    return found
