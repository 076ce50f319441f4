"""What a round must cost: the bytes that it reads and the operations that it does, over rates.

Bytes are those of all weights, read once, and of the keys and values of a context. Operations are
two for each weight and row. A round takes at least the longer of both; the rest is launches,
Python, and kernels that read weights more than once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import mlx.core as mx
from mlx.utils import tree_flatten

from ..caches import cache_arrays
from ..checkpoint.linear import arrays_of
from ..engine.state import Engine
from ..schedulers.speed_profile import SpeedProfile
from ..system.files import DATA, read_json_list

_BYTES, _SIZE, _RUNS = 1 << 29, 4096, 5


@dataclass(frozen=True)
class Work:
    """What a part of a round reads and does.

    Attributes:
        bytes: bytes of weights.
        weights: numbers that they hold, by which rows are multiplied.
    """

    bytes: int
    weights: int

    def milliseconds(self, rows: int, bandwidth: float, rate: float, extra: int = 0) -> float:
        """The least time of so many rows.

        Args:
            rows: rows that go through the weights.
            bandwidth: bytes a second.
            rate: operations a second; infinity to count bytes alone.
            extra: further bytes, of keys and values.
        """
        return 1000 * max((self.bytes + extra) / bandwidth, 2 * rows * self.weights / rate)


@dataclass(frozen=True)
class Rates:
    """What the device reaches here: bytes a second, and operations of dense products a second."""

    bandwidth: float
    operations: float


def work_of(engine: Engine) -> tuple[Work, Work]:
    """Work of the target's forward and of the drafter's; of the table of embeddings nothing.

    A mixture of experts reads fewer weights than it holds: its bound here is too high.
    """
    model = engine.target.model
    held = dict(tree_flatten(model.parameters()))
    # Rows of a table that is an output matrix too are read for the logits, else a few alone.
    tied = not any("head" in name for name in held)
    read = {name: a for name, a in held.items() if tied or "embed" not in name}
    target = _work(list(read.values()), _packed(model))
    drafter = engine.drafter
    own = [] if drafter is None else arrays_of(vars(drafter))
    return target, _work(own, {})


def _packed(model: object) -> dict[int, int]:
    """Numbers in a packed word, by the word array's id."""
    modules = model.named_modules()  # type: ignore[attr-defined]
    return {id(m.weight): 32 // m.bits for _, m in modules if hasattr(m, "bits")}


def _work(arrays: Sequence[mx.array], packed: dict[int, int]) -> Work:
    matrices = [a for a in arrays if a.ndim > 1]
    total = sum(
        a.size * packed.get(id(a), 1) for a in matrices if id(a) in packed or a.dtype != mx.uint32
    )
    return Work(sum(a.nbytes for a in arrays), total)


def measured_rates(dtype: mx.Dtype) -> Rates:
    """Bandwidth and rate of the default device, each the best of a few runs after one warm-up."""
    numbers = mx.ones((_BYTES // 4,), dtype=mx.float32)
    square = mx.ones((_SIZE, _SIZE), dtype=dtype)
    mx.eval(numbers, square)
    read = _best(lambda: mx.max(numbers))
    product = _best(lambda: square @ square)
    return Rates(_BYTES / read, 2 * _SIZE**3 / product)


def _best(make: Callable[[], mx.array]) -> float:
    taken = []
    for _ in range(_RUNS + 1):
        started = perf_counter()
        mx.eval(make())
        taken.append(perf_counter() - started)
    return min(taken[1:])


def key_value_bytes(engine: Engine, context: int) -> int:
    """Bytes of keys and values that a context of so many positions has in the target's caches."""
    caches, rows = engine.target.new_caches(), 8
    engine.target(mx.zeros((rows,), dtype=mx.int32), caches)
    arrays = cache_arrays(caches)
    mx.eval(arrays)
    return sum(a.nbytes // a.shape[2] for a in arrays if a.ndim == 4) * context


def roofline_table(engine: Engine, profile: SpeedProfile, rates: Rates) -> str:
    """The least times of a round beside the profile's, and predicted ones of other devices."""
    target, drafter = work_of(engine)
    block = engine.drafter.config.gamma + 1 if engine.drafter else 1
    context = profile.contexts[0]
    extra = key_value_bytes(engine, context)
    costs = profile.at(context)
    lines = [
        f"roofline of {profile.device}: {rates.bandwidth / 1e9:.0f} GB/s and "
        f"{rates.operations / 1e12:.2f} Tflop/s, measured here; milliseconds at context {context}",
        f"target {target.bytes / 1e9:.2f} GB, drafter {drafter.bytes / 1e9:.2f} GB",
        f"{'':>16}{'least':>9}{'measured':>10}{'part':>7}",
    ]
    parts = [("plain step", target, 1, costs.plain), ("draft", drafter, block - 1, costs.draft)]
    widths = sorted({2, (block + 1) // 2, block})
    parts += [(f"verify {n}", target, n, costs.verify[n - 1]) for n in widths if n <= block]
    for name, work, rows, measured in parts:
        more = extra if work is target else 0
        least = work.milliseconds(rows, rates.bandwidth, rates.operations, more)
        part = f"{least / measured:>7.0%}" if measured else ""
        lines.append(f"{name:>16}{least:>9.2f}{measured:>10.2f}{part}")
    lines.append(
        f"\npredicted, not measured: a round of {block} rows by bytes and Apple's bandwidth"
    )
    for entry in read_json_list(DATA / "devices.json"):
        speed = entry["gigabytes_per_second"]
        if speed is None:
            lines.append(f"{entry['device']:>16}        -  ({entry['source']})")
            continue
        total = sum(w.milliseconds(1, 1e9 * speed, float("inf")) for w in (target, drafter))
        total += 1000 * extra / (1e9 * speed)
        lines.append(f"{entry['device']:>16}{total:>9.2f}  predicted from {speed} GB/s")
    return "\n".join(lines)
