"""What the commands share: flags for the model and the request, and the prefill's progress bar."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Literal

from tqdm import tqdm

from ..checkpoint.precision import NAMES as PRECISIONS
from ..decoder import Decoder
from ..engine.request import Request
from ..load import load
from ..schedulers.make import usages
from . import blas
from .sampling_flags import (
    add_sampling_flags,
    add_setting_flag,
    sampling_settings,
    setting_of,
)


def add_model_flags(parser: argparse.ArgumentParser, scheduler: str = "auto") -> None:
    """Add --model, --drafter, --no-drafter, --scheduler, --precision and --draft-vocabulary.

    Args:
        parser: changed in place.
        scheduler: what the command takes where --scheduler is not given.
    """
    parser.add_argument(
        "--model",
        help="target: an MLX or Hugging Face folder, a GGUF file, or a Hub id (default: the "
        "built-in SmolLM2-135M-Instruct)",
    )
    drafter = parser.add_mutually_exclusive_group()
    drafter.add_argument(
        "--drafter",
        help="drafter: a folder, a GGUF file or a Hub id (default: known for the target)",
    )
    drafter.add_argument("--no-drafter", action="store_true", help="decode plainly")
    parser.add_argument(
        "--scheduler",
        default=scheduler,
        help=f"how much of a block is verified: {', '.join(usages())} (default: {scheduler})",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="how weights are held; auto is float32 on the CPU backend, else as stored",
    )
    parser.add_argument(
        "--draft-vocabulary",
        default="auto",
        metavar="N",
        help="tokens that drafts are chosen from: full, a number, or auto, a part of a large "
        "vocabulary (default: auto); the output is the same",
    )
    parser.add_argument(
        "--draft-window",
        type=int,
        metavar="N",
        help="newest positions that the drafter attends to at most (default: all, or the window "
        "that it was made with); the output is the same",
    )


def add_request_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a request's settings, under mlx-lm's names, and --system-prompt."""
    for name in ("max_tokens", "stop", "prefill_step_size"):
        add_setting_flag(parser, name)
    parser.add_argument("--system-prompt", help="system message for the chat template")
    add_sampling_flags(parser)


def request_settings(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """The parsed request flags as `Decoder.stream` takes them, checked before a model is loaded.

    Args:
        args: parsed.
        more: settings that the command's own flags give.

    Raises:
        InputError: see `Request.make`.
    """
    settings = sampling_settings(args) | {"prefill_step_size": args.prefill_step_size} | more
    max_tokens, stop = setting_of(args, "max_tokens"), setting_of(args, "stop")
    Request.make(max_tokens, stop, settings)
    return {**settings, "max_tokens": max_tokens, "stop": stop}


def load_decoder(args: argparse.Namespace, *, advises: bool = True) -> Decoder:
    """Load the decoder that the model flags name.

    Args:
        args: parsed.
        advises: whether to say what makes it slow here; False where nothing is computed.
    """
    drafter: str | Literal[False] | None = False if args.no_drafter else args.drafter
    decoder = load(
        args.model,
        drafter,
        args.scheduler,
        precision=args.precision,
        draft_vocabulary=args.draft_vocabulary,
        draft_window=args.draft_window,
    )
    if advises:
        advise(decoder)
    return decoder


def advise(decoder: Decoder) -> None:
    """Say on standard error what makes a decoder slow here, if anything does."""
    if (advice := blas.advice(decoder.precision)) is not None:
        print(f"note: {advice}", file=sys.stderr)


class PrefillBar:
    """A progress bar for prompts long enough to wait for, cleared before text appears.

    Args:
        shown_from: prompt tokens below which no bar is drawn.
    """

    def __init__(self, shown_from: int = 1024) -> None:
        self._shown_from = shown_from
        self._bar: tqdm[Any] | None = None

    def __call__(self, done: int, total: int) -> None:
        """See `ProgressCallback`."""
        if total < self._shown_from:
            return
        if self._bar is None:
            self._bar = tqdm(total=total, desc="Reading the prompt", unit="token", leave=False)
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.close()
            self._bar = None
