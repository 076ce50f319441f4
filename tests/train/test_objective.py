"""The whole training objective against float64 NumPy: values, and gradients by differences."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from helpers.numpy_drafter import _backbone, _markov_bias, _normed, _plan, load
from helpers.pairs import golden

from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.errors import InputError
from dspark_mlx.train.step.features import readout
from dspark_mlx.train.step.forward import FROZEN, Features, TrainingBatch
from dspark_mlx.train.step.metrics import BlockMetrics
from dspark_mlx.train.step.network import Network
from dspark_mlx.train.step.objective import Objective

LENGTH = 14
ANCHORS = ((0, 3, 4, 9), (2, 12, 0, 0))
SUPERVISED = ((5, 2, 4, 4), (3, 1, 0, 0))
"""Slots of each block that count; a block of none is no block."""
KINDS = ("vanilla", "gated", "rnn", "dflash", "conf_hidden_only", "gemma4_vanilla")
TERMS = {
    "all": Objective(),
    "ce": Objective(ce=1, l1=0, confidence=0),
    "l1": Objective(ce=0, l1=1, confidence=0, decay=0),
    "confidence": Objective(ce=1e-9, l1=0, confidence=1, decay=2),
}


@dataclass
class Case:
    """A drafter, texts, and what a target of two random matrices says of them."""

    config: object
    plan: object
    tensors: dict
    tokens: np.ndarray
    taps: np.ndarray
    last: np.ndarray
    embed: np.ndarray
    head: np.ndarray
    reduced: bool

    @property
    def supervised(self):
        counts = np.array(SUPERVISED)[..., None]
        return np.arange(self.config.gamma) < counts

    @property
    def cap(self):
        return self.plan.softcap or 0.0

    def network(self, objective, chunk=1000, checkpoint=False):
        embed, head = mx.array(self.embed), mx.array(self.head)
        target = SimpleNamespace(embed=lambda ids: embed[ids], logits=lambda rows: rows @ head.T)
        frozen = {n: mx.array(v) for n, v in self.tensors.items() if n in FROZEN}
        read = readout(self.config, frozen, target, self.cap)
        return Network(self.config, objective, target.embed, read, chunk, checkpoint, frozen)

    def mlx(self, objective, **options):
        """Loss, what is watched, and gradients, by the package."""
        network = self.network(objective, **options)
        learnt = {n: mx.array(v) for n, v in self.tensors.items() if n not in FROZEN}
        width = self.config.target_hidden_size
        taps = [
            mx.array(self.taps[..., i : i + width]) for i in range(0, self.taps.shape[-1], width)
        ]
        batch = TrainingBatch(
            mx.array(self.tokens), mx.array(ANCHORS, dtype=mx.int32), mx.array(self.supervised)
        )
        features = Features(taps, mx.array(self.last))
        of = mx.value_and_grad(lambda p: network.loss(p, batch, features))
        (loss, watched), gradients = of(learnt)
        mx.eval(loss, watched, gradients)
        return loss.item(), np.array(watched), {n: np.array(g) for n, g in gradients.items()}

    def numpy(self, objective, tensors=None, goals=None):
        """Loss, chances of acceptance and agreement by slot; `goals` replaces the chances that the
        confidence head is to say, which no gradient flows through."""
        t = tensors or {n: np.asarray(v, np.float64) for n, v in self.tensors.items()}
        gamma, loss, total = self.config.gamma, 0.0, 0.0
        chances, agrees, sure = (np.zeros((*np.shape(ANCHORS), gamma)) for _ in range(3))
        for text, block in np.ndindex(*np.shape(ANCHORS)):
            anchor = ANCHORS[text][block]
            ids = [self.tokens[text, anchor]] + [self.config.mask_token_id] * (
                self.config.block_size - 1
            )
            x = self.embed[ids].astype(np.float64) * self.plan.embed_scale
            context = self.taps[text, :anchor].astype(np.float64)
            _, rows = _backbone(self.plan, t, x, context, ids[0])
            hidden = _normed(self.plan, t, rows)[self.plan.first :]
            state = np.zeros(self.config.head_rank)
            for k in range(SUPERVISED[text][block]):
                at = text, block, k
                previous, label = self.tokens[text, anchor + k : anchor + k + 2]
                logits = self.capped(hidden[k] @ np.asarray(t.get("lm_head.weight", self.head)).T)
                e = np.zeros(0)
                if self.config.head != "none":
                    e = t["markov_head.markov_w1.weight"][previous]
                    bias, state = _markov_bias(self.config.head, t, hidden[k], e, state)
                    logits = logits + bias
                truth = self.capped(self.last[text, anchor + k].astype(np.float64) @ self.head.T)
                q = np.zeros(len(truth))
                ids = t["d2t"].astype(int) if self.reduced else np.arange(len(truth))
                q[ids] = softmax(logits)
                p = softmax(truth)
                weight = np.exp(-k / objective.decay) if objective.decay else 1.0
                total += weight
                entropy = -np.log(q[label]) if label in ids else 0.0
                loss += weight * (objective.ce * entropy + objective.l1 * np.abs(p - q).sum())
                chances[at] = np.minimum(p, q).sum()
                agrees[at] = q.argmax() == p.argmax()
                if self.config.has_confidence:
                    w = t["confidence_head.proj.weight"][0]
                    z = w @ np.concatenate([hidden[k], e])[: len(w)]
                    z += t["confidence_head.proj.bias"][0]
                    sure[at] = 1 / (1 + np.exp(-z))
                    goal = (chances if goals is None else goals)[at]
                    bce = -goal * np.log(sure[at]) - (1 - goal) * np.log(1 - sure[at])
                    loss += weight * objective.confidence * bce
        return loss / total, chances, agrees, sure

    def capped(self, logits):
        return self.cap * np.tanh(logits / self.cap) if self.cap else logits


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def make(name, folder, reduced=False):
    config = convert_drafter(golden(name), folder / name, progress=False)
    tensors = {n: np.array(v) for n, v in read_tensors(folder / name).items()}
    plan = _plan(*load(golden(name)))
    rng = np.random.default_rng(5)

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    for key, value in tensors.items():
        # Norms and biases that are all alike would hide a mix-up.
        if value.ndim == 1:
            tensors[key] = value + normal(*value.shape, scale=0.1)
        elif key.startswith(("markov_head", "confidence")):
            tensors[key] = normal(*value.shape, scale=0.4)
    vocab, hidden = config.vocab_size, config.hidden_size
    head = normal(vocab, hidden, scale=0.3)
    if reduced:
        size = vocab // 2
        tensors["d2t"] = rng.permutation(vocab)[:size].astype(np.int32)
        tensors["lm_head.weight"] = normal(size, hidden, scale=0.3)
        if config.head != "none":
            tensors["markov_head.markov_w2.weight"] = normal(size, config.head_rank)
        config = dataclasses.replace(config, draft_vocab_size=size, owns_head=True)
    shape = (len(ANCHORS), LENGTH)
    return Case(
        config,
        plan,
        tensors,
        rng.integers(0, vocab, shape).astype(np.int32),
        normal(*shape, len(config.taps) * config.target_hidden_size),
        normal(*shape, hidden),
        normal(vocab, hidden, scale=0.3),
        head,
        reduced,
    )


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    made = {}

    def get(name, reduced=False):
        if (name, reduced) not in made:
            made[name, reduced] = make(name, tmp_path_factory.mktemp("case"), reduced)
        return made[name, reduced]

    return get


@pytest.mark.parametrize("objective", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("name", KINDS)
def test_the_loss_is_the_formula(cases, name, objective):
    """A label, an anchor or a row of the target off by one; weights that are not a mean's, or of
    slots that do not count; a cap or a term left out."""
    case = cases(name)
    loss, rows, _ = case.mlx(objective)
    expected, chances, agrees, sure = case.numpy(objective)
    assert loss == pytest.approx(expected, rel=2e-5)
    watched, counts = BlockMetrics(1, loss, rows), case.supervised.sum((0, 1))
    np.testing.assert_allclose(watched.acceptance, chances.sum((0, 1)) / counts, rtol=1e-4)
    whole = case.supervised[..., -1]
    tau = 1 + np.cumprod(agrees[whole], axis=-1).sum() / whole.sum()
    assert watched.tau_greedy == pytest.approx(tau)
    tau = 1 + np.cumprod(chances[whole], axis=-1).sum() / whole.sum()
    assert watched.tau_sampled == pytest.approx(tau, rel=1e-4)
    error = np.abs(sure - chances).sum() / counts.sum() if case.config.has_confidence else 0
    assert watched.confidence_error == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "reduced"), [*((name, False) for name in KINDS), ("vanilla", True), ("dflash", True)]
)
def test_gradients_are_finite_differences(cases, name, reduced):
    """A hand-written gradient of the wrong sign or scale, one that does not reach a tensor, or one
    that flows through the confidence head's goal."""
    case, objective = cases(name, reduced), Objective(ce=0.3, l1=0.8, confidence=0.7)
    loss, _, gradients = case.mlx(objective)
    exact = {n: np.asarray(v, np.float64) for n, v in case.tensors.items()}
    expected, goals, *_ = case.numpy(objective, exact)
    assert loss == pytest.approx(expected, rel=2e-5)
    rng, step = np.random.default_rng(2), 1e-5
    for key, gradient in gradients.items():
        noise = rng.standard_normal(gradient.shape)
        size = np.linalg.norm(gradient)
        if key == f"layers.{case.config.num_layers - 1}.layer_scalar":
            # The final norm takes the last layer's scale away.
            assert size < 1e-5
            continue
        assert size > 1e-6, key
        direction = gradient / size + noise / np.linalg.norm(noise)
        moved = [
            case.numpy(objective, {**exact, key: exact[key] + sign * step * direction}, goals)[0]
            for sign in (1, -1)
        ]
        difference = (moved[0] - moved[1]) / (2 * step)
        assert difference == pytest.approx((gradient * direction).sum(), rel=2e-3), key


