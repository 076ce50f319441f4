"""Hyper-connections: a residual stream of several copies, which every sublayer mixes anew.

A sublayer reads one row made of the copies, and its output is spread over them. The numbers that do
so come from the copies themselves, a token at a time, in float32.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .config import ModelArgs


def plainly_balanced(comb: mx.array, *, iters: int, eps: mx.array) -> mx.array:
    """Sinkhorn's rounds: columns and rows in turn are divided by their sums, columns last.

    Args:
        comb: positive numbers, `[..., copies, copies]`.
        iters: how often columns are divided.
        eps: added to each sum, `[1]`.
    """
    comb = comb / (comb.sum(axis=-2, keepdims=True) + eps)
    for _ in range(iters - 1):
        comb = comb / (comb.sum(axis=-1, keepdims=True) + eps)
        comb = comb / (comb.sum(axis=-2, keepdims=True) + eps)
    return comb


try:
    # mlx-lm's is one launch on Metal; a forward would have thousands of small ones.
    from mlx_lm.models.deepseek_v41 import _sinkhorn as balanced
except ImportError:  # another mlx-lm
    balanced = plainly_balanced


class HyperConnection(nn.Module):
    """Mixes the copies for one sublayer."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self._copies = args.hc_mult
        self._rounds = args.hc_sinkhorn_iters
        self._eps = mx.array([args.hc_eps])
        self._norm_eps = args.rms_norm_eps
        # The scale of each mix.
        self._scales = mx.array([0] * args.hc_mult + [1] * args.hc_mult + [2] * args.hc_mult**2)
        mixes = (2 + args.hc_mult) * args.hc_mult
        self.fn = nn.Linear(args.hc_mult * args.hidden_size, mixes, bias=False)
        self.base = mx.zeros((mixes,))
        self.scale = mx.ones((3,))

    def __call__(self, streams: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """What `reduce` and `expand` take, float32.

        Args:
            streams: the copies, `[batch, rows, copies, hidden]`.

        Returns:
            Weights of the copies in the row that the sublayer reads `[batch, rows, copies]`,
            weights of its output in the copies behind it, of the same shape, and those of the
            copies before it `[batch, rows, copies, copies]`.
        """
        n = self._copies
        mix = _projected(streams, self.fn, self._norm_eps) * self.scale[self._scales] + self.base
        into, out, between = mx.split(mix, [n, 2 * n], axis=-1)
        comb = mx.softmax(between.reshape(*between.shape[:-1], n, n), axis=-1) + self._eps
        comb = balanced(comb, iters=self._rounds, eps=self._eps)
        return mx.sigmoid(into) + self._eps, 2 * mx.sigmoid(out), comb


class FinalReduction(nn.Module):
    """Makes one row of the copies behind the last layer."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self._eps = args.hc_eps
        self._norm_eps = args.rms_norm_eps
        self.fn = nn.Linear(args.hc_mult * args.hidden_size, args.hc_mult, bias=False)
        self.base = mx.zeros((args.hc_mult,))
        self.scale = mx.ones((1,))

    def __call__(self, streams: mx.array) -> mx.array:
        """The copies `[batch, rows, copies, hidden]` to `[batch, rows, hidden]`."""
        mix = _projected(streams, self.fn, self._norm_eps)
        return reduce(streams, mx.sigmoid(mix * self.scale + self.base) + self._eps)


def reduce(streams: mx.array, weights: mx.array) -> mx.array:
    """One row of the copies.

    Args:
        streams: the copies, `[batch, rows, copies, hidden]`.
        weights: of each, `[batch, rows, copies]`.
    """
    reduced = (weights[..., None, :] @ streams.astype(mx.float32)).squeeze(-2)
    return reduced.astype(streams.dtype)


def expand(output: mx.array, streams: mx.array, weights: mx.array, comb: mx.array) -> mx.array:
    """The copies behind a sublayer: copy j gets `weights[j]` times its output, and of each copy i
    before it `comb[i, j]`.

    Args:
        output: the sublayer's, `[batch, rows, hidden]`.
        streams: the copies before it, `[batch, rows, copies, hidden]`.
        weights, comb: see `HyperConnection`.
    """
    mixed = comb.swapaxes(-1, -2) @ streams.astype(mx.float32)
    return (weights[..., None] * output[..., None, :] + mixed).astype(streams.dtype)


def copies_of(rows: mx.array, count: int) -> mx.array:
    """Rows `[batch, rows, hidden]` as equal copies `[batch, rows, count, hidden]`."""
    return mx.repeat(rows[..., None, :], count, axis=-2)


def mean_of_copies(streams: mx.array) -> mx.array:
    """The mean over the copies, which the DSpark head reads as a tap, `[batch, rows, hidden]`."""
    return streams.astype(mx.float32).mean(axis=-2).astype(streams.dtype)


def _projected(streams: mx.array, fn: nn.Linear, eps: float) -> mx.array:
    flat = streams.flatten(-2).astype(mx.float32)
    projected: mx.array = fn(mx.fast.rms_norm(flat, None, eps))
    return projected
