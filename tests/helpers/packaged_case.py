"""One packaged drafter: converted, loaded strictly, and drafting beside its NumPy reference."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from dspark_mlx.checkpoint.layout import check_tensors
from dspark_mlx.checkpoint.linear import Matrix
from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.drafters.dspark.config import BlockConfig
from dspark_mlx.drafters.methods import read_config
from dspark_mlx.system.files import read_json
from helpers.numpy_drafter import reference
from helpers.observed import observed
from helpers.packaged import PACKAGED
from helpers.packaged_parts import TAPS, TARGET_DEPTH, VOCAB

ANCHOR = 9
ROWS = 13
TOKENS = mx.array(np.random.default_rng(6).integers(0, VOCAB, ROWS))


class Case:
    """A packaging's checkpoint, a target's tables and the taps of a few committed rows."""

    def __init__(self, name: str, folder) -> None:
        self.source, self.out = folder / "source", folder / "out"
        PACKAGED[name](self.source)
        rng = np.random.default_rng(5)
        hidden = _hidden(self.source)
        self.embed, self.head = rng.normal(0, 0.7, (2, VOCAB, hidden))
        tensors: Any = mx.load(str(self.source / "model.safetensors"))
        fc = tensors["fc.weight"]
        width = fc.shape[1] // len(TAPS)
        # Every layer's output differs, so that a tap of another layer shows.
        self.taps = {i: rng.normal(0, 1, (ROWS, width)) for i in range(-1, TARGET_DEPTH)}

    def expected(self):
        return reference(self.source, self.taps, ANCHOR, self.embed, self.head, int(TOKENS[-1]))

    def convert(self, **options) -> BlockConfig:
        config = convert_drafter(self.source, self.out, progress=False, **options)
        assert isinstance(config, BlockConfig)
        return config

    def draft(self, config: BlockConfig, pieces: int = 1):
        """The converted drafter's block, from what was stored and loaded again."""
        drafter = self.drafter(config)
        context = drafter.new_context()
        for rows in np.array_split(np.arange(ROWS), pieces):
            taps = [mx.array(self.taps[i][rows].astype(np.float32)) for i in config.taps]
            drafter.extend(context, taps, TOKENS[mx.array(rows)])
            if len(rows) % 2:
                drafter.flush(context)
        return observed(drafter, context, mx.array([ANCHOR]))

    def drafter(self, config: BlockConfig):
        """Of what was stored and loaded again."""
        stored = read_tensors(self.out)
        check_tensors(config, stored, self.out)
        assert read_config(read_json(self.out / "config.json"), "test") == config
        embed, head = (mx.array(x.astype(np.float32)) for x in (self.embed, self.head))
        return assemble(
            config,
            stored,
            lambda ids: embed[ids],
            lambda hidden: hidden @ head.T,
            mx.float32,
            dequantize=False,
            output=Matrix(head),
        )


def _hidden(folder) -> int:
    values = read_json(folder / "config.json")
    return values.get("transformer_layer_config", values)["hidden_size"]


def close(found, expected) -> bool:
    return np.allclose(np.array(found), expected, rtol=2e-4, atol=2e-4)
