"""The mixture of experts: routed by the token's id or by scores, with one expert for all tokens."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu
from mlx_lm.models.switch_layers import SwitchGLU

from .config import ModelArgs


class ClampedSwiGLU(nn.Module):
    """silu(gate) * up, in float32, with the gate at most `limit` and `up` within it; 0 is none."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self._limit = limit

    def __call__(self, up: mx.array, gate: mx.array) -> mx.array:
        """Both of one shape, and so is the result."""
        dtype = up.dtype
        up, gate = up.astype(mx.float32), gate.astype(mx.float32)
        if self._limit:
            up, gate = mx.clip(up, -self._limit, self._limit), mx.minimum(gate, self._limit)
        return swiglu(gate, up).astype(dtype)


class SharedExpert(nn.Module):
    """The expert that every token has."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        width = args.moe_intermediate_size * args.n_shared_experts
        self.gate_proj = nn.Linear(args.hidden_size, width, bias=False)
        self.up_proj = nn.Linear(args.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, args.hidden_size, bias=False)
        self.activation = ClampedSwiGLU(args.swiglu_limit)

    def __call__(self, x: mx.array) -> mx.array:
        """`[..., hidden]` to the same shape."""
        return self.down_proj(self.activation(self.up_proj(x), self.gate_proj(x)))


class _Gate(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self._chosen = args.num_experts_per_tok
        self._factor = args.routed_scaling_factor
        self._temperature = args.gate_temp
        self.weight = mx.zeros((args.n_routed_experts, args.hidden_size))

    def scores(self, x: mx.array) -> mx.array:
        """Scores of all experts, float32 `[..., experts]`."""
        logits = x.astype(mx.float32) @ self.weight.T.astype(mx.float32)
        return mx.sqrt(mx.logaddexp(logits / self._temperature, 0.0))

    def weights(self, scores: mx.array, experts: mx.array) -> mx.array:
        """Weights of the chosen experts, float32 `[..., chosen]`."""
        chosen = mx.take_along_axis(scores, experts, axis=-1)
        return chosen / chosen.sum(axis=-1, keepdims=True) * self._factor


class HashGate(_Gate):
    """The experts are those that a table has for the token's id."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self.tid2eid = mx.zeros((args.vocab_size, self._chosen), dtype=mx.int32)

    def __call__(self, x: mx.array, tokens: mx.array | None) -> tuple[mx.array, mx.array]:
        """See `ScoreGate`; token ids are int `[batch, rows]`, and must be there."""
        assert tokens is not None
        experts = self.tid2eid[tokens]
        return experts, self.weights(self.scores(x), experts)


class ScoreGate(_Gate):
    """The experts are those of the best scores, a bias added."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self.bias = mx.zeros((args.n_routed_experts,))

    def __call__(self, x: mx.array, tokens: mx.array | None) -> tuple[mx.array, mx.array]:
        """Experts and their weights, `[batch, rows, chosen]` both, of rows `[batch, rows, hidden]`.

        The bias matters to the choice alone. The order among the chosen ones is arbitrary.
        """
        scores = self.scores(x)
        order = mx.argpartition(-(scores + self.bias), self._chosen - 1, axis=-1)
        experts = order[..., : self._chosen]
        return experts, self.weights(scores, experts)


class RoutedExperts(SwitchGLU):
    """All experts of a layer among which tokens choose."""

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """The weighted sum of the chosen experts, float32 `[..., hidden]`.

        Args:
            x: rows, `[..., hidden]`.
            experts, weights: see `ScoreGate`, `[..., chosen]`.
        """
        return (super().__call__(x, experts) * weights[..., None]).sum(axis=-2)


class Experts(nn.Module):
    """The sublayer behind attention.

    Args:
        args: the checkpoint's sizes.
        hashed: whether token ids route.
    """

    def __init__(self, args: ModelArgs, hashed: bool = False) -> None:
        super().__init__()
        self.gate = HashGate(args) if hashed else ScoreGate(args)
        self.experts: nn.Module = RoutedExperts(
            args.hidden_size,
            args.moe_intermediate_size,
            args.n_routed_experts,
            ClampedSwiGLU(args.swiglu_limit),
        )
        self.shared_experts = SharedExpert(args)

    def __call__(self, x: mx.array, tokens: mx.array | None) -> mx.array:
        """`[batch, rows, hidden]` to the same shape; token ids are int `[batch, rows]`."""
        experts, weights = self.gate(x, tokens)
        routed: mx.array = self.experts(x, experts, weights)
        return routed.astype(x.dtype) + self.shared_experts(x)
