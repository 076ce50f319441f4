"""Copies in the real loop: they change no token, and the drafter's context stays whole."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from helpers.copying import AlwaysCopies
from helpers.families import VOCABULARY, family
from helpers.hand_made import hand_made_profile
from helpers.pairs import TARGET, tokens_of, traces
from helpers.scripted import ScriptedDrafter
from helpers.slow_cases import some_slow
from helpers.tiny_models import VOCAB, tiny

import dspark_mlx
from dspark_mlx.calibration.sts import identity
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.errors import InputError
from dspark_mlx.lookup.lookup import Lookup
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.copies import CopyScheduler
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.targets.tap import Target

KINDS = {
    "full": (lambda: tiny("llama"), VOCAB),
    "window": (lambda: tiny("gpt_oss"), VOCAB),
    "window and full": (lambda: tiny("gemma3_text"), VOCAB),
    "convolution": (lambda: family("lfm2"), VOCABULARY),
    "delta net": (lambda: family("qwen3_next"), VOCABULARY),
    "state space": (lambda: family("mamba2"), VOCABULARY),
}
TOKENS = 60
# A second row costs a little, and so does each further one.
CHEAP = hand_made_profile([10 + 0.3 * i for i in range(33)], draft=3, plain=10)


@pytest.fixture(scope="module", params=some_slow(KINDS, ("full", "window", "delta net")))
def kind(request):
    """A target, a prompt, and what plain decoding makes of it."""
    make, vocabulary = KINDS[request.param]
    target = Target(make(), (0, 1), "tiny")
    prompt = np.random.default_rng(1).integers(2, vocabulary, 11).tolist()
    plain = decode(Engine(target, None, FullScheduler()), prompt)
    yield target, prompt, tokens_of(plain)
    target.close()


def decode(engine, prompt, lookup=None, tokens=TOKENS, **sampling):
    sampler = make_sampler(Sampling(**sampling), engine.target.vocab_size, len(prompt))
    options = {"max_tokens": tokens, "stop_tokens": (), "sampler": sampler, "lookup": lookup}
    return list(rounds(engine, prompt, **options))


def edited(text: list[int], vocabulary: int) -> list[int]:
    """The text with every ninth token changed: copies of it are right for a while."""
    return [(t + 1) % vocabulary if i % 9 == 8 else t for i, t in enumerate(text)]


@pytest.mark.parametrize("every", [1, 3])
def test_copies_change_no_token(kind, every):
    """A cache that cannot take back 32 rows; a row of a copy that sees what it may not; a copy that
    begins while a plain step runs."""
    target, prompt, plain = kind
    reference = edited([*prompt, *plain], target.vocab_size)
    policy = AlwaysCopies(every)
    made = decode(Engine(target, None, policy), prompt, Lookup([reference]))
    assert tokens_of(made) == plain
    copied = [done for done in made if done.proposer == "lookup"]
    assert {done.drafted for done in copied} - {done.accepted for done in copied}
    assert max(done.scheduled for done in copied) >= 20
    assert sum(done.accepted for done in copied) >= 15
    if every > 1:
        assert sum(not done.drafted for done in made) > 10


def test_the_drafters_context_is_whole(kind):
    """Features of copied rows that never reach the drafter, or those of rejected rows that do."""
    target, prompt, plain = kind
    drafter = ScriptedDrafter([*prompt, *plain], target.vocab_size, wrong=0.3)
    reference = edited([*prompt, *plain], target.vocab_size)
    made = decode(Engine(target, drafter, AlwaysCopies(2)), prompt, Lookup([reference]))
    assert tokens_of(made) == plain
    assert {done.proposer for done in made} >= {"lookup", "drafter"}
    # What a request ends with is not taken in, as nothing is drafted after it.
    text = [*prompt, *plain][: -len(made[-1].tokens) - 1]
    assert len(made) > 10 and drafter.context.tokens == text
    _, wanted = target(mx.array(text), target.new_caches())
    for found, right in zip(drafter.context.features(), wanted, strict=True):
        assert mx.abs(found - right).max() <= 1e-3 * mx.abs(right).max()


def test_a_draw_by_position_is_the_same_with_copies(kind):
    """The rule of equality under noise, which no copy may change."""
    target, prompt, _ = kind
    settings = {"temperature": 0.8, "seed": 3, "reproducible": True}
    plain = decode(Engine(target, None, FullScheduler()), prompt, **settings)
    reference = edited([*prompt, *tokens_of(plain)], target.vocab_size)
    made = decode(Engine(target, None, AlwaysCopies()), prompt, Lookup([reference]), **settings)
    assert tokens_of(made) == tokens_of(plain)
    assert sum(done.accepted for done in made) >= 15


def test_auto_chooses_the_proposer(pair):
    """A drafter that is asked where a copy is faster, a copy where the drafter is; a decision that
    is another round's."""
    decoder, trace = pair("vanilla"), traces("vanilla")[0]
    auto = make_scheduler("auto", CHEAP, identity(decoder.engine.drafter.config.gamma))
    decoder = decoder.with_scheduler(auto, CHEAP)
    options = {"max_tokens": 64, "stop_tokens": [1]}
    whole = trace["prompt_ids"] + trace["output_ids"][len(trace["prompt_ids"]) :]
    made = list(decoder.rounds(trace["prompt_ids"], reference=[whole], **options))
    assert trace["prompt_ids"] + tokens_of(made) == trace["output_ids"]
    copied = [done for done in made if done.proposer == "lookup"]
    assert sum(done.accepted for done in copied) > 32
    for done in copied:
        assert done.decision.reason == "a copy is faster"
        assert done.decision.seconds * 1e3 == done.decision.milliseconds[done.scheduled]
        assert len(done.decision.survival) >= done.scheduled == done.drafted
    alone = list(decoder.rounds(trace["prompt_ids"], copies=False, reference=[whole], **options))
    assert "lookup" not in {done.proposer for done in alone}
    assert tokens_of(alone) == tokens_of(made)


