"""Targets' prediction heads: converted, loaded strictly, and equal to a NumPy reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.numpy_mtp import reference
from helpers.observed import observed
from helpers.packaged_case import close
from helpers.packaged_mtp import DEPTH, HEADS, HIDDEN, LONE_HEADS, VOCAB, Packaged
from helpers.pairs import tokens_of

from dspark_mlx.checkpoint.layout import check_tensors
from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert import __main__ as command
from dspark_mlx.convert.canonical_folder import Settings
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.convert.mtp import convert_mtp
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.drafters.chain_config import STATES
from dspark_mlx.drafters.methods import read_config
from dspark_mlx.drafters.mtp.block import FAMILIES, build_model
from dspark_mlx.drafters.mtp.config import ORDERS, MTPConfig
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.errors import InputError
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.system.files import read_json
from dspark_mlx.targets.compatibility import check_pair
from dspark_mlx.targets.tap import Target

ROUNDS = (6, 8, 9)
STEPS = 3


class Case:
    """A target's checkpoint, and a text with its states at each position."""

    def __init__(self, name: str, folder) -> None:
        self.source, self.out = folder / "source", folder / "out"
        self.packaged = (HEADS | LONE_HEADS)[name]()
        self.packaged.write(self.source)
        rng = np.random.default_rng(6)
        self.tokens = rng.integers(0, VOCAB, max(ROUNDS) + 1).tolist()
        self.states = rng.normal(0, 2, (max(ROUNDS), HIDDEN))
        embed, head = rng.normal(0, 0.7, (2, VOCAB, HIDDEN))
        self.tables = embed, head

    def convert(self, **options) -> MTPConfig:
        settings = Settings(progress=False, **options)
        config = convert_mtp(self.source, self.out, steps=STEPS, settings=settings)
        assert isinstance(config, MTPConfig)
        return config

    def drafter(self, config: MTPConfig, **changes):
        """Of what was stored and loaded again, with changed conventions."""
        stored = read_tensors(self.out)
        check_tensors(config, stored, self.out)
        assert read_config(read_json(self.out / "config.json"), "test") == config
        embed, head = (mx.array(table.astype(np.float32)) for table in self.tables)
        return assemble(
            replace(config, **changes),
            stored,
            lambda ids: embed[ids],
            lambda hidden: hidden @ head.T,
            mx.float32,
            dequantize=False,
        )

    def feed(self, drafter, context, there: int, rows: int) -> None:
        states = mx.array(self.states[there:rows].astype(np.float32))
        drafter.extend(context, [states], mx.array(self.tokens[there:rows], dtype=mx.int32))

    def draft(self, drafter, context, rows: int):
        return observed(drafter, context, mx.array(self.tokens[rows : rows + 1], dtype=mx.int32))

    def first(self, drafter):
        context = drafter.new_context()
        self.feed(drafter, context, 0, ROUNDS[0])
        return self.draft(drafter, context, ROUNDS[0])

    def expected(self, rows: int = ROUNDS[0], **conventions):
        head = self.packaged
        own: dict[str, Any] = {"order": head.order, "offset": head.offset} | conventions
        states, tokens = self.states[:rows], self.tokens[: rows + 1]
        return reference(
            self.source, head.head, head.prefix, states, tokens, self.tables, STEPS, **own
        )


@pytest.fixture(params=HEADS)
def case(request, tmp_path):
    return Case(request.param, tmp_path)


def test_it_drafts_as_published(case):
    """Experts in another order, latents cut elsewhere, norms without their 1, a token with another
    position's state, a block that stays in the context: nothing of this raises."""
    config = case.convert()
    assert config.target_num_layers == DEPTH and config.taps == (DEPTH - 1,)
    drafter = case.drafter(config)
    context, there = drafter.new_context(), 0
    for rows in ROUNDS:
        case.feed(drafter, context, there, rows)
        if rows % 2:
            drafter.flush(context)
        there = rows
        for _ in range(2):
            draft, (tokens, logits) = case.draft(drafter, context, rows), case.expected(rows)
            assert draft.tokens.tolist() == tokens
            assert close(draft.logits, logits)
            assert context.length == rows


