"""What stands in the modules of a target: its taps, kernels, and exact rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import mlx.nn as nn

from ..errors import InputError
from ..kernels.decision import Decision, Undone, apply_decision
from .modules import TargetModules
from .row_by_row import RowByRow
from .tapped_layers import TappedLayers, check_layers


class AttachedModules(TargetModules):
    """A model's modules, of which some change class until `close`.

    Args:
        model: an mlx-lm model.
        taps: layers whose output to record, -1 for the embedding output.
        where: names the model in errors.

    Attributes:
        kernels: what the guard of kernels has found, whose winners are in use; None where MLX
            computes everything.

    Raises:
        InputError: a tap is not a layer of this model, its layers are tapped already, or it does
            not have exactly one embedding table.
    """

    def __init__(self, model: nn.Module, taps: Iterable[int], where: object) -> None:
        super().__init__(model, where)
        self.kernels: Decision | None = None
        self._applied: list[Undone] = []
        self._rows: RowByRow | None = None
        self._taps = tuple(taps)
        check_layers(self._taps, self.num_layers, where)
        self._tapped = TappedLayers(model, self._taps, where)
        self._mixers = self._tapped.mixers

    def use_kernels(self, decision: Decision) -> None:
        """Compute products by the kernels that the guard has chosen, until `drop_kernels`.

        Under what is attached, which gives modules the classes back that it found.
        """
        with self.turns:
            self.drop_kernels()
            applied = self._applied
            self._tapped.attach_anew(lambda: applied.extend(apply_decision(self.model, decision)))
            self.kernels = decision

    def drop_kernels(self) -> None:
        """Let MLX compute every product again."""

        def drop() -> None:
            while self._applied:
                self._applied.pop().close()

        with self.turns:
            if self._applied:
                self._tapped.change_under(drop)
            self.kernels = None

    @property
    def version(self) -> int:
        """Changes with what stands in the modules; putting the same back does not change it."""
        return self._tapped.version

    @property
    def exact(self) -> bool:
        """Whether rows of verify forwards have the bits of single rows."""
        return self._rows is not None and self._rows.attached

    def use_rows(self, rows: RowByRow) -> None:
        """Run verify forwards of requests row by row where they need it, until `drop_rows`.

        Under all other changes of classes, so that those see one call where the model makes one.
        """
        with self.turns:
            self.drop_rows()
            self._tapped.attach_anew(rows.attach)
            self._rows = rows

    def drop_rows(self) -> None:
        """Run verify forwards as the model does again."""
        with self.turns:
            if self._rows is not None and self._rows.attached:
                self._tapped.change_under(self._rows.close)

    def close(self) -> None:
        """Remove the taps from the model; requests that still run end with an error."""
        with self.turns:
            self._tapped.detach()

    @contextlib.contextmanager
    def untapped(self) -> Iterator[None]:
        """Remove the taps while the block runs; other threads wait for the model meanwhile."""
        with self.turns:
            self.close()
            try:
                yield
            finally:
                self._tapped.attach_again()

    def _closed(self) -> InputError:
        return InputError(self.where, "a target that was closed", "one that is open")
