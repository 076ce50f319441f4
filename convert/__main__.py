"""python -m dspark_mlx.convert drafter|target|check|estimate|export: converts and checks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ..checkpoint.hub import find_config, resolve
from ..drafters.base import Drafter
from ..errors import InputError
from ..evaluation.tasks import read_tasks
from ..load import load_unpaired, open_target
from ..numbers import check_whole
from ..progress import progress_bar
from ..system.process import program
from ..terminal import command
from ..text.prompt_files import read_prompts
from .canonical_folder import Settings
from .card import origin_of, write_converted_card
from .check import all_taps, sweep, verdict, written
from .deepseek_v4.estimate import (
    estimated_model,
    memory_table,
    published_models,
    roofline_rows,
)
from .deepseek_v4.forms import RECIPES
from .drafter import convert_drafter, refuse_said
from .export import DTYPES, export_drafter
from .mtp import STEPS, convert_mtp
from .readings import Reading, longest_block
from .target import convert_target
from .upload import Hub, check_upload, upload

_FROM = "a folder, a .gguf file, or of the Hub: owner/name or owner/name/FILE.gguf, [@revision]"


def main(argv: list[str] | None, hub: Hub | None = None) -> int:
    """Run the command; returns the exit status.

    Args:
        argv: the arguments; None for those of the process.
        hub: the Hub to upload to; None for huggingface-hub's own interface.
    """
    args = _parser().parse_args(argv)
    if args.kind == "check":
        return _check(args)
    if args.kind == "export":
        return _export(args)
    if args.kind == "estimate":
        return _estimate(args)
    if args.q_bits is not None and not args.quantize:
        raise InputError("--q-bits", "no -q beside it", "-q too, or neither")
    args.q_bits = 4 if args.q_bits is None else args.q_bits
    hub = hub or HfApi()
    if args.upload_repo:
        check_upload(args.upload_repo, hub)
    finish = None
    if args.card or args.upload_repo:
        # Read before the conversion, so that an unreadable card is known at once.
        origin = origin_of(args.source, _place(args))
        name = args.upload_repo or args.to.resolve().name
        finish = partial(write_converted_card, origin=origin, name=name)
    print(f"{args.to}: {_converted(args, finish)}")
    if args.upload_repo:
        upload(args.to, args.upload_repo, hub)
        print(f"{args.to}: uploaded to {args.upload_repo}")
    return 0


def _converted(args: argparse.Namespace, finish: Callable[[Path], None] | None) -> str:
    """Convert; returns a few words about the result."""
    settings: dict[str, Any] = {
        "quantize": args.quantize,
        "q_bits": args.q_bits,
        "q_group_size": args.q_group_size,
        "overwrite": args.overwrite,
        "finish": finish,
    }
    if args.kind == "target":
        convert_target(
            args.source,
            args.to,
            q_exceptions=_exceptions(args.q_except),
            recipe=args.quant_predicate,
            head_only=args.head_only,
            dtype=args.dtype,
            **settings,
        )
        return "done"
    if args.mtp is not None:
        refuse_said(args.target_layers, args.kv_shared_layers, "none beside --mtp")
        return _converted_head(args, finish)
    config = convert_drafter(
        resolve(args.source),
        args.to,
        q_exceptions=_exceptions(args.q_except),
        keep_embeddings=args.keep_embeddings,
        target_layers=args.target_layers,
        kv_shared_layers=args.kv_shared_layers,
        **settings,
    )
    return config.summary


def _converted_head(args: argparse.Namespace, finish: Callable[[Path], None] | None) -> str:
    exceptions = _exceptions(args.q_except)
    settings = Settings(
        args.quantize, args.q_bits, args.q_group_size, exceptions, args.overwrite, finish
    )
    embeddings = args.keep_embeddings
    config = convert_mtp(
        args.source, args.to, steps=args.mtp, keep_embeddings=embeddings, settings=settings
    )
    return config.summary


def _place(args: argparse.Namespace) -> Path:
    """Where a source is on disk; of a target whose head is wanted, no weights are downloaded."""
    if args.kind == "drafter" and args.mtp is not None:
        config = find_config(args.source)
        return config.parent if config else Path(args.source)
    return resolve(args.source)


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=program("convert"),
        description="Convert drafters and targets, and check whether they fit.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="COMMAND")
    drafter = kinds.add_parser("drafter", help="a draft model, or a target's prediction head")
    target = kinds.add_parser("target", help="a target: Hugging Face checkpoint or GGUF file")
    for kind in (drafter, target):
        add = kind.add_argument
        add("--from", dest="source", required=True, metavar="PATH_OR_HUB_ID", help=_FROM)
        add("--to", required=True, type=Path, metavar="DIR", help="folder to make")
        add("-q", "--quantize", action="store_true", help="quantise the weights")
        add("--q-bits", type=int, help="bits per weight: 2, 3, 4, 5, 6, 8 (default: 4)")
        add("--q-group-size", type=int, default=64, help="32, 64 or 128 (default: 64)")
        add(
            "--q-except",
            action="append",
            default=[],
            metavar="NAME=BITS",
            help="other bits for tensors whose name has NAME in it, or NAME=none; repeatable; of "
            "targets for DeepSeek V4 only",
        )
        add("--card", action="store_true", help="write a model card (README.md) into the folder")
        add("--upload-repo", metavar="OWNER/NAME", help="upload it to the Hub, with its model card")
        add("--overwrite", action="store_true", help="replace a folder that is there")
    check = kinds.add_parser("check", help="whether a drafter fits a target, and what is wrong")
    add = check.add_argument
    add("drafter", metavar="DRAFTER", help="folder (published or converted), GGUF file or Hub id")
    add("--target", metavar="TARGET", help="folder, GGUF file or Hub id (default: built in)")
    add("--max-tokens", "-m", type=int, default=32, help="tokens a prompt (default: 32)")
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='JSON lines with "prompt" or "turns", see "Prompt files" in docs/evaluation.md '
        "(default: 32 of eight benchmarks)",
    )
    estimate = kinds.add_parser("estimate", help="memory and least times of DeepSeek V4, predicted")
    estimate.add_argument(
        "--from",
        dest="source",
        metavar="PATH_OR_HUB_ID",
        help="a checkpoint, of which config.json alone is read (default: the published sizes)",
    )
    estimate.add_argument(
        "--context",
        type=int,
        default=32768,
        metavar="TOKENS",
        help="positions of the request (default: 32768)",
    )
    export = kinds.add_parser("export", help="a converted drafter to DeepSpec's own packaging")
    add = export.add_argument
    add(
        "--from", dest="source", required=True, metavar="DRAFTER", help="converted folder or Hub id"
    )
    add("--target", metavar="TARGET", help="folder, GGUF file or Hub id (default: built in)")
    add("--to", required=True, type=Path, metavar="DIR", help="folder to make")
    add("--dtype", choices=DTYPES, default=DTYPES[0], help=f"of the weights (default: {DTYPES[0]})")
    add("--overwrite", action="store_true", help="replace a folder that is there")
    drafter.add_argument(
        "--target-layers",
        type=int,
        metavar="N",
        help="layers of the target, for drafters that do not say which of them they tap",
    )
    drafter.add_argument(
        "--kv-shared-layers",
        type=int,
        metavar="N",
        help="how many of them read keys of earlier ones (num_kv_shared_layers in the target's "
        "config.json), for Gemma 4's assistants",
    )
    drafter.add_argument(
        "--mtp",
        nargs="?",
        type=int,
        const=STEPS,
        metavar="STEPS",
        help="make it of the prediction head inside a target's original checkpoint, which then "
        f"proposes so many tokens (default: {STEPS})",
    )
    drafter.add_argument(
        "--keep-embeddings",
        action="store_true",
        help="keep stored copies of the target's embedding and head instead of sharing them",
    )
    target.add_argument(
        "--quant-predicate",
        choices=tuple(RECIPES),
        help="mixed bits by name, for DeepSeek V4: 2 bits for the experts of the target",
    )
    target.add_argument(
        "--head-only",
        action="store_true",
        help="leave the target out, and convert the head inside it (DeepSeek V4)",
    )
    target.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="type of what is not quantised (default: the checkpoint's)",
    )
    return parser


def _check(args: argparse.Namespace) -> int:
    """Print what each reading makes of the texts, and the verdict; returns 1 without a fit."""
    prompts = _check_prompts(args.prompts)
    decoder, config, build = load_unpaired(args.target, args.drafter, all_taps)
    if args.max_tokens <= (longest := longest_block(config)):
        raise InputError("--max-tokens", args.max_tokens, f"more than the block of {longest}")
    target, stops, texts = decoder.engine.target, decoder.stop_tokens, []
    with progress_bar("Writing texts", "prompt") as progress:
        for done, prompt in enumerate(prompts, 1):
            ids = decoder.encode([{"role": "user", "content": prompt}])
            texts.append((ids, written(target, ids, args.max_tokens, stops)))
            progress(done, len(prompts))
    if not any(len(text) > longest for _, text in texts):
        where = args.prompts or "--prompts"
        raise InputError(where, "texts that end at once", "one longer than a block")

    def built(reading: Reading) -> Drafter:
        return build(reading.of(config), reading.changed)

    with progress_bar("Trying readings", "reading") as progress:
        found = sweep(target, config, built, texts, progress)
    print("tokens accepted a block, log-probability of a token, texts, by reading")
    for one in found:
        print(f"{one.accepted:8.2f} {one.likelihood:9.3f} {len(one.counts):5}  {one.reading}")
    fits, why = verdict(found)
    print(why)
    return 0 if fits else 1


def _check_prompts(path: Path | None) -> list[str]:
    """What the target is asked: a file's prompts, or the first turns of those that ship."""
    if path is None:
        # One of each task first: a reading may be given up after the first texts.
        by_task = [task.prompts for task in read_tasks()]
        return [turns[0] for row in zip(*by_task, strict=True) for turns in row]
    return [prompt.turns[0] for prompt in read_prompts(path)]


def _estimate(args: argparse.Namespace) -> int:
    """Print what the forms of DeepSeek V4 come to."""
    check_whole("--context", args.context, 1)
    models = published_models() if args.source is None else estimated_model(args.source)
    print(f"{memory_table(models, args.context)}\n\n{roofline_rows(models, args.context)}")
    return 0


def _export(args: argparse.Namespace) -> int:
    """Write the exported folder; the target's weights are read one by one."""
    target, where = open_target(args.target)
    config = export_drafter(
        resolve(args.source), target, where, args.to, dtype=args.dtype, overwrite=args.overwrite
    )
    print(f"{args.to}: {config.summary}")
    return 0


def _exceptions(arguments: list[str]) -> dict[str, int | None]:
    exceptions: dict[str, int | None] = {}
    for argument in arguments:
        name, _, bits = argument.partition("=")
        if not name or not (bits == "none" or bits.isdigit()):
            raise InputError("--q-except", repr(argument), "NAME=BITS or NAME=none")
        exceptions[name] = None if bits == "none" else int(bits)
    return exceptions


if __name__ == "__main__":
    command.run(main)
