"""Rows of logits that no token can be chosen from: refused, with what is to blame."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..targets.tap import not_finite_error
from ..types import Fault
from .state import Engine


def refuse_faults(engine: Engine, faults: Sequence[int], position: int) -> None:
    """Refuse tokens that were chosen from numbers that nothing can be chosen from.

    Args:
        engine: whose target is named.
        faults: see `Verdict.faults`; of the tokens that are committed.
        position: of the first of them in the request, the prompt's included.

    Raises:
        InputError: the target's logits are not finite, or a logits processor's, or a processor left
            no token.
    """
    for row, fault in enumerate(faults):
        if not fault:
            continue
        at = f"for the token at position {position + row}"
        if fault == Fault.TARGET:
            raise not_finite_error(engine.target.where, at)
        if fault == Fault.PROCESSOR:
            found = f"NaN or +inf {at}, of finite logits"
            raise InputError("logits_processors", found, "finite numbers, or -inf")
        raise InputError("logits_processors", f"no token left to choose {at}", "at least one")