@pytest.mark.parametrize("name", ["qwen3_5", "deepseek_v3"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("feedback", STATES)
@pytest.mark.parametrize("state", STATES)
def test_its_conventions_are_fields(tmp_path, name, state, feedback, order):
    """A field that nobody reads, or one that is read as another."""
    case = Case(name, tmp_path)
    changes = {"state": state, "feedback": feedback, "order": order}
    draft = case.first(case.drafter(case.convert(), **changes))
    _, logits = case.expected(**changes)
    assert close(draft.logits, logits)
    _, usual = case.expected()
    assert close(logits, usual) == (tuple(changes.values()) == ("normed", "normed", "embedding"))


def test_every_family_has_a_case():
    covered = {HEADS[name]().config["model_type"] for name in HEADS} | set(LONE_HEADS)
    assert set(FAMILIES) <= covered


@pytest.mark.parametrize("name", ["qwen3_next", "deepseek_v3"])
def test_quantized_heads_load(tmp_path, name):
    """Stacks of experts, whose rows are quantised one by one."""
    case = Case(name, tmp_path)
    config = case.convert(quantize=True, bits=8, group_size=32)
    assert config.quantization is not None
    quantized = [n for n in config.matrix_shapes() if config.quantization.of(n)]
    assert any("switch_mlp" in n for n in quantized)
    assert not any(n.endswith("mlp.gate") for n in quantized)
    draft, (_, logits) = case.first(case.drafter(config)), case.expected()
    assert np.abs(np.array(draft.logits[0]) - logits[0]).max() < 0.2


def test_what_mlx_wrote_has_its_norms_as_factors(tmp_path):
    """A 1 added twice, which only lowers acceptance."""
    case = Case("qwen3_5", tmp_path)
    _, logits = case.expected()
    shifted = {
        name: tensor + 1 if "norm" in name else tensor
        for name, tensor in case.packaged.tensors.items()
    }
    replace(case.packaged, tensors=shifted).write(case.source, format="mlx")
    assert close(case.first(case.drafter(case.convert())).logits, logits)


def test_kept_copies_are_the_drafters_own(tmp_path):
    """Copies of the target's tables that are loaded and not read."""
    case = Case("deepseek_v3", tmp_path)
    settings = Settings(progress=False)
    config = convert_mtp(
        case.source, case.out, steps=STEPS, keep_embeddings=True, settings=settings
    )
    assert config.owns_embedding and config.owns_head and isinstance(config, MTPConfig)
    own = [case.packaged.tensors[f"{case.packaged.prefix}{n}.weight"] for n in TABLES]
    case.tables = own[0], own[1]
    _, logits = case.expected()
    case.tables = own[1], own[0]  # what would be read of the target
    assert close(case.first(case.drafter(config)).logits, logits)


TABLES = ("embed_tokens", "shared_head.head")


def test_it_drafts_for_the_model_that_it_came_with(tmp_path):
    """A tap of another layer, or output that is not the target's."""
    source = tmp_path / "source"
    packaged = HEADS["qwen3_5"]()
    packaged.write(source)
    text = packaged.config["text_config"]
    model = build_model("qwen3_5", text | {"model_type": "qwen3_5_text"})
    mx.eval(model.parameters())
    target = Target(model, (DEPTH - 1,), "target")
    config = convert_mtp(source, tmp_path / "out", settings=Settings(progress=False))
    check_pair(config, "drafter", target, "target")
    drafter = assemble(
        config, read_tensors(tmp_path / "out"), target.embed, target.logits, mx.float32, False
    )
    prompt, tokens = (1, 5, 2, 7), []
    for engine in (Engine(target, drafter, FullScheduler()), Engine(target, None, FullScheduler())):
        sampler = make_sampler(Sampling(), target.vocab_size)
        done = rounds(engine, prompt, max_tokens=24, stop_tokens=(), sampler=sampler)
        tokens.append(tokens_of(done))
    assert tokens[0] == tokens[1]


def edit(**changes) -> Callable:
    """Tensors replaced, or taken out where the change is None; "__" stands for a dot."""

    def change(packaged: Packaged) -> Packaged:
        tensors = dict(packaged.tensors)
        for name, value in changes.items():
            key = name.replace("__", ".")
            if value is None:
                del tensors[key]
            else:
                tensors[key] = value(tensors.get(key))
        return replace(packaged, tensors=tensors)

    return change


def edit_config(**changes) -> Callable:
    def change(packaged: Packaged) -> Packaged:
        config = json.loads(json.dumps(packaged.config))
        text = config.get("text_config", config)
        for name, value in changes.items():
            (config if name == "model_type" else text)[name] = value
        return replace(packaged, config=config)

    return change


BROKEN = {
    "no head": (
        "qwen3_5",
        lambda packaged: replace(packaged, tensors={"lm_head.weight": np.ones((4, 4))}),
        ("no tensors of a prediction head", "original checkpoint"),
    ),
    "no fc": ("qwen3_5", edit(mtp__fc__weight=None), ("no tensor fc.weight",)),
    "no final norm": (
        "qwen3_5",
        edit(model__language_model__norm__weight=None),
        ("no tensor target_norm.weight",),
    ),
    "a second layer": (
        "qwen3_5",
        edit(mtp__layers__1__input_layernorm__weight=lambda _: np.ones(HIDDEN)),
        ("unknown tensors block.1.input_layernorm.weight",),
    ),
    "an expert missing": (
        "qwen3_next",
        edit(mtp__layers__0__mlp__experts__2__up_proj__weight=None),
        ("mlx-lm cannot convert",),
    ),
    "an expert missing, not joined by mlx-lm": (
        "qwen3_5_moe_apart",
        edit(mtp__layers__0__mlp__experts__2__up_proj__weight=None),
        ("block.0.mlp.switch_mlp.up_proj.weight", "[3, 16, 32]", "[4, 16, 32]"),
    ),
    "latents of another width": (
        "deepseek_v3",
        edit(model__layers__3__self_attn__kv_b_proj__weight=lambda t: t[:-1]),
        ("mlx-lm cannot convert",),
    ),
    "NaN": ("mimo", edit(model__norm__weight=lambda t: t * np.nan), ("target_norm.weight", "NaN")),
    "another family": ("mimo", edit_config(model_type="llama"), ("model_type 'llama'", "qwen3_5")),
    "a size missing": ("mimo", edit_config(hidden_size=None), ("no hidden_size",)),
    "a size of another kind": ("mimo", edit_config(vocab_size="64"), ("vocab_size '64'",)),
    "heads that do not divide": (
        "glm4_moe",
        edit_config(num_key_value_heads=3),
        ("num_heads 4 with num_kv_heads 3",),
    ),
    "a pattern of attention alone": (
        "nemotron_h",
        edit_config(mtp_hybrid_override_pattern=None),
        ("num_hidden_layers 0",),
    ),
    "a pattern that attends later": (
        "nemotron_h",
        edit_config(mtp_hybrid_override_pattern="E*"),
        ("a head whose first layer attends",),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_refused(tmp_path, name):
    """A damaged head that converts, a traceback, or something half-written."""
    family, change, parts = BROKEN[name]
    source, out = tmp_path / "source", tmp_path / "out"
    change(HEADS[family]()).write(source)
    with pytest.raises(InputError) as error:
        convert_mtp(source, out, settings=Settings(progress=False))
    assert [part for part in parts if part not in str(error.value)] == []
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["source"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_head_by_itself(tmp_path, packed):
    """mlx-vlm's: names without `mtp.`, norms as factors, matrices that MLX packed, and no norm of
    the target's."""
    case = Case("qwen3_5", tmp_path)
    _, logits = case.expected(state="raw")
    tensors: dict[str, mx.array] = {}
    for name, value in case.packaged.tensors.items():
        if not name.startswith("mtp."):
            continue
        own = name.removeprefix("mtp.")
        array = mx.array(value.astype(np.float32)) + (1 if "norm" in name else 0)
        tensors[own] = array
        if packed and array.ndim == 2 and array.shape[1] % 32 == 0:
            base = own.removesuffix(".weight")
            parts = mx.quantize(array, group_size=32, bits=8)
            tensors |= dict(zip((own, f"{base}.scales", f"{base}.biases"), parts, strict=True))
    mx.save_safetensors(str(case.source / "model.safetensors"), tensors, {"format": "mlx"})
    config = case.packaged.config | {"model_type": "qwen3_5_mtp", "block_size": 3}
    config |= {"quantization": {"group_size": 32, "bits": 8}} if packed else {}
    (case.source / "config.json").write_text(json.dumps(config))
    converted = case.convert()
    assert converted.state == "raw" and (converted.quantization is not None) == packed
    found = np.array(case.first(case.drafter(converted)).logits)
    assert np.abs(found - logits).max() < (0.2 if packed else 2e-4)


@pytest.mark.parametrize("name", LONE_HEADS)
def test_vllms_heads_are_drafters_by_themselves(tmp_path, name):
    """Refused, or read as the target's checkpoint; fused experts left as one tensor; the number of
    steps not read; a norm of the target's asked for."""
    case = Case(name, tmp_path)
    config = convert_drafter(case.source, case.out, progress=False)
    assert isinstance(config, MTPConfig) and (config.state, config.feedback) == ("raw", "normed")
    assert config.steps == STEPS and config.taps == (DEPTH - 1,)
    drafter = case.drafter(config)
    context = drafter.new_context()
    case.feed(drafter, context, 0, ROUNDS[0])
    draft = case.draft(drafter, context, ROUNDS[0])
    tokens, logits = case.expected(state="raw")
    assert draft.tokens.tolist() == tokens and close(draft.logits, logits)
    # Its own matrices can be quantised, as those of other drafters.
    packed = convert_drafter(
        case.source, case.out, quantize=True, q_bits=8, q_group_size=32, overwrite=True
    )
    assert packed.quantization is not None


LONE_BROKEN = {
    "more steps": (
        {"speculators_config": {"proposal_methods": [{"speculative_tokens": 5}]}},
        None,
    ),
    "nothing said": ({"speculators_config": None}, None),
    "two layers": ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers 2"),
    "another family": ({"transformer_layer_config": {"model_type": "llama"}}, "a head for qwen3"),
    "no layer": ({"transformer_layer_config": None}, "model_type None"),
    "no depth": (
        {"transformer_layer_config": {"num_hidden_layers": None}},
        "no num_hidden_layers",
    ),
}


@pytest.mark.parametrize("what", LONE_BROKEN)
def test_what_vllms_heads_say(tmp_path, what):
    changes, message = LONE_BROKEN[what]
    case = Case("qwen3", tmp_path)
    config = dict(case.packaged.config)
    for key, value in changes.items():
        nested = isinstance(value, dict) and key == "transformer_layer_config"
        config[key] = config[key] | value if nested else value
    config = {key: value for key, value in config.items() if value is not None}
    (case.source / "config.json").write_text(json.dumps(config))
    if message is None:
        steps = convert_drafter(case.source, case.out, progress=False).gamma
        assert steps == (5 if what == "more steps" else STEPS)
        return
    with pytest.raises(InputError, match=message):
        convert_drafter(case.source, case.out, progress=False)
    assert not case.out.exists()


def test_the_command_writes_it(tmp_path, capsys):
    """Flags that do not arrive; a card that asks for the whole target."""
    HEADS["mimo"]().write(tmp_path / "source")
    source, out = str(tmp_path / "source"), tmp_path / "head"
    flags = ["drafter", "--from", source, "--to", str(out), "--mtp"]
    assert command.main([*flags, "5", "-q", "--q-bits", "8", "--q-group-size", "32", "--card"]) == 0
    config = read_config(read_json(out / "config.json"), "test")
    assert (config.gamma, config.order) == (5, "hidden") and config.quantization is not None
    assert "prediction head (mimo), 5 steps" in capsys.readouterr().out
    assert (out / "README.md").exists()
    assert command.main([*flags, "--overwrite"]) == 0
    assert read_config(read_json(out / "config.json"), "test").gamma == STEPS
    for steps in ("0", "-3", "257"):
        with pytest.raises(InputError, match=f"steps {steps}"):
            command.main([*flags, steps, "--overwrite"])


def test_eight_bit_floats_are_scaled(tmp_path):
    """DeepSeek's own files: weights of eight bits with a scale for each block of 128 by 128."""
    case = Case("deepseek_v3", tmp_path)
    layer = f"{case.packaged.prefix}self_attn.o_proj"
    rng = np.random.default_rng(4)
    stored = mx.to_fp8(mx.array(rng.normal(0, 30, (HIDDEN, 48)).astype(np.float32)))
    plain = np.array(mx.from_fp8(stored, dtype=mx.float32)) * 0.005
    rounded = np.array(mx.array(plain).astype(mx.bfloat16).astype(mx.float32))
    tensors = case.packaged.tensors | {f"{layer}.weight": rounded}
    replace(case.packaged, tensors=tensors).write(case.source)
    _, logits = case.expected()
    typed = {n: np.ascontiguousarray(a, np.float32) for n, a in tensors.items()}
    typed[f"{layer}.weight_scale_inv"] = np.full((1, 1), 0.005, np.float32)
    del typed[f"{layer}.weight"]
    save_typed(case.source / "model.safetensors", typed, {f"{layer}.weight": np.array(stored)})
    found = np.array(case.first(case.drafter(case.convert())).logits)
    assert np.abs(found - logits).max() < 0.02


def save_typed(path: Path, tensors: dict[str, np.ndarray], eight: dict[str, np.ndarray]) -> None:
    """A safetensors file of float32 and of eight-bit floats, which NumPy has no type for."""
    header, data = {}, b""
    for kind, group in (("F32", tensors), ("F8_E4M3", eight)):
        for name, array in group.items():
            end = len(data) + array.nbytes
            offsets = [len(data), end]
            header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
            data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