def test_a_copy_ends_at_the_stop_token():
    """Tokens behind a stop token, which a copy of an earlier answer holds."""
    target = Target(tiny("llama"), (), "tiny")
    prompt = [3, 9, 4, 11]
    plain = tokens_of(decode(Engine(target, None, FullScheduler()), prompt))
    stop = next(t for i, t in enumerate(plain) if i > 8 and t not in plain[:i])
    sampler = make_sampler(Sampling(), VOCAB, len(prompt))
    made = rounds(
        Engine(target, None, AlwaysCopies()),
        prompt,
        max_tokens=TOKENS,
        stop_tokens=[stop],
        sampler=sampler,
        lookup=Lookup([[*prompt, *plain]]),
    )
    assert tokens_of(list(made)) == plain[: plain.index(stop) + 1]
    target.close()


def test_policies_of_drafts_alone_do_not_copy(pair):
    """`full`, by which drafters are judged, with tokens that the drafter did not propose."""
    decoder, prompt = pair("vanilla"), [5, 6, 7] * 5
    made = list(decoder.rounds(prompt, 24, stop_tokens=(), reference=[[5, 6, 7]]))
    assert {done.proposer for done in made if done.drafted} == {"drafter"}
    auto = make_scheduler("auto", CHEAP, identity(decoder.engine.drafter.config.gamma))
    plain = decoder.with_scheduler(auto, CHEAP).plain()
    assert not any(done.drafted for done in plain.rounds(prompt, 24))


def test_a_target_alone_copies(monkeypatch):
    """A drafter that is looked for, taps that are asked of it, a profile without a draft."""
    decoder = dspark_mlx.load(TARGET, "lookup")
    assert decoder.engine.drafter is None and decoder.drafter_folder is None
    profile = decoder.engine.profile
    assert profile.quick and profile.draft == (0.0,)
    again = dspark_mlx.load(TARGET, "lookup")
    assert again.engine.profile == profile, "measured once"
    engine = Engine(decoder.engine.target, None, CopyScheduler(CHEAP), CHEAP)
    decoder = decoder.with_engine(engine, None)
    plain = tokens_of(decoder.plain().rounds([5, 6, 7], 48, stop_tokens=()))
    made = list(decoder.rounds([5, 6, 7], 48, stop_tokens=(), reference=[[5, 6, 7, *plain]]))
    assert tokens_of(made) == plain
    assert {done.proposer for done in made} == {"", "lookup"}
    assert sum(done.accepted for done in made) > 24
    assert all(done.decision for done in made[1:])


def test_what_copies_cannot_be_is_refused():
    with pytest.raises(InputError, match="alone schedules copies"):
        dspark_mlx.load(TARGET, "lookup", "full")
    decoder = dspark_mlx.load(TARGET, drafter=False)
    for wrong in ("text", 5, [["a"]], [[-1]], [[10**9]]):
        with pytest.raises(InputError, match="reference"):
            decoder.rounds([1, 2], 4, reference=wrong)
    with pytest.raises(InputError, match="copies"):
        decoder.rounds([1, 2], 4, copies=1)
