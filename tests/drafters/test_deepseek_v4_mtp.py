"""DeepSeek V4's plain prediction layer against the target's own layer over the whole text."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from helpers.deepseek_v4 import check_close, model, numbers, read
from helpers.observed import observed
from helpers.pairs import tokens_of

import dspark_mlx
from dspark_mlx.deepseek_v4.config import ModelArgs
from dspark_mlx.deepseek_v4.weights import loadable
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.pairs.stored import read_drafter
from dspark_mlx.targets.deepseek_v4.model import TargetLayer
from dspark_mlx.targets.tap import Target

TOKENS = numbers("target_golden")["input_ids"][0].astype(mx.int32)
OWN = {"enorm.weight": (64,), "hnorm.weight": (64,), "e_proj.weight": (64, 64),
    "h_proj.weight": (64, 64)}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The golden target with a stage of its head as a plain prediction layer."""
    folder = tmp_path_factory.mktemp("v4-mtp")
    config = {k: v for k, v in read("config").items() if not k.startswith("dspark")}
    (folder / "config.json").write_text(json.dumps(config))
    stored, rng = numbers("model"), np.random.default_rng(3)
    tensors = {name: tensor for name, tensor in stored.items() if not name.startswith("mtp.")}
    for name, tensor in stored.items():
        if name.startswith("mtp.1."):
            tensors[name.replace("mtp.1.", "mtp.0.")] = tensor
        if name.startswith(("mtp.2.hc_head", "mtp.2.norm")):
            tensors[name.replace("mtp.2.", "mtp.0.")] = tensor
    for name, shape in OWN.items():
        values = rng.standard_normal(shape) * 0.125 + (len(shape) == 1)
        tensors[f"mtp.0.{name}"] = mx.array(values.astype(np.float32))
    tensors["mtp.0.emb.tok_emb.weight"] = stored["embed.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folder


@pytest.fixture(scope="module")
def drafter(folder):
    stored = read_drafter(folder)
    assert stored.config.METHOD == "deepseek_v4_mtp" and stored.folder == folder
    network = model()
    return assemble(
        stored.config, stored.tensors, network.embed, network.lm_head, mx.float32, dequantize=True
    )


@pytest.fixture(scope="module")
def copies():
    """All copies of the target's last stream, `[rows, copies * hidden]`."""
    target = Target(model(), (4,), "golden", whole_copies=True)
    _, (tap,) = target(TOKENS, target.new_caches())
    target.close()
    return tap


@pytest.fixture(scope="module")
def expected(folder, drafter, copies):
    """Logits behind each row, by the target's layer with a window, over the whole text at once."""
    args = ModelArgs.from_dict(read("config"))
    args = dataclasses.replace(args, compress_ratios=[0] * 8)
    layer, weights = TargetLayer(args, 3), drafter._rows._weights
    stored = read_drafter(folder).tensors
    own = loadable({n: t for n, t in stored.items() if n.startswith("layers.0.")}, args)
    own = {name.removeprefix("layers.0."): tensor for name, tensor in own.items()}
    for name in [name for name in own if name.endswith(".scales")]:
        scales, place = own.pop(name), name.replace(".scales", ".weight")
        bits = 4 if ".experts." in name else 8
        own[place] = mx.dequantize(own[place], scales, None, 32, bits, f"mxfp{bits}")
    layer.load_weights([(name, tensor.astype(mx.float32)) for name, tensor in own.items()])
    streams = copies[:-1].reshape(-1, 4, 64)
    normed = mx.fast.rms_norm(streams, weights.hidden_norm, 1e-6) @ weights.hidden.weight.T
    embedded = mx.fast.rms_norm(model().embed(TOKENS[1:]), weights.embedding_norm, 1e-6)
    x = (normed + (embedded @ weights.embedding.weight.T)[:, None])[None]
    behind = layer(x, layer.attn.make_cache(), TOKENS[None, 1:])
    reduced = drafter._rows._reduction(behind)[0]
    return model().lm_head(mx.fast.rms_norm(reduced, weights.norm, 1e-6))


@pytest.mark.parametrize("cuts", [(0, 9), (0, 30), (0, 1, 12, 13, 40), (0, 50, 51, 52, 70)])
def test_a_row_is_the_targets_own_layers(drafter, copies, expected, cuts):
    """A feature joined with the wrong token, copies that are mixed before they are projected, a
    window that is one too long."""
    context = drafter.new_context()
    for i, (start, end) in enumerate(pairwise(cuts)):
        drafter.extend(context, [copies[start:end]], TOKENS[start:end])
        if i % 2 == 0:
            drafter.flush(context)
    draft = observed(drafter, context, TOKENS[cuts[-1] : cuts[-1] + 1])
    check_close(draft.logits[0], expected[cuts[-1] - 1])
    again = observed(drafter, context, TOKENS[cuts[-1] : cuts[-1] + 1])
    check_close(again.logits, draft.logits)
    assert context.length == cuts[-1]


def test_a_target_decodes_the_same_with_it(folder):
    """Taps of means where all copies are read; a drafter that is found without being asked for."""
    decoder = dspark_mlx.load(folder, folder, "full", precision="float32")
    trace = read("loop_golden")["traces"][4]
    prompt = trace["prompt_ids"]
    rounds = list(decoder.rounds(prompt, 30, stop_tokens=()))
    assert tokens_of(rounds) == trace["output_ids"][len(prompt) :][:30]
    assert all(done.drafted == 1 for done in rounds[1:-1])
    with pytest.raises(dspark_mlx.InputError, match="no drafter"):
        dspark_mlx.load(folder)
