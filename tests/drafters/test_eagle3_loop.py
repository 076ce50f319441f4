"""Eagle3 drafters in the decode loop, on the golden targets and through the commands.

A random drafter is right by chance only, so its output matrix is fitted to what the target writes:
some blocks are then accepted whole, some in part, some not at all.
"""

from __future__ import annotations

import json
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from helpers.hand_made import hand_made_profile
from helpers.observed import observed
from helpers.packaged_eagle3 import EAGLE3, STEPS
from helpers.pairs import GOLDEN, tokens_of

import dspark_mlx
from dspark_mlx import bench
from dspark_mlx.benchmark.plain import plain_run
from dspark_mlx.calibration.sts import identity
from dspark_mlx.convert import __main__ as convert
from dspark_mlx.convert.check import all_taps, sweep, verdict
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.errors import InputError
from dspark_mlx.load import load_unpaired
from dspark_mlx.profiling.measure import measure_profile
from dspark_mlx.replay.record import text_features
from dspark_mlx.schedulers.make import make_scheduler

TARGETS = {family: GOLDEN / f"target_{family}" for family in EAGLE3}
SIZES = {
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma4": {"num_global_key_value_heads": 1, "global_head_dim": 32},
}
SIZE = {"hidden_size": 64, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 512}
PROMPTS = ([5, 9, 40, 7, 3], [80, 2, 11], [300, 301, 17, 30, 31, 32, 8, 4])
UNSEEN = [7, 200, 100, 11]
TOKENS = 32


def published(family: str, folder) -> None:
    EAGLE3[family](folder, **SIZE, **SIZES[family])


def fit(target, drafter) -> mx.array:
    """An output matrix that gets most tokens of the target's own texts right, by least squares."""
    states, tokens = [], []
    for prompt in PROMPTS:
        text = plain_run(target, prompt, TOKENS, ()).tokens
        taps = text_features(target, [*prompt, *text])
        ids = mx.array([*prompt, *text], dtype=mx.int32)
        for at in range(len(prompt), len(ids) - STEPS):
            context = drafter.new_context()
            drafter.extend(context, [tap[:at] for tap in taps], ids[:at])
            right = map(int, ids[at + 1 : at + 1 + STEPS])
            draft = observed(
                drafter,
                context,
                ids[at : at + 1],
                lambda *_, right=right: (mx.array([next(right)], dtype=mx.int32), None),
            )
            states.append(np.array(draft.hidden))
            tokens += draft.tokens.tolist()
    x = np.concatenate(states).astype(np.float64)
    wanted = np.eye(SIZE["vocab_size"])[tokens]
    inverse = np.linalg.inv(x.T @ x + 1e-2 * np.eye(x.shape[1]))
    return mx.array((10 * (inverse @ x.T @ wanted).T).astype(np.float32))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Canonical folders whose drafter is right now and then, by family."""
    made = {}
    for family in EAGLE3:
        place = tmp_path_factory.mktemp(family)
        published(family, place / "source")
        out = made[family] = place / "drafter"
        convert_drafter(place / "source", out, progress=False, keep_embeddings=True)
        decoder = dspark_mlx.load(TARGETS[family], out, "full", precision="float32")
        tensors = mx.load(str(out / "model.safetensors"))
        tensors["lm_head.weight"] = fit(decoder.engine.target, decoder.engine.drafter)
        mx.eval(tensors)
        (out / "model.safetensors").unlink()
        mx.save_safetensors(str(out / "model.safetensors"), tensors)
        decoder.engine.target.close()
    return made


@pytest.fixture(scope="module")
def decoders(folders):
    """A target with its drafter, by family."""
    made = {
        family: dspark_mlx.load(TARGETS[family], folder, "full", precision="float32")
        for family, folder in folders.items()
    }
    yield made
    for decoder in made.values():
        decoder.engine.target.close()


def text(decoder, prompt=PROMPTS[0], **settings) -> list[int]:
    return tokens_of(decoder.rounds(prompt, TOKENS, stop_tokens=(), **settings))


def test_a_window_sees_the_newest_rows_only(folders):
    """An Eagle3 drafter whose window is not kept, or changes the output."""
    drafts, texts, held = {}, {}, {}
    for window in (None, 400, 6):
        decoder = dspark_mlx.load(
            TARGETS["qwen3"], folders["qwen3"], "full", precision="float32", draft_window=window
        )
        target, drafter = decoder.engine.target, decoder.engine.drafter
        ids = [(7 * i) % 500 for i in range(380)]
        context, features = drafter.new_context(), text_features(target, ids)
        for start in (0, 100, 375):
            end = {0: 100, 100: 375, 375: 380}[start]
            taps = [tap[start:end] for tap in features]
            drafter.extend(context, taps, mx.array(ids[start:end]))
            drafter.flush(context)
        drafts[window] = np.array(observed(drafter, context, mx.array([5])).logits)
        held[window] = context.caches[0].start
        assert context.length == len(ids)
        texts[window] = text(decoder)
        target.close()
    np.testing.assert_allclose(drafts[400], drafts[None], rtol=1e-4, atol=1e-4)
    assert np.abs(drafts[6] - drafts[None]).max() > 1e-3
    assert held[None] == held[400] == 0 < held[6]
    assert texts[None] == texts[400] == texts[6]


@pytest.mark.parametrize("family", EAGLE3)
def test_the_output_is_the_targets_own(decoders, family):
    """A correction that is not the target's, a block that stays in a cache, a token lost."""
    decoder = decoders[family]
    accepted: Counter[int] = Counter()
    for prompt in (*PROMPTS, UNSEEN):
        rounds = list(decoder.rounds(prompt, TOKENS, stop_tokens=(), prefill_step_size=2))
        assert tokens_of(rounds) == text(decoder.plain(), prompt)
        accepted.update(done.accepted for done in rounds[1:-2] if done.drafted)
        assert all(done.confidence == () for done in rounds)
    assert accepted[0] and accepted[STEPS] and sum(accepted[n] for n in range(1, STEPS))


