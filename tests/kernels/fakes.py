"""Kernels that fail in every way a kernel can, on any backend. A child process imports them too."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from dspark_mlx.kernels.attention import Heads
from dspark_mlx.kernels.base import Backend, Matrix, Product
from dspark_mlx.kernels.linears import stock


class Clock:
    """Time that passes by the calls of kernels alone: every reading is 1000 s after the last."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1000
        return self.now


CLOCK = Clock()


@dataclass(frozen=True)
class Fake:
    """MLX's product, `gain` seconds quicker in a chain and `inside` seconds in a forward."""

    name: str
    gain: float = 20.0
    inside: float = 20.0
    act: Callable[[mx.array, mx.array], None] = lambda x, weight: None
    bend: Callable[[mx.array, mx.array], mx.array] = lambda y, weight: y
    exact: bool = False
    source: str = "text"
    backend: Backend = "cuda"

    def why_not(self, product: Product) -> str | None:
        return None if product.bits in (4, 8) else f"{product.bits} bits"

    def __call__(
        self, x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, product: Product
    ) -> mx.array:
        self.act(x, weight)
        CLOCK.now -= self.gain if x.ndim == 2 else self.inside
        return self.bend(stock(x, weight, scales, biases, product), weight)


@dataclass(frozen=True)
class FakeTogether(Fake):
    """A fake that also computes several products, `saved` seconds quicker and `off` by a part."""

    saved: float = 200.0
    off: float = 0.0

    def together(
        self, x: mx.array, matrices: Sequence[Matrix], products: Sequence[Product]
    ) -> list[mx.array]:
        ys = [self(x, *m, product) for m, product in zip(matrices, products, strict=True)]
        CLOCK.now -= self.saved
        return [*ys[:-1], ys[-1] * (1 + self.off)]


def crash(x: mx.array, weight: mx.array) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(x: mx.array, weight: mx.array) -> None:
    os._exit(3)


def hang(x: mx.array, weight: mx.array) -> None:
    time.sleep(600)


def refuse(x: mx.array, weight: mx.array) -> None:
    raise RuntimeError("Failed to compile kernel:\n  line 3: no such thing")


def off_on_one(y: mx.array, weight: mx.array) -> mx.array:
    """Wrong where a matrix begins with the word that `test_guard` gives one of them."""
    return mx.where(weight[0, 0] == 0x01234567, y * 1.01, y)


def slightly_off(y: mx.array, weight: mx.array) -> mx.array:
    return y * (1 + 1e-6)


@dataclass(frozen=True)
class FakeAttention:
    """MLX's attention, `gain` seconds quicker in a forward and `off` by a part."""

    name: str
    gain: float = 20.0
    off: float = 0.0
    act: Callable[[mx.array, mx.array], None] = lambda x, weight: None
    source: str = "text"
    backend: Backend = "cuda"
    max_keys: int = 20

    def why_not(self, heads: Heads) -> str | None:
        return None if heads.rows > 2 else f"{heads.rows} rows"

    def __call__(
        self, q: mx.array, k: mx.array, v: mx.array, scale: float, end: mx.array | None
    ) -> mx.array:
        self.act(q, k)
        CLOCK.now -= self.gain
        mask: str | mx.array = "causal"
        if end is not None:
            rows = end[:, None] - q.shape[2] + mx.arange(q.shape[2])
            mask = mx.arange(k.shape[2]) <= rows[:, None, :, None]
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        return y * (1 + self.off)


ATTENTIONS = {
    fake.name: fake
    for fake in (
        FakeAttention("attention"),
        FakeAttention("attention-crash", act=crash),
        FakeAttention("attention-off", off=0.05),
        FakeAttention("attention-slow", gain=-20),
    )
}

KERNELS = {
    fake.name: fake
    for fake in (
        Fake("good"),
        Fake("crash", act=crash),
        Fake("leave", act=leave),
        Fake("hang", act=hang),
        Fake("refuse", act=refuse),
        Fake("nan", bend=lambda y, weight: y * float("nan")),
        Fake("off-on-one", bend=off_on_one),
        Fake("narrow", bend=lambda y, weight: y[..., :-1]),
        Fake("inexact", bend=slightly_off, exact=True),
        Fake("slow", gain=-20),
        Fake("no-gain", gain=0.1),
        Fake("alone", inside=-20),
        Fake("drifts", bend=slightly_off),
        FakeTogether("together"),
        FakeTogether("together-off", off=0.01),
        FakeTogether("together-slow", saved=-200),
    )
}
