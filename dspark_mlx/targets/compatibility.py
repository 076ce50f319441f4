"""Checks that a drafter's sizes are those of its target."""

from __future__ import annotations

from ..checkpoint.base_config import CanonicalConfig
from ..errors import InputError
from .tap import Target


def check_pair(
    config: CanonicalConfig, drafter: object, target: Target, target_name: object
) -> None:
    """Refuse a drafter that was made for another target.

    Args:
        config: the drafter's configuration.
        drafter: names the drafter in errors.
        target: the target.
        target_name: names the target in errors.

    Raises:
        InputError: vocabulary size, hidden size or number of layers differ.
    """
    sizes = [
        ("vocabulary", config.vocab_size, target.vocab_size),
        ("hidden size", config.target_hidden_size, target.hidden_size),
        ("number of layers", config.target_num_layers or target.num_layers, target.num_layers),
    ]
    for what, made_for, actual in sizes:
        if made_for != actual:
            found = f"a drafter for a target of {what} {made_for}"
            hint = f"The target is {target_name}."
            raise InputError(drafter, found, f"one for {what} {actual}", hint)
    shared = [] if config.owns_embedding else [config.embedding_size]
    shared += [] if config.owns_head else [config.hidden_size]
    if any(size != target.hidden_size for size in shared):
        found = f"hidden size {config.hidden_size} without an embedding and head of its own"
        raise InputError(drafter, found, f"the target's {target.hidden_size}, to share them")