class Spy:
    """A drafter that keeps what it drafted."""

    def __init__(self, drafter) -> None:
        self._drafter = drafter
        self.drafts: list[mx.array] = []

    def __getattr__(self, name):
        return getattr(self._drafter, name)

    def draft(self, context, anchor, pick):
        draft = self._drafter.draft(context, anchor, pick)
        self.drafts.append(draft.base_logits)
        return draft


@pytest.mark.parametrize("scheduler", ["full", "fixed:2"])
@pytest.mark.parametrize("family", EAGLE3)
def test_its_context_is_the_targets_features(decoders, family, scheduler):
    """States of its own where a token was accepted, rows of rejected ones, a token paired with the
    wrong feature: every block equals that of a context made anew from the committed tokens."""
    drafter, target = decoders[family].engine.drafter, decoders[family].engine.target
    decoder = decoders[family].with_scheduler(make_scheduler(scheduler))
    object.__setattr__(decoder.engine, "drafter", spy := Spy(drafter))
    rounds = list(decoder.rounds(PROMPTS[0], TOKENS, stop_tokens=(), prefill_step_size=2))
    committed = list(PROMPTS[0])
    taps = text_features(target, [*PROMPTS[0], *tokens_of(rounds)])
    drafts = iter(spy.drafts)
    for done in rounds:
        if done.drafted:
            rows, context = len(committed) - 1, drafter.new_context()
            tokens = mx.array(committed, dtype=mx.int32)
            drafter.extend(context, [tap[:rows] for tap in taps], tokens[:rows])
            fresh = drafter.draft(context, tokens[rows:], lambda row, *_: (row.argmax(-1), None))
            assert mx.allclose(next(drafts), fresh.base_logits, rtol=1e-3, atol=1e-3)
        committed += done.tokens
    assert len(spy.drafts) > 5 and next(drafts, None) is None


PROFILES = {
    "padded": hand_made_profile((12, 11, 20, 19, 19, 18, 17, 30), draft=1, plain=11),
    "parked": hand_made_profile((10, 20, 30, 40, 50, 60, 70, 80), draft=9, plain=10),
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("scheduler", ["full", "fixed:1", "fixed:0", "lagged", "auto"])
def test_schedulers(decoders, scheduler, profile):
    """Padding that reaches the context, features lost while a request is parked."""
    decoder = decoders["qwen3"]
    made = make_scheduler(scheduler, PROFILES[profile], identity(STEPS), has_confidence=False)
    assert text(decoder.with_scheduler(made, PROFILES[profile])) == text(decoder.plain())


@pytest.mark.parametrize("scheduler", ["threshold:0.5", "prefix"])
def test_schedulers_of_confidences_are_refused(decoders, scheduler):
    """A scheduler that reads what is not there, in the middle of a request."""
    decoder = decoders["qwen3"]
    made = make_scheduler(scheduler, PROFILES["padded"], identity(STEPS))
    with pytest.raises(InputError) as error:
        decoder.with_scheduler(made, PROFILES["padded"])
    name = scheduler.partition(":")[0]
    assert name in str(error.value) and "without a confidence head" in str(error.value)


@pytest.mark.parametrize("setting", [1, 40, "auto"])
def test_draft_vocabularies(folders, setting):
    """A setting that is ignored, or changes the output."""
    options = {"precision": "float32", "draft_vocabulary": setting}
    decoder = dspark_mlx.load(TARGETS["qwen3"], folders["qwen3"], "full", **options)
    assert decoder.engine.drafter.vocabulary_size == (512 if setting == "auto" else setting)
    assert text(decoder) == text(decoder.plain())
    decoder.engine.target.close()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "stored"])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_folders_decode(tmp_path, bits, precision):
    """A matrix of another type than the rows that it multiplies."""
    published("qwen3", tmp_path / "source")
    folder, options = tmp_path / "drafter", {"q_bits": bits, "q_group_size": 32}
    convert_drafter(tmp_path / "source", folder, quantize=True, progress=False, **options)
    decoder = dspark_mlx.load(TARGETS["qwen3"], folder, "full", precision=precision)
    rounds = list(decoder.rounds(PROMPTS[0], 12, stop_tokens=()))
    assert len(tokens_of(rounds)) == 12 and any(done.drafted for done in rounds)
    decoder.engine.target.close()


