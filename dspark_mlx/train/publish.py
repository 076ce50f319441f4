"""The end of a run: a folder that `load` takes, calibrated, with a model card and a plot."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..calibration.by_temperature import write_calibrations
from ..checkpoint.base_config import CanonicalConfig
from ..checkpoint.frequent_tokens import write_ranking
from ..checkpoint.layout import check_tensors
from ..checkpoint.model_card import drafter_text, weights_text, write_card
from ..checkpoint.tensor_writer import write_tensors
from ..decoder import Decoder
from ..errors import InputError
from ..load import add_drafter
from ..progress import ProgressCallback
from ..replay.fit import (
    MIN_ROUNDS,
    TEMPERATURES,
    fewest_rounds,
    fit_temperatures,
    record_temperatures,
)
from ..system.files import write_json
from ..system.staging import staged_folder
from .checkpoints import checkpoints_in
from .data.corpus import Corpus
from .step.forward import FROZEN

_SIZES = (
    "num_layers",
    "hidden_size",
    "intermediate_size",
    "head",
    "head_rank",
    "selector_rank",
    "selector_top_k",
    "block_size",
    "steps",
    "taps",
)
"""Fields of a configuration that a model card shows."""


def drafter_folder(run: Path) -> Path:
    """Where a run's drafter is to be written.

    Args:
        run: the run's folder.

    Raises:
        InputError: something is there, and no run that it could be of.
    """
    folder = run / "drafter"
    if os.path.lexists(folder) and not checkpoints_in(run / "checkpoints"):
        hint = "Choose another folder for the run, or move that drafter away."
        raise InputError(folder, "a drafter that this run did not write", "a free path", hint)
    return folder


def write_drafter(
    folder: Path,
    config: CanonicalConfig,
    tensors: dict[str, mx.array],
    dtype: mx.Dtype,
    ranking: tuple[int, ...] = (),
) -> None:
    """Write the canonical folder, replacing the one that is there; it appears whole or not at all.

    Args:
        folder: the folder to make.
        config: the drafter's.
        tensors: the drafter's, by canonical name.
        dtype: the type that learnt tensors are stored in.
        ranking: the target's tokens, the most frequent first; empty where they were not counted.
    """
    stored = {n: v if n in FROZEN else v.astype(dtype) for n, v in tensors.items()}
    check_tensors(config, stored, folder)
    with staged_folder(folder, overwrite=True) as staged:
        write_tensors(staged / "model.safetensors", stored)
        write_json(staged / "config.json", config.to_dict())
        if ranking:
            write_ranking(staged, ranking)


def calibrate(
    decoder: Decoder,
    folder: Path,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    progress: ProgressCallback | None = None,
) -> int:
    """Calibrate the drafter's confidence head on texts that were not learnt from.

    The calibrations, one a sampling temperature, are stored in the folder.

    Args:
        decoder: the target's.
        folder: the drafter's.
        prompts: token ids of each prompt.
        max_tokens: rounds recorded after each prompt, at most.
        progress: called after each prompt.

    Returns:
        How many rounds it was fitted on; 0 where they are too few, and nothing is stored then.
    """
    engine = add_drafter(decoder, folder, "full").engine
    texts = [("held-out", list(prompt)) for prompt in prompts]
    rounds = record_temperatures(engine, texts, max_tokens, decoder.stop_tokens, progress=progress)
    if fewest_rounds(rounds, TEMPERATURES) < MIN_ROUNDS:
        return 0
    write_calibrations(folder, fit_temperatures(rounds))
    return len(rounds)


def prompts_of(corpus: Corpus, numbers: Sequence[int], limit: int) -> list[list[int]]:
    """Token ids before the first answer, for at most `limit` of the texts with these numbers."""
    found = []
    for number in numbers[:limit]:
        text = corpus[number]
        found.append(text.tokens[: int(text.answer.argmax())].tolist())
    return [prompt for prompt in found if prompt]


def write_trained_card(
    folder: Path, facts: dict[str, Any], config: CanonicalConfig, builtin: bool
) -> None:
    """Write README.md, the model card of a trained drafter.

    Args:
        folder: the drafter's.
        facts: what the run was, name to value, in the order of the card's table.
        config: the drafter's.
        builtin: whether it was trained for the built-in target.
    """
    rows = [f"| {name} | {value} |" for name, value in facts.items()]
    sizes = ", ".join(
        f"{name} {value}" for name, value in dataclasses.asdict(config).items() if name in _SIZES
    )
    title = f"A drafter for {config.target}"
    table = "\n".join(["| training | |", "|---|---|", *rows])
    text = drafter_text(config, "FOLDER", builtin)
    write_card(folder, title, [text, f"{weights_text(0, 0)} {sizes}.", table], drafter=True)
