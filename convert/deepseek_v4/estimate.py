"""Memory of DeepSeek V4 in several forms on several machines, and the least times of a round.

All of it is predicted from config.json and the rules of the forms; nothing is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...checkpoint.hub import find_config
from ...deepseek_v4.config import ModelArgs, checked_args
from ...deepseek_v4.weights import is_exact
from ...errors import InputError
from ...system.files import DATA, read_json, read_json_list
from ...targets.deepseek_v4.attention import attention_of
from ..packagings.deepseek_v4 import is_embedded, to_drafter_config
from .described import described_outputs
from .forms import RECIPES, Form, Rules
from .plan import HEAD, Output

MACHINES = (128, 192, 256, 512)
"""Memory of the machines, in GiB."""

WORKING_SET = 0.75
"""Part of a machine's memory that its GPU may have: the least that macOS recommends on large ones.
Newer versions recommend more."""

ACTIVATIONS = 2 * 10**9
"""Bytes set aside for a forward's activations."""

_STAGES = 3
_UNNAMED = Path("config.json")
_FORMS: dict[str, Rules] = {
    "as released": Rules(),
    "-q (4 bits)": Rules(Form(4, 64)),
    "experts_2": Rules(recipe=RECIPES["experts_2"]),
    "experts_2 -q": Rules(Form(4, 64), recipe=RECIPES["experts_2"]),
}
_DEVICES = {"Apple M3 Ultra": ("256 GB", "512 GB"), "Apple M5 Ultra": ("",)}


@dataclass(frozen=True)
class Estimate:
    """What a checkpoint comes to in one form.

    Attributes:
        args: its sizes.
        outputs: what a conversion to the form writes.
        block: tokens that its head drafts.
    """

    args: ModelArgs
    outputs: Sequence[Output]
    block: int

    @classmethod
    def of(cls, config: Mapping[str, Any], rules: Rules, where: Path = _UNNAMED) -> Estimate:
        """The estimate of a release in a form, with three stages.

        Args:
            config: content of its config.json.
            rules: the form.
            where: names it in errors.

        Raises:
            InputError: a key is missing or impossible.
        """
        args = checked_args(where, config)
        stages = {f"{HEAD}{stage}.norm.weight": (args.hidden_size,) for stage in range(_STAGES)}
        head = to_drafter_config(dict(config), stages, where, keep_embeddings=False)
        return cls(args, described_outputs(config, _STAGES, rules, where), head.gamma)

    @cached_property
    def target(self) -> int:
        """Bytes of the target's weights in memory."""
        return sum(_held(each) for each in self.outputs if not _is_head(each))

    @cached_property
    def head(self) -> int:
        """Bytes of the head's weights in memory."""
        return sum(_held(each) for each in self.outputs if _is_head(each))

    def caches(self, tokens: int) -> int:
        """Bytes of a request's caches at a number of positions."""
        args, total = self.args, 0
        ratios = list(args.compress_ratios[: args.num_hidden_layers])
        for ratio in set(ratios):
            attention = attention_of(args, ratios.index(ratio))
            attention.set_dtype(mx.bfloat16)
            cache = attention.make_cache()
            # Nothing is computed: the sizes of the arrays are all that is asked for.
            attention(mx.zeros((1, 1, args.hidden_size), mx.bfloat16), cache)
            total += cache.bytes_at(tokens, self.block + 1) * ratios.count(ratio)
        return total

    def total(self, tokens: int) -> int:
        """Bytes of all, at a number of positions."""
        return self.target + self.head + self.caches(tokens) + ACTIVATIONS

    def read(self, rows: int, head: bool) -> float:
        """Bytes of weights that a forward of target or head reads, by expectation.

        Experts are counted as if every row chose its own at random: of n experts with k chosen a
        row, `n (1 - (1 - k / n)^rows)` are read. Of the embedding nothing is counted, and the
        output matrix for both.

        Args:
            rows: rows of the forward.
            head: whether it is the head's.
        """
        count, chosen = self.args.n_routed_experts, self.args.num_experts_per_tok
        part = 1 - (1 - chosen / count) ** rows
        total = 0.0
        for each in self.outputs:
            if each.name == "embed" or (_is_head(each) != head and each.name != "lm_head"):
                continue
            total += _held(each) * (part if ".ffn.experts." in each.name else 1)
        return total


