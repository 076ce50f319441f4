"""Refuses rows of logits that no token can be chosen from, and names the cause."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..targets.tap_check import not_finite_error
from ..types import Fault
from .state import Engine


def refuse_faults(engine: Engine, faults: Sequence[int], position: int) -> None:
    """Refuse committed tokens whose rows of logits have a fault.

    Args:
        engine: the engine, whose target is named in errors.
        faults: `Verdict.faults` of the committed tokens.
        position: the first token's position in the request, where the prompt begins at 0.

    Raises:
        InputError: the target's logits are not finite, a logits processor made them NaN or +inf, or
            it left no token.
    """
    for row, fault in enumerate(faults):
        if not fault:
            continue
        at = f"for the token at position {position + row}"
        if fault == Fault.TARGET:
            raise not_finite_error(engine.target.where, at)
        if fault == Fault.PROCESSOR:
            found = f"NaN or +inf {at}, made of finite logits"
            raise InputError("logits_processors", found, "finite numbers, or -inf")
        raise InputError("logits_processors", f"no token left to choose {at}", "at least one token")
