"""What races found, kept in a JSON file beside the speed profiles.

A damaged file, or one that cannot be written, costs a race and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import InputError
from ..system.files import cache_folder, check_format, read_json, write_json
from ..system.system_errors import writing
from ..version import __version__
from .base import Kernel, Product

STOCK = "stock"
"""The winner where MLX's own product stays."""

FORMAT, VERSION = "dspark_mlx kernel races", 1


@dataclass(frozen=True)
class Verdict:
    """What a race found.

    Attributes:
        winner: a kernel's name, or `STOCK`; of a whole forward what was put in, or `STOCK`.
        reason: why, in one line.
        times: median milliseconds by name, of those that were timed.
        refused: reasons by name, of the kernels that were not timed.
    """

    winner: str
    reason: str
    times: dict[str, float]
    refused: dict[str, str]


@dataclass(frozen=True)
class Where:
    """Where a verdict holds.

    Attributes:
        device: the device's name.
        system: the operating system and its version.
        mlx: MLX's version.
    """

    device: str
    system: str
    mlx: str

    def key(self, product: Product, kernels: Sequence[Kernel]) -> str:
        """Key of a product's race among kernels; any other text of one is another race."""
        return self._key([_about(product), _texts(kernels)])

    def attention_key(self, heads: Any, kernel: Any, chosen: Mapping[str, str]) -> str:
        """Key of an attention kernel's race.

        Args:
            heads: the forms of attention that the network has.
            kernel: the kernel.
            chosen: the kernels of products that are in use beside it, by product.
        """
        text = hashlib.sha256(kernel.source.encode()).hexdigest()
        return self._key([sorted(map(str, heads)), kernel.name, text, sorted(chosen.items())])

    def whole_key(
        self,
        rows: int,
        counts: Mapping[Any, int],
        kernels: Mapping[Product, Kernel],
        attention: Any,
    ) -> str:
        """Key of a whole forward's race.

        Args:
            rows: rows of the forward.
            counts: the network's matrices by shape.
            kernels: the kernels that take part, by product.
            attention: the kernel of attention that takes part; None where there is none.
        """
        text = attention and hashlib.sha256(attention.source.encode()).hexdigest()
        parts = sorted([_about(product), _texts([k])] for product, k in kernels.items())
        shapes = sorted([str(linear), count] for linear, count in counts.items())
        return self._key([rows, shapes, parts, attention and attention.name, text])

    def together_key(
        self, products: Collection[Any], kernels: Sequence[Kernel], attention: str
    ) -> str:
        """Key of a race of forwards whose siblings are computed together.

        Args:
            products: what is computed together, and by which kernel.
            kernels: those kernels.
            attention: the kernel of attention that is in use; "" where there is none.
        """
        return self._key([sorted(map(str, products)), _texts(kernels), attention, "together"])

    def compiled_key(self, network: nn.Module, form: str, beside: Sequence[str]) -> str:
        """Key of a race of compiled forwards.

        Args:
            network: the network.
            form: the forward's form.
            beside: what of this package is in use in it.
        """
        arrays = tree_flatten(network.parameters())
        shapes = [[name, list(array.shape), str(array.dtype)] for name, array in arrays]
        # Whether the network's own code can be compiled, and agrees, is part of what was found.
        code = [type(network).__module__, version("mlx-lm"), __version__]
        return self._key([code, shapes, form, list(beside), "compiled"])

    def _key(self, parts: Any) -> str:
        text = json.dumps([asdict(self), parts])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _about(product: Product) -> str:
    return str(product)


def _texts(kernels: Sequence[Kernel]) -> list[list[Any]]:
    return sorted([k.name, k.exact, hashlib.sha256(k.source.encode()).hexdigest()] for k in kernels)


def stored_path() -> Path | None:
    """The path of what races have found; None where there is no cache folder."""
    try:
        return cache_folder() / "profiles" / "kernels.json"
    except InputError:
        return None


class VerdictStore:
    """Verdicts by key.

    Args:
        path: the file; None to keep nothing.

    Attributes:
        complaint: why the file could not be read or written; None where it could.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.complaint: str | None = None
        self._verdicts: dict[str, Verdict] = {}
        if path is not None and path.exists():
            try:
                self._verdicts = _read(path)
            except InputError as error:
                self.complaint = str(error)

    def get(self, key: str) -> Verdict | None:
        """The verdict with this key; None without one."""
        return self._verdicts.get(key)

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict, in memory too where the file cannot be written."""
        self._verdicts[key] = verdict
        if self._path is None:
            return
        entries = {key: asdict(verdict) for key, verdict in self._verdicts.items()}
        try:
            with writing(self._path.parent):
                self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(
                self._path, {"format": FORMAT, "format_version": VERSION, "verdicts": entries}
            )
        except InputError as error:
            self.complaint = str(error)


def _read(path: Path) -> dict[str, Verdict]:
    verdicts = check_format(path, read_json(path), FORMAT, VERSION).get("verdicts")
    try:
        return {key: _verdict(**entry) for key, entry in verdicts.items()}  # type: ignore[union-attr]
    except (AttributeError, TypeError) as error:
        raise InputError(path, "verdicts of another form", "those of races") from error


def _verdict(winner: Any, reason: Any, times: Any, refused: Any) -> Verdict:
    timed = isinstance(times, dict) and all(isinstance(t, int | float) for t in times.values())
    if not (isinstance(winner, str) and isinstance(reason, str) and timed):
        raise TypeError
    return Verdict(winner, reason, dict(times), {k: str(v) for k, v in dict(refused).items()})