@pytest.mark.parametrize("reduced", (False, True))
@pytest.mark.parametrize("options", ({"chunk": 1}, {"chunk": 7}, {"checkpoint": True}))
def test_how_it_is_computed_does_not_matter(cases, options, reduced):
    """Chunks whose gradients of W2 are not added up, rows lost at a chunk's end, a gradient that a
    layer that is computed again does not pass on."""
    case = cases("vanilla", reduced)
    loss, rows, gradients = case.mlx(Objective())
    other, other_rows, others = case.mlx(Objective(), **options)
    assert other == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(other_rows, rows, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(others[name], gradient, atol=2e-5 * scale, err_msg=name)


def test_slots_that_do_not_count_change_nothing(cases):
    """Tokens after an answer's end, or of padding, that are learnt."""
    case = cases("vanilla")
    loss, _, gradients = case.mlx(Objective())
    seen = np.zeros((len(ANCHORS), LENGTH + 1), dtype=bool)
    for text, block in np.ndindex(*np.shape(ANCHORS)):
        if SUPERVISED[text][block]:
            seen[text, ANCHORS[text][block] :][: SUPERVISED[text][block] + 1] = True
    tokens = np.where(seen[:, :LENGTH], case.tokens, (case.tokens + 7) % case.config.vocab_size)
    assert (tokens != case.tokens).any()
    other, _, others = dataclasses.replace(case, tokens=tokens).mlx(Objective())
    assert other == loss
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(others[name], gradient)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"ce": -1}, "ce"), ({"decay": float("nan")}, "decay"), ({"ce": 0, "l1": 0}, "ce and l1")],
)
def test_weights_that_cannot_be_meant(change, named):
    """A term that is learnt backwards."""
    with pytest.raises(InputError, match=f"^{named}"):
        Objective(**change).check()
