"""What the commands share: flags for the model and the request, and the prefill's progress bar."""

from __future__ import annotations

import argparse
import atexit
import sys
from typing import Any, Literal

from tqdm import tqdm

from ..caches.settings import CACHE_SETTINGS
from ..checkpoint.precision import NAMES as PRECISIONS
from ..decoder import Decoder
from ..engine.request import Request
from ..engine.template_settings import TemplateSettings
from ..errors import InputError
from ..load import load
from ..load.target import serve_experts
from ..schedulers.make import usages
from ..targets.deepseek_v4.machines import Machines
from . import blas, cudnn
from .machines import meet_machines
from .sampling_flags import (
    add_sampling_flags,
    add_setting_flag,
    sampling_settings,
    setting_of,
    with_special_tokens,
)


def add_model_flags(parser: argparse.ArgumentParser, scheduler: str = "auto") -> None:
    """Add the flags of `load`: --model, --drafter, --scheduler and so on to those of the caches.

    Args:
        parser: changed in place.
        scheduler: what the command takes where --scheduler is not given.
    """
    parser.add_argument(
        "--model",
        help="target: an MLX or Hugging Face folder, a GGUF file, or a Hub id (default: the "
        "built-in SmolLM2-135M-Instruct)",
    )
    parser.add_argument(
        "--adapter-path",
        metavar="FOLDER",
        help="adapter for the target, as mlx-lm's lora command saves it",
    )
    drafter = parser.add_mutually_exclusive_group()
    drafter.add_argument(
        "--drafter",
        help="drafter: a folder, a GGUF file or a Hub id, or lookup to draft by copies alone "
        "(default: known for the target)",
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
    parser.add_argument(
        "--kernels",
        action=argparse.BooleanOptionalAction,
        help="whether this package's own kernels compute what they have proven right and quicker "
        "for on this device; the first load races them, up to minutes (default: only profile and "
        "bench --synthetic do)",
    )
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether verify forwards are compiled where that is quicker on this GPU, which the "
        "first load finds out in seconds (default: yes)",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="spread the experts of a DeepSeek V4 target over the machines that mlx.launch started",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="let greedy output have the bits of plain decoding: what MLX computes otherwise for "
        "several rows is computed row by row; refused where that is not enough",
    )
    for name in CACHE_SETTINGS:
        add_setting_flag(parser, name)


def add_prompt_cache_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of kept prompts; a command without them keeps none, as those that measure."""
    parser.add_argument(
        "--prompt-cache-bytes",
        type=int,
        metavar="N",
        help="bytes that prompts and answers are kept in, so that no turn of a conversation reads "
        "what an earlier one did (default: a quarter of the free memory; 0: none)",
    )
    parser.add_argument(
        "--prompt-cache-dir",
        metavar="FOLDER",
        help="folder in which they outlive the process (default: none)",
    )


def add_request_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a request's settings, under mlx-lm's names, and --system-prompt."""
    for name in ("max_tokens", "stop", "prefill_step_size", "copies", "reference"):
        add_setting_flag(parser, name)
    parser.add_argument("--system-prompt", help="system message for the chat template")
    for name in ("thinking", "chat_template_kwargs"):
        add_setting_flag(parser, name)
    parser.add_argument(
        "--extra-eos-token",
        action="extend",
        nargs="+",
        default=[],
        metavar="TOKEN",
        help="tokens that end a text beside the target's own: as the vocabulary has them, or ids",
    )
    add_sampling_flags(parser)


def request_settings(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """The parsed request flags as `Decoder.stream` takes them, checked before a model is loaded.

    Args:
        args: parsed.
        more: settings that the command's own flags give.

    Raises:
        InputError: see `Request.make`.
    """
    own = {name: setting_of(args, name) for name in ("prefill_step_size", "copies", "reference")}
    settings = sampling_settings(args) | own | more
    max_tokens, stop = setting_of(args, "max_tokens"), setting_of(args, "stop")
    Request.make(max_tokens, stop, settings)
    return {**settings, "max_tokens": max_tokens, "stop": stop}


def with_loaded(
    settings: dict[str, Any], decoder: Decoder, args: argparse.Namespace
) -> dict[str, Any]:
    """The settings with what only a loaded target tells: --extra-eos-token, XTC's special tokens.

    Raises:
        InputError: a token that the target does not have.
    """
    if args.extra_eos_token:
        try:
            extra = {decoder.tokenizer.token_id(token) for token in args.extra_eos_token}
        except InputError as error:
            raise InputError("--extra-eos-token", error.found, error.expected) from error
        settings = {**settings, "stop_tokens": decoder.stop_tokens | extra}
    return with_special_tokens(settings, decoder)


def template_settings(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """The parsed flags of the chat template as `Decoder.encode` takes them, checked.

    Args:
        args: parsed.
        more: settings that the command's own flags give.

    Raises:
        InputError: see `TemplateSettings`.
    """
    settings = {name: setting_of(args, name) for name in ("thinking", "chat_template_kwargs")}
    checked = TemplateSettings(**settings, **more)
    checked.variables()
    checked.answer()
    return settings | more


def check_drafter(args: argparse.Namespace, what: str) -> None:
    """Refuse --no-drafter and `--drafter lookup`, for commands that are about a drafter.

    Args:
        args: parsed.
        what: what the command needs of a drafter, for the message.

    Raises:
        InputError: one of the two was given.
    """
    where, found = "--drafter", "lookup, which drafts by copies and has none"
    if args.no_drafter:
        where, found = "--no-drafter", "no drafter"
    elif args.drafter != "lookup":
        return
    raise InputError(where, found, f"a drafter (a folder, a GGUF file or a Hub id), {what}")


def load_decoder(args: argparse.Namespace, *, advises: bool = True) -> Decoder:
    """Load the decoder that the model flags name.

    Args:
        args: parsed.
        advises: whether to say what makes it slow here; False where nothing is computed.
    """
    machines = _machines(args) if args.distributed else None
    drafter: str | Literal[False] | None = False if args.no_drafter else args.drafter
    decoder = load(
        args.model,
        drafter,
        args.scheduler,
        adapter_path=args.adapter_path,
        precision=args.precision,
        draft_vocabulary=args.draft_vocabulary,
        draft_window=args.draft_window,
        **{name: getattr(args, name) for name in CACHE_SETTINGS},
        prompt_cache_bytes=getattr(args, "prompt_cache_bytes", 0),
        prompt_cache_dir=getattr(args, "prompt_cache_dir", None),
        kernels=bool(args.kernels),
        machines=machines,
        exact=args.exact,
        compiled=args.compiled,
    )
    if advises:
        advise(decoder)
    return decoder


def _machines(args: argparse.Namespace) -> Machines:
    """The machines of this group; on one that does not lead, its whole work, and the end.

    Raises:
        InputError: see `meet_machines` and `serve_experts`.
        SystemExit: the leader has ended.
    """
    if args.model is None:
        raise InputError("--distributed", "the built-in target", "--model, a DeepSeek V4 target")
    machines = meet_machines()
    if machines.leads:
        atexit.register(machines.stop)
        return machines
    serve_experts(args.model, machines, args.precision)
    raise SystemExit(0)


def advise(decoder: Decoder) -> None:
    """Say on standard error what makes a decoder slow here, if anything does."""
    for advice in (blas.advice(decoder.precision), cudnn.advice()):
        if advice is not None:
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