@pytest.mark.parametrize(
    "settings",
    [{}, {"reproducible": True}, {"draft_temperature": 0.0}, {"logprobs": 2}],
    ids=["block", "reproducible", "greedy drafts", "logprobs"],
)
def test_sampled_requests(decoders, settings):
    """A rule that needs what this drafter does not say; a seed's text that depends on drafts."""
    decoder, asked = decoders["qwen3"], {"temperature": 0.9, "seed": 4, **settings}
    sampled = text(decoder, **asked)
    assert sampled == text(decoder, **asked) != text(decoder)
    if settings.get("reproducible"):
        assert sampled == text(decoder.plain(), **asked)


def test_its_speed_is_measured(decoders):
    """Timing that leaves a context in which nothing can be drafted."""
    decoder = decoders["qwen3"]
    profile = measure_profile(decoder.engine, "a pair", "k", contexts=(8, 24), repeats=2)
    assert profile.contexts[0] == 8 and len(profile.draft) == 2 and min(profile.draft) > 0


def test_published_folders_load_on_the_fly(tmp_path, capsys):
    """A packaging that the command converts and load does not know."""
    published("qwen3", tmp_path / "source")
    done = convert.main(
        ["drafter", "--from", str(tmp_path / "source"), "--to", str(tmp_path / "out")]
    )
    assert done == 0 and f"Eagle3, 1 layer, {STEPS} steps" in capsys.readouterr().out
    for folder in ("source", "out"):
        decoder = dspark_mlx.load(TARGETS["qwen3"], tmp_path / folder, precision="float32")
        # Nothing of the target's is stored twice.
        assert not decoder.engine.drafter.config.owns_head
        assert text(decoder) == text(decoder.plain())
        decoder.engine.target.close()


def test_another_targets_drafter_is_refused(tmp_path):
    published("qwen3", tmp_path / "source")
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    (tmp_path / "source" / "config.json").write_text(json.dumps(config | {"num_target_layers": 9}))
    with pytest.raises(InputError, match="number of layers 9"):
        dspark_mlx.load(TARGETS["qwen3"], tmp_path / "source")


def test_its_readings_are_tried(folders):
    """A check that asks an Eagle3 drafter for rows that only a block has."""
    folder = folders["qwen3"]
    decoder, config, build = load_unpaired(TARGETS["qwen3"], folder, all_taps, "float32")
    target = decoder.engine.target
    written = [(p, plain_run(target, p, 24, ()).tokens) for p in PROMPTS[:1]]
    found = sweep(target, config, lambda r: build(r.of(config), r.changed), written)
    # Both other shifts, the other residual, feedback and pairs, and norms with 1 more and 1 less.
    assert len(found) == 8 and verdict(found)[0] and found[0].accepted > 0.2
    own = "taps +0, feature added as it is, head's output fed back before its norm, "
    assert str(found[0].reading) == own + "rotary pairs half a head apart"
    target.close()


def test_the_bench_runs_it(folders, tmp_path, capsys, monkeypatch):
    """A report that reads what only a DSpark drafter has."""
    folder = folders["qwen3"]
    ids = iter(PROMPTS * 2)
    monkeypatch.setattr("dspark_mlx.decoder.Decoder.encode", lambda self, prompt: next(ids))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"task": "t", "prompt": "p"}\n')
    flags = ["--model", str(TARGETS["qwen3"]), "--drafter", str(folder), "--scheduler", "full"]
    assert bench.main([*flags, "--prompts", str(prompts), "-m", "16", "--repeats", "1"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["rows"][0]["equal"] and last["rows"][0]["accepted_length"] >= 1