def memory_table(models: Mapping[str, Mapping[str, Any]], tokens: int) -> str:
    """The bytes of each model in each form, and the machines that they fit.

    Args:
        models: content of config.json by name.
        tokens: positions of one request.
    """
    widest = max(map(len, ("model", *models))) + 2
    columns = f"{'target':>8}{'head':>7}{'caches':>8}{'in all':>8}"
    machines = "".join(f"{f'{size} GB':>9}" for size in MACHINES)
    lines = [
        f"memory of DeepSeek V4 in GB, predicted, not measured: caches for {tokens:,} tokens, "
        f"{ACTIVATIONS / 1e9:.0f} GB for activations,",
        f"against {WORKING_SET:.0%} of a machine's memory",
        f"{'model':<{widest}}{'form':<14}" + columns + machines,
    ]
    for name, config in models.items():
        for form, rules in _FORMS.items():
            each = Estimate.of(config, rules)
            total = each.total(tokens)
            fits = "".join(
                f"{'fits' if total <= WORKING_SET * (size << 30) else '-':>9}" for size in MACHINES
            )
            numbers = (each.target, each.head, each.caches(tokens), total)
            parts = "".join(
                f"{n / 1e9:>{w}.1f}" for n, w in zip(numbers, (8, 7, 8, 8), strict=True)
            )
            lines.append(f"{name:<{widest}}{form:<14}{parts}{fits}")
    return "\n".join(lines)


def roofline_rows(models: Mapping[str, Mapping[str, Any]], tokens: int) -> str:
    """The least milliseconds of a plain step and of a round's parts, by bytes alone.

    Args:
        models: content of config.json by name.
        tokens: positions of the request, whose caches are read once.
    """
    lines = [
        "least milliseconds by bytes and bandwidth, predicted, not measured, weights as released; "
        "experts as if chosen at random",
    ]
    speeds = {each["device"]: each for each in read_json_list(DATA / "devices.json")}
    for name, config in models.items():
        each = Estimate.of(config, Rules())
        rows, caches = each.block + 1, each.caches(tokens)
        reads = {"plain step": each.read(1, head=False) + caches}
        reads["draft"] = each.read(each.block, head=True)
        for width in (2, (rows + 1) // 2, rows):
            reads[f"verify {width}"] = each.read(width, head=False) + caches
        lines.append(f"{name:<30}" + "".join(f"{part:>12}" for part in reads))
        lines.append(f"{'GB read':<30}" + "".join(f"{n / 1e9:>12.1f}" for n in reads.values()))
        for device, sizes in _DEVICES.items():
            bandwidth = speeds[device]["gigabytes_per_second"] * 1e9
            for size in sizes:
                capacity = int(size.split()[0]) << 30 if size else None
                label = f"{device} {size}".strip()
                if capacity and each.total(tokens) > WORKING_SET * capacity:
                    lines.append(f"{label:<30}{'does not fit':>12}")
                    continue
                times = "".join(f"{1000 * n / bandwidth:>12.1f}" for n in reads.values())
                lines.append(f"{label:<30}{times}")
    for device in _DEVICES:
        speed, source = speeds[device]["gigabytes_per_second"], speeds[device]["source"]
        lines.append(f"{device}: {speed} GB/s ({source})")
    return "\n".join(lines)


def published_models() -> dict[str, dict[str, Any]]:
    """The configs of the published sizes, by name."""
    return {each["name"]: each["config"] for each in read_json_list(DATA / "deepseek_v4.json")}


def estimated_model(source: str) -> dict[str, dict[str, Any]]:
    """The config of a checkpoint, by its name.

    Args:
        source: a folder, or a Hub id, of which config.json alone is downloaded.

    Raises:
        InputError: it is no DeepSeek V4 with a DSpark head, or its config lacks a key.
    """
    where = find_config(source)
    if where is None:
        raise InputError(source, "no config.json", "a DeepSeek V4 checkpoint")
    config = read_json(where)
    if config.get("model_type") != "deepseek_v4" or not is_embedded(config):
        found = f"model_type {config.get('model_type')!r}"
        raise InputError(where, found, "deepseek_v4 with a DSpark head, whose estimate is known")
    Estimate.of(config, Rules(), where)
    return {where.parent.name: config}


def _is_head(output: Output) -> bool:
    return output.name.startswith(HEAD)


def _held(output: Output) -> int:
    """Bytes in memory: what is BF16 on disk and read in float32 takes twice as much."""
    exact = output.dtype == "BF16" and is_exact(f"{output.name}.weight")
    return output.nbytes * (2 if exact else 1)
