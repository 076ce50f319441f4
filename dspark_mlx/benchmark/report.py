"""A bench's result for others to read: which machine, which models, what was measured.

Nothing in it tells whose machine it was: no path, no user's name, no host's name.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.fingerprint import device_name
from ..checkpoint.hub import hub_name
from ..checkpoint.safetensors import tensor_headers
from ..decoder import Decoder
from ..errors import InputError
from ..version import __version__
from .comparison import Row, speedups

FORMAT, FORMAT_VERSION = "dspark_mlx.bench", 1
TABLE_HEAD = (
    "| machine | target | drafter | mlx-lm, tokens/s | dspark_mlx, tokens/s | speedup "
    "| tokens a round |\n|---|---|---|---|---|---|---|"
)
"""What stands above the lines of `table_line` in the README."""

_TYPES = {"F32": ("float32", 32), "F16": ("float16", 16), "BF16": ("bfloat16", 16)}
_HUB_CACHE = re.compile(r"models--([^/]+?)--([^/]+)")


@dataclass(frozen=True)
class ReportedModel:
    """A model as a report names it.

    Attributes:
        name: owner/name of the Hub, or the last part of a path.
        bits: bits of a stored weight; of a mixed quantization, those of most matrices.
        group_size: quantized weights that share a scale; None where they are not quantized.
        type: of the weights, or of the scales where they are quantized.
        precision: what they were held in while it was measured, "stored" for as they are.
    """

    name: str
    bits: int
    group_size: int | None
    type: str
    precision: str

    def __str__(self) -> str:
        stored = f"{self.bits}-bit" if self.group_size else self.type
        held = "" if self.precision in ("stored", stored) else f" held in {self.precision}"
        return f"{self.name}, {stored}{held}"


def public_name(asked: str | Path) -> str:
    """How a report names a model: the Hub's owner/name, or the last part of a path.

    Args:
        asked: a path or a Hub id, as `load` takes it.
    """
    if name := hub_name(asked):
        return name
    path = os.path.realpath(os.path.expanduser(asked))
    if found := _HUB_CACHE.search(path):
        return "/".join(found.groups())
    return os.path.basename(path).removesuffix(".gguf")


def reported_target(decoder: Decoder, name: str) -> ReportedModel:
    """The target of a decoder under its public name.

    Raises:
        InputError: its folder cannot be read.
    """
    quantized = decoder.config.get("quantization") or {}
    return _reported(name, decoder.target_folder, quantized, decoder.precision)


def reported_drafter(decoder: Decoder, name: str) -> ReportedModel:
    """The drafter of a decoder under its public name.

    Raises:
        InputError: there is none, or its folder cannot be read.
    """
    drafter, folder = decoder.engine.drafter, decoder.drafter_folder
    if drafter is None or folder is None:
        raise InputError("bench report", "no drafter", "a target with its drafter")
    stored = drafter.config.quantization
    quantized = {"bits": stored.bits, "group_size": stored.group_size} if stored else {}
    return _reported(name, folder, quantized, decoder.precision)


def _reported(
    name: str, folder: Path, quantized: Mapping[str, Any], precision: str
) -> ReportedModel:
    headers = tensor_headers(folder).values()
    # The largest tensor that is a number itself: packed weights are integers.
    plain = [header for header in headers if header.dtype in _TYPES]
    largest = max(plain, key=lambda header: prod(header.shape), default=None)
    type_, bits = _TYPES[largest.dtype] if largest else ("unknown", 0)
    group_size = quantized.get("group_size")
    return ReportedModel(name, quantized.get("bits", bits), group_size, type_, precision)


def machine() -> dict[str, Any]:
    """The device, the system and the versions that a measurement depends on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "device": device_name(),
        "memory_gb": round(memory / 1e9, 1),
        "os": _system(),
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "dspark_mlx": __version__,
    }


def _system() -> str:
    """The operating system and the processor's kind; not `platform.platform`: kernels have names
    of their owners' own."""
    if mac := platform.mac_ver()[0]:
        return f"macOS {mac} {platform.machine()}"
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return f"{name} {platform.machine()}"


def totals(rows: Sequence[Row]) -> dict[str, float]:
    """Speeds and tokens a round of all prompts together.

    Returns:
        `plain_tps`, `speculative_tps`: tokens per second after the first token of each text.
        `speedup`, `slowest`: of all tokens together, and of the slowest prompt.
        `accepted_length`: tokens a round. `peak_memory_gb`: as MLX counts it, of both sides.
    """
    speedup, slowest = speedups(rows)
    tokens = sum(row.tokens for row in rows)
    drafted = sum(row.tokens - 1 for row in rows)  # the prefill chooses the first one
    rounds = sum((row.tokens - 1) / row.accepted_length for row in rows)
    plain = sum(row.tokens * row.plain_seconds_per_token for row in rows)
    speculative = sum(row.tokens * row.speculative_seconds_per_token for row in rows)
    return {
        "plain_tps": tokens / plain,
        "speculative_tps": tokens / speculative,
        "speedup": speedup,
        "slowest": slowest,
        "accepted_length": drafted / rounds,
        "peak_memory_gb": mx.get_peak_memory() / 1e9,
    }


def make_report(
    target: ReportedModel,
    drafter: ReportedModel,
    scheduler: Mapping[str, str],
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    **more: Any,
) -> dict[str, Any]:
    """The report as JSON data.

    Args:
        target, drafter: what was measured.
        scheduler: its name as it was "asked" for, and the one that was "used".
        settings: of the requests and of the measurement, "temperature" among them.
        rows: one a prompt.
        more: further numbers.
    """
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "machine": machine(),
        "target": asdict(target),
        "drafter": asdict(drafter),
        "scheduler": dict(scheduler),
        "settings": dict(settings),
        "rows": [asdict(row) | {"speedup": row.speedup} for row in rows],
        "totals": totals(rows),
        **more,
    }


def table_line(report: Mapping[str, Any]) -> str:
    """A report as one line of the README's table, see `TABLE_HEAD`.

    Args:
        report: of `make_report`.
    """
    here, total = report["machine"], report["totals"]
    temperature = report["settings"]["temperature"]
    cells = (
        f"{here['device'].removeprefix('gpu ')}, {here['os']}",
        str(ReportedModel(**report["target"])),
        str(ReportedModel(**report["drafter"])),
        f"{total['plain_tps']:.1f}",
        f"{total['speculative_tps']:.1f}",
        f"{total['speedup']:.2f}x",
        f"{total['accepted_length']:.2f}" + (f" at temperature {temperature}" * bool(temperature)),
    )
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
