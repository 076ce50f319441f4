"""What the measured forwards read: a text, so that experts are chosen as a request chooses them."""

from __future__ import annotations

import mlx.core as mx
import pytest
from helpers.families import family
from helpers.pairs import TARGET, golden
from helpers.scripted import ScriptedDrafter
from mlx_lm.models.switch_layers import SwitchGLU

from dspark_mlx.engine.state import Engine
from dspark_mlx.profiling.pair import Pair
from dspark_mlx.profiling.timing import Session
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.targets.tap import Target

MOE = "qwen3_moe"


@pytest.fixture
def engine():
    target = Target(family(MOE), (), MOE)
    yield Engine(target, ScriptedDrafter([], target.vocab_size, 0.5), FullScheduler())
    target.close()


@pytest.fixture
def chosen(monkeypatch):
    """Experts of every row that went through a mixture, call by call."""
    calls: list[list[list[int]]] = []
    call = SwitchGLU.__call__

    def recorded(self, x, indices):
        calls.append(indices.reshape(-1, indices.shape[-1]).tolist())
        return call(self, x, indices)

    monkeypatch.setattr(SwitchGLU, "__call__", recorded)
    return calls


@pytest.mark.parametrize("text", [(), tuple(range(3, 60))], ids=["ids at random", "a text"])
def test_rows_of_a_forward_are_routed_to_different_experts(engine, chosen, text):
    """A verify forward timed over one token repeated, which reads the experts of a single row."""
    session = Session(engine, text)
    session.fill(16, 1.0)
    chosen.clear()
    for (what, _), run in session.points((1, 8)).items():
        if what == "verify":
            run()
    one = [len({e for row in call for e in row}) for call in chosen if len(call) == 1]
    eight = [len({e for row in call for e in row}) for call in chosen if len(call) == 8]
    assert one and eight and max(one) < min(eight)


def test_every_forward_reads_the_next_piece(engine):
    """Every pass over the same few rows, which stand for no others."""
    text = list(range(5, 45))
    session = Session(engine, text)
    read = [session._tokens((7,)).tolist() for _ in range(12)]
    joined = [token for piece in read for token in piece]
    assert joined == (text * 3)[:84]
    assert mx.array(session._tokens((2, 3))).shape == (2, 3)


def test_the_text_is_a_real_one(tmp_path):
    """A measured text that is empty where the target has a tokenizer."""
    pair = Pair(None, TARGET, golden("vanilla"), "float32", None, lambda text: list(text.encode()))
    assert len(pair.text) > 1000 and len(set(pair.text)) > 30
    assert Pair(None, TARGET, golden("vanilla"), "float32").text == []
