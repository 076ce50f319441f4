"""Opens a target, and proves that its caches roll back and that taps change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..caches import CacheSettings, new_caches
from ..caches.settings import DEFAULT_CACHES
from ..checkpoint.fingerprint import weights_digest
from ..checkpoint.linear import arrays_of
from ..checkpoint.precision import apply_precision, choose_precision, held_dtype
from ..decoder import Decoder
from ..engine.state import Engine
from ..errors import InputError
from ..pairs import builtin
from ..pairs.stored import target_folder
from ..schedulers.full import FullScheduler
from ..targets.adapter import Adapter
from ..targets.deepseek_v4.machines import Machines
from ..targets.given import GivenTarget
from ..targets.network import check_quantized, evaluate, first_logits, open_network, refusing
from ..targets.tap import Target
from ..targets.tap_check import check_taps
from ..text.tokenizer import Tokenizer
from ..version import __version__
from .room import check_room


@dataclass(frozen=True)
class OpenedTarget:
    """A target in memory, without taps.

    Attributes:
        folder: folder of the target.
        network: mlx-lm's model.
        config: content of its config.json.
        precision: the precision of its weights, as `choose_precision` returns it.
        logits: its logits for a few fixed tokens, see `probe_logits`.
        caches: how its caches are made.
        adapter: folder of its adapter; None without one.
        tokenizer: the tokenizer that was given with it; None where the folder has one.
    """

    folder: Path
    network: Any
    config: dict[str, Any]
    precision: str
    logits: mx.array
    caches: CacheSettings
    adapter: Path | None = None
    tokenizer: Tokenizer | None = None

    def decoder(self, target: Target) -> Decoder:
        """A decoder without drafter for `target`, which is this target with taps."""
        engine = Engine(target, None, FullScheduler())
        about = self.precision, self.adapter, self.tokenizer
        return Decoder(engine, self.folder, self.config, None, *about)


def open_checked(
    model: str | Path | GivenTarget | None,
    precision: str,
    caches: CacheSettings = DEFAULT_CACHES,
    adapter: Adapter | None = None,
    beside: int = 0,
    machines: Machines | None = None,
) -> OpenedTarget:
    """Load a target, and check that its caches can roll back and its logits are finite.

    `beside` are bytes that must fit in memory with it, see `check_room`.
    """
    if machines is not None and (isinstance(model, GivenTarget) or adapter is not None):
        raise InputError("machines", "a given network, or an adapter", "a target's folder alone")
    if isinstance(model, GivenTarget):
        logits = _checked_logits(model.network, model.name, caches)
        about = model.config, precision, logits, caches
        return OpenedTarget(model.name, model.network, *about, tokenizer=model.tokenizer)
    folder = builtin.builtin_target() if model is None else target_folder(model)
    network, config = open_network(folder)
    if adapter is not None:
        adapter.apply(network)
    if machines is not None:
        machines.spread(network, spreading(folder, precision), beside)
    apply_precision(network, held_dtype(precision))
    check_room(network, folder, beside)
    logits = _checked_logits(network, folder, caches)
    place = adapter.folder if adapter else None
    return OpenedTarget(folder, network, config, precision, logits, caches, place)


def serve_experts(model: str | Path, machines: Machines, precision: str = "auto") -> None:
    """Hold a part of a target's experts for the machine that leads, until that ends it.

    Args:
        model, precision: see `load`; the same as the leader's.
        machines: of which this one does not lead.

    Raises:
        InputError: the target cannot be loaded or is another one, or a machine was lost.
    """
    folder, precision = target_folder(model), choose_precision(precision)
    network, _ = open_network(folder)
    machines.spread(network, spreading(folder, precision))
    apply_precision(network, held_dtype(precision))
    # Nothing else of the network stays, or is ever read.
    held = nn.Module()
    held.experts = [layer.ffn.experts for layer in network.layers]
    del network
    check_room(held, folder)
    machines.serve(held.experts)


def spreading(folder: Path, precision: str) -> str:
    """What must be the same on all machines that share a target's experts."""
    config = (folder / "config.json").read_text(encoding="utf-8")
    return f"{__version__} {precision} {weights_digest(folder)} {config}"


def tapped(opened: OpenedTarget, taps: Sequence[int], whole_copies: bool = False) -> Target:
    """The target with its layers tapped, and proof that this changes no bit of a logit."""
    with refusing(opened.folder):
        target = Target(opened.network, taps, opened.folder, opened.caches, whole_copies)
        check_taps(opened.network, target, opened.logits, opened.folder)
    return target


def open_target(model: str | Path | None) -> tuple[Target, Path]:
    """A target without taps, and its folder; its weights are as stored, and not read yet.

    Args:
        model: see `load`.

    Raises:
        InputError: see `load`.
    """
    folder = builtin.builtin_target() if model is None else target_folder(model)
    network, _ = open_network(folder)
    with refusing(folder):
        return Target(network, (), folder), folder


def held_as_given(precision: str, adapter_path: str | Path | None) -> str:
    """The precision of a given network.

    Raises:
        InputError: it would have to be changed, which is its application's business.
    """
    if precision not in ("auto", "stored"):
        raise InputError("precision", repr(precision), "'auto': a given network stays as it is")
    if adapter_path is not None:
        hint = "Load it with mlx_lm.load(..., adapter_path=...)."
        raise InputError("adapter_path", adapter_path, "none for a given network", hint)
    return "stored"


def _checked_logits(network: Any, folder: Path, caches: CacheSettings) -> mx.array:
    """Logits of a few fixed tokens, from a network whose weights are read and checked here."""
    evaluate(network, folder)
    # Arrays that are not parameters, such as rope frequencies, are evaluated too: other threads
    # cannot use an array that is not.
    mx.eval(arrays_of(network))
    # A family may need what this machine lacks, as a Metal kernel, and say so in its first forward.
    with refusing(folder):
        new_caches(network, folder, caches)
        logits = first_logits(network, folder)
        check_quantized(network, folder, caches)
    return logits
