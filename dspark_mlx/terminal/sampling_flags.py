"""The commands' flags for sampling, under mlx-lm's names where it has them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..decoder import Decoder
from ..errors import InputError
from ..sampling.settings import VERIFICATIONS, Sampling
from ..system.files import read_text
from ..system.strict_json import parse_json

_DEFAULT = Sampling()
_SAME_NAME = (
    "top_p",
    "top_k",
    "min_p",
    "min_tokens_to_keep",
    "xtc_probability",
    "xtc_threshold",
    "repetition_penalty",
    "repetition_context_size",
    "presence_penalty",
    "presence_context_size",
    "frequency_penalty",
    "frequency_context_size",
    "verification",
    "reproducible",
    "seed",
)


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """--temp, --top-p and the like, --draft-temp, --verification, --reproducible, --seed."""
    group = parser.add_argument_group("sampling, exactly the target's")
    add = group.add_argument
    add("--temp", type=float, default=0.0, help="temperature; 0 is greedy (default: 0)")
    add("--top-p", type=float, default=1.0, help="nucleus sampling (default: 1, off)")
    add("--top-k", type=int, default=0, help="keep the k likeliest (default: 0, off)")
    add("--min-p", type=float, default=0.0, help="least share of the top (default: 0, off)")
    add("--min-tokens-to-keep", type=int, default=1, help="tokens min-p keeps (default: 1)")
    add("--xtc-probability", type=float, default=0.0, help="how often XTC applies (default: 0)")
    add("--xtc-threshold", type=float, default=0.1, help="its threshold (default: 0.1)")
    add("--repetition-penalty", type=float, default=1.0, help="above 1 discourages (default: 1)")
    add("--presence-penalty", type=float, default=0.0, help="subtracted once (default: 0)")
    add("--frequency-penalty", type=float, default=0.0, help="subtracted each time (default: 0)")
    for name in ("repetition", "presence", "frequency"):
        flag, size = f"--{name}-context-size", getattr(_DEFAULT, f"{name}_context_size")
        add(flag, type=int, default=size, help=f"tokens it looks back (default: {size})")
    add(
        "--logit-bias",
        metavar="JSON",
        help="token ids with what is added to their logits: '{\"42\": -3.5}'",
    )
    add("--ban", type=int, action="append", default=[], metavar="TOKEN", help="never this id")
    add(
        "--draft-temp",
        type=float,
        help="temperature of the drafts; changes the speed alone (default: --temp's)",
    )
    add(
        "--verification",
        choices=VERIFICATIONS,
        default="block",
        help="accept rule; both are exact, block accepts more (default: block)",
    )
    add(
        "--reproducible",
        action="store_true",
        help="one text a seed, with and without a drafter (in float32); accepts somewhat less",
    )
    add("--seed", type=int, help="of this request (default: drawn)")


def sampling_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The parsed flags as `request.Settings`.

    Raises:
        InputError: a bias that is not JSON.
    """
    settings = {name: getattr(args, name) for name in _SAME_NAME}
    return settings | {
        "temperature": args.temp,
        "draft_temperature": args.draft_temp,
        "banned_tokens": tuple(args.ban),
        "logit_bias": _bias(args.logit_bias),
    }


def with_special_tokens(settings: dict[str, Any], decoder: Decoder) -> dict[str, Any]:
    """The settings, with the tokens that XTC never drops: a line's end and the end tokens.

    As mlx-lm's own commands choose them.
    """
    if not settings["xtc_probability"]:
        return settings
    lines = decoder.tokenizer.encode("\n", add_special_tokens=False)
    return {**settings, "xtc_special_tokens": tuple(sorted(decoder.stop_tokens | set(lines)))}


def read_json_argument(flag: str, text: str) -> Any:
    """The JSON in `text`, or in the file it names.

    Raises:
        InputError: neither.
    """
    expected = "JSON, or a file of it"
    if text.lstrip().startswith(("{", "[", "true")):
        return parse_json(text, flag, expected)
    path = Path(text)
    return parse_json(read_text(path, expected), path, expected)


def _bias(text: str | None) -> dict[int, float]:
    if text is None:
        return {}
    found = read_json_argument("--logit-bias", text)
    if not isinstance(found, dict):
        raise InputError("--logit-bias", text[:60], "an object of token ids with numbers")
    try:
        return {int(token): bias for token, bias in found.items()}
    except ValueError as error:
        raise InputError("--logit-bias", text[:60], "token ids as keys") from error
