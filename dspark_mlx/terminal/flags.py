"""What the commands share: their common flags, and the prefill's progress bar."""

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
from .sampling_flags import add_sampling_flags, sampling_settings


def add_model_flags(parser: argparse.ArgumentParser, scheduler: str = "auto") -> None:
    """--model, --drafter, --no-drafter, --scheduler, --precision, --draft-vocabulary.

    Args:
        parser: changed in place.
        scheduler: the command's default one.
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


def add_request_flags(parser: argparse.ArgumentParser) -> None:
    """The request's settings, under mlx-lm's names."""
    add = parser.add_argument
    add("--max-tokens", "-m", type=int, default=256, help="tokens at most (default: 256)")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before it; repeatable")
    add(
        "--prefill-step-size",
        type=int,
        default=2048,
        help="prompt tokens per prefill forward; less needs less memory (default: 2048)",
    )
    add("--system-prompt", help="system message for the chat template")
    add_sampling_flags(parser)


def request_settings(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """The parsed request flags, as `Decoder.stream` takes them; refused before a model is loaded.

    Args:
        args: parsed.
        more: further settings of the command's own flags.

    Raises:
        InputError: see `Request.make`.
    """
    settings = sampling_settings(args) | {"prefill_step_size": args.prefill_step_size} | more
    stop = tuple(args.stop)
    Request.make(args.max_tokens, stop, settings)
    return {**settings, "max_tokens": args.max_tokens, "stop": stop}


def load_decoder(args: argparse.Namespace) -> Decoder:
    """The decoder that the model flags name; what makes it slow here is said."""
    drafter: str | Literal[False] | None = False if args.no_drafter else args.drafter
    decoder = load(
        args.model,
        drafter,
        args.scheduler,
        precision=args.precision,
        draft_vocabulary=args.draft_vocabulary,
    )
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
        """See `rounds.Progress`."""
        if total < self._shown_from:
            return
        if self._bar is None:
            self._bar = tqdm(total=total, desc="Reading the prompt", unit="token", leave=False)
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.close()
            self._bar = None
