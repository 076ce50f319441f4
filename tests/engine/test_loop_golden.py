"""The decode loop against the PyTorch reference's greedy speculative traces."""

from __future__ import annotations

import pytest
from helpers.pairs import DRAFTERS, tokens_of, traces, with_scheduler
from helpers.slow_cases import some_slow

NEW_TOKENS = 64
STOP = [1]


TRACES = [(name, index) for name in DRAFTERS for index in range(len(traces(name)))]
# Of each drafter some of whole blocks and, behind the first six, some cut by a threshold.
SOME = [(name, index) for name, index in TRACES if index % (3 if name == "vanilla" else 6) == 0]


@pytest.mark.parametrize("case", some_slow(TRACES, SOME), ids=str)
def test_traces_equal_the_reference(pair, case):
    """Wrong acceptance, a missing bonus or correction, taps of rejected rows in the context, a
    threshold that compares another slot's confidence."""
    name, index = case
    decoder, trace = pair(name), traces(name)[index]
    threshold = trace["confidence_threshold"]
    scheduled = with_scheduler(decoder, f"threshold:{threshold}" if threshold else "full")
    prompt = trace["prompt_ids"]
    rounds = list(scheduled.rounds(prompt, NEW_TOKENS, stop_tokens=STOP))
    assert prompt + tokens_of(rounds) == trace["output_ids"]
    assert rounds[0].prefill and not any(done.prefill for done in rounds[1:])
    # The reference cuts its output at the end, and may run a round whose tokens all go.
    assert 0 <= len(trace["acceptance_lengths"]) - (len(rounds) - 1) <= 1
    remaining = NEW_TOKENS - 1
    for done, committed, proposed in zip(
        rounds[1:], trace["acceptance_lengths"], trace["proposal_lengths"], strict=False
    ):
        # What max_tokens no longer allows is neither verified nor committed.
        assert len(done.tokens) == min(committed, remaining)
        assert done.scheduled == min(proposed, remaining - 1)
        assert done.accepted == len(done.tokens) - 1
        remaining -= len(done.tokens)
    assert remaining == 0


def test_both_schedulers_are_covered():
    """Goldens without a trace whose proposals vary, which a broken threshold would pass."""
    mine = [index for name, index in SOME if name == "vanilla"]
    lengths = {n for index in mine for n in traces("vanilla")[index]["proposal_lengths"]}
    assert {0, 1, 5} <= lengths


def test_plain_decoding_gives_the_same_ids(pair):
    """A drafter that changes the target's output, or plain steps that run ahead one too far."""
    decoder = pair("vanilla")
    plain = decoder.plain()
    assert plain.engine.drafter is None and plain.engine.target is decoder.engine.target
    for trace in traces("vanilla")[:2]:
        prompt = trace["prompt_ids"]
        rounds = list(plain.rounds(prompt, NEW_TOKENS, stop_tokens=STOP))
        assert prompt + tokens_of(rounds) == trace["output_ids"]
        assert all(len(done.tokens) == 1 and done.drafted == 0 for done in rounds)


@pytest.mark.parametrize("plain", [False, True], ids=["drafted", "plain"])
def test_max_tokens_is_exact(pair, plain):
    """A round that commits past max_tokens, or stops a token early."""
    decoder = pair("vanilla")
    decoder = decoder.plain() if plain else decoder
    prompt = traces("vanilla")[3]["prompt_ids"]
    longer = tokens_of(decoder.rounds(prompt, 24, stop_tokens=()))
    assert len(longer) == 24
    for n in range(1, 13):
        assert tokens_of(decoder.rounds(prompt, n, stop_tokens=())) == longer[:n]


@pytest.mark.parametrize("plain", [False, True], ids=["drafted", "plain"])
def test_a_stop_token_cuts_exactly(pair, plain):
    """Tokens after a stop token inside an accepted block, or one more round after it."""
    decoder = pair("vanilla")
    decoder = decoder.plain() if plain else decoder
    trace = traces("vanilla")[3]
    prompt = trace["prompt_ids"]
    output = trace["output_ids"][len(prompt) :][:32]
    for stop in dict.fromkeys(output):
        got = tokens_of(decoder.rounds(prompt, 32, stop_tokens=[stop]))
        assert got == output[: output.index(stop) + 1]
    assert len(set(output)) > 1


def test_a_stop_token_is_cut_inside_a_block(pair):
    """As above where the stop token is certain to stand before others of its round."""
    decoder = pair("vanilla")
    cut = 0
    for trace in traces("vanilla")[:3]:
        prompt = trace["prompt_ids"]
        whole = list(decoder.rounds(prompt, NEW_TOKENS, stop_tokens=()))
        seen: set[int] = set()
        for index, done in enumerate(whole):
            for position, token in enumerate(done.tokens[:-1]):
                if token not in seen:
                    cut += 1
                    rounds = list(decoder.rounds(prompt, NEW_TOKENS, stop_tokens=[token]))
                    assert len(rounds) == index + 1
                    assert rounds[-1].tokens == done.tokens[: position + 1]
                    assert rounds[-1].accepted == position + 1
                seen.add(token)
            seen.add(done.tokens[-1])
    assert cut


def test_the_targets_own_end_token_is_the_default(pair):
    """stop_tokens=None taken for no stop token at all."""
    decoder = pair("vanilla")
    assert decoder.stop_tokens == {1}
    trace = traces("vanilla")[0]
    prompt = trace["prompt_ids"]
    stop = trace["output_ids"][len(prompt) + 3]
    decoder.config["eos_token_id"] = [stop, 1]
    got = tokens_of(decoder.rounds(prompt, NEW_TOKENS))
    assert got[-1] == stop and got == trace["output_ids"][len(prompt) :][: len(got)]
    assert stop not in got[:-1]


def test_requests_do_not_share_state(pair):
    """Caches or a drafter context left over from the request before, or between interleaved
    iterators of one decoder."""
    decoder = pair("gated")
    prompts = [trace["prompt_ids"] for trace in traces("gated")[:2]]
    alone = [tokens_of(decoder.rounds(p, 20, stop_tokens=())) for p in prompts]
    abandoned = decoder.rounds(prompts[1], 20, stop_tokens=())
    next(abandoned)
    next(abandoned)
    abandoned.close()
    again = [tokens_of(decoder.rounds(p, 20, stop_tokens=())) for p in prompts]
    assert again == alone


def test_prefill_reports_progress(pair):
    """Progress that misses the end or runs backwards."""
    seen: list[tuple[int, int]] = []
    prompt = traces("vanilla")[0]["prompt_ids"]
    rounds = pair("vanilla").rounds(
        prompt, 2, prefill_step_size=4, progress=lambda a, b: seen.append((a, b))
    )
    list(rounds)
    assert seen == [(0, 10), (4, 10), (8, 10), (10, 10)]
