"""Kernels in a target's modules, beside all else that changes their classes."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from helpers.families import VOCABULARY, family

from dspark_mlx.kernels.decision import Decision
from dspark_mlx.kernels.linears import quantized_linears, stock
from dspark_mlx.targets.tap import Target

ROWS = 5


def classes_of(network: nn.Module) -> list[type]:
    return [type(module) for _, module in network.named_modules()]


def test_kernels_stay_where_recurrent_mixers_are_attached_anew():
    """Mixers that give their linear layers the classes back from before the kernels came."""
    model = family("qwen3_5")
    nn.quantize(model, group_size=32, bits=8)
    own = classes_of(model)
    target = Target(model, (0,), "tiny")
    attached = classes_of(model)
    tokens = mx.arange(ROWS) % VOCABULARY
    seen: list[tuple[int, int]] = []

    def counted(x, weight, scales, biases, product):
        seen.append((product.outputs, product.inputs))
        return stock(x, weight, scales, biases, product)

    linears = quantized_linears(model)

    def products() -> list[tuple[int, int]]:
        seen.clear()
        logits, _, rollback = target.verify(tokens, target.new_caches())
        rollback.keep(2)
        mx.eval(logits, rollback.states())
        return sorted(seen)

    expected = target.verify(tokens, target.new_caches())[0]
    assert products() == []
    target.use_kernels(Decision({linear: {ROWS: counted} for linear in linears}, [], {}))
    embeddings = 1  # which multiply nothing where a model has a head of its own
    modules = [shape for linear, found in linears.items() for shape in [linear] * len(found)]
    assert len(products()) == len(modules) - embeddings
    whole = products()
    with target.untapped():
        assert classes_of(model) != own
    assert products() == whole
    other = target.sharing((1,), "tiny")
    assert products() == whole
    assert mx.array_equal(target.verify(tokens, target.new_caches())[0], expected).item()
    target.drop_kernels()
    assert products() == []
    other.close()
    assert classes_of(model) == own
    target.use_kernels(Decision({linear: {ROWS: counted} for linear in linears}, [], {}))
    assert products() == whole
    target.close()
    target.drop_kernels()
    assert classes_of(model) == own
    assert attached != own
