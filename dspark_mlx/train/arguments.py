"""The training command's flags, and the settings that they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.precision import NAMES as PRECISIONS
from ..drafters.heads import NO_HEAD, head_names
from ..errors import InputError
from ..system.process import program
from ..terminal import command
from .data.plan import DataPlan
from .data.prompt_files import read_prompt_turns
from .designs import DESIGNS, DrafterDesign
from .settings import TrainingSettings
from .step.batches import BatchSettings
from .step.learner import Recipe
from .step.objective import Objective

_DTYPES = ("bfloat16", "float16", "float32")


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    made = command.Parser(
        prog=program("train"),
        description="Train a drafter for a target, on texts that the target writes itself. "
        "The same command goes on with a run that was stopped.",
    )
    add = made.add_argument
    add("--model", help="target: folder, GGUF file or Hub id (default: built in)")
    add("--to", type=Path, required=True, metavar="DIR", help="of the run and its drafter")
    add("--from", dest="start", metavar="DRAFTER", help="fit a drafter further, not a new one")
    add("--precision", default="auto", choices=PRECISIONS, help="how the target's weights are held")
    add("--dtype", default="bfloat16", choices=_DTYPES, help="what the drafter is stored in")
    add("--seed", type=int, default=0, help="of everything random (default: 0)")
    add("--plot", type=Path, metavar="FILE", help="loss and acceptance by step (.png, .svg, .pdf)")
    add(
        "--no-calibration",
        action="store_true",
        help="leave the confidences as they are: nothing is decoded after the last step",
    )
    add("--json", action="store_true", help="print one JSON object")
    _add_texts(made.add_argument_group("texts"))
    _add_design(made.add_argument_group("a new drafter"))
    _add_recipe(made.add_argument_group("training"))
    return made


def _add_texts(group: Any) -> None:
    add = group.add_argument
    add(
        "--prompts",
        type=Path,
        metavar="FILE|DIR",
        help='JSON lines with "turns" or "prompt", see "Prompt files" in docs/evaluation.md; '
        "without, the target writes the prompts too",
    )
    add("--conversations", type=Path, metavar="DIR", help="where texts are kept (default: in --to)")
    add(
        "--more-conversations",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="learn from these too, written elsewhere for the same target",
    )
    add("--only-conversations", action="store_true", help="write them, and train later")
    add("--answer-tokens", type=int, default=1_000_000, help="to write (default: 1000000)")
    add("--self-written", type=float, help="share of prompts that the target writes (default: 0.5)")
    add(
        "--imitated",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of those, written after some of your prompts and much like them (default: 0)",
    )
    add(
        "--temps",
        default="0,0.3,0.7,1",
        help="temperatures of answers, one drawn for each text (default: 0,0.3,0.7,1)",
    )
    add("--max-answer", type=int, default=512, help="tokens of an answer (default: 512)")
    add("--max-user", type=int, default=256, help="of a self-written prompt (default: 256)")
    add("--max-length", type=int, default=1024, help="tokens of a text (default: 1024)")
    add("--follow-up", type=float, default=0.25, help="chance of another turn (default: 0.25)")
    add("--rows", type=int, default=64, help="texts decoded at once (default: 64)")
    add("--shard", type=int, default=1024, help="texts written as one file (default: 1024)")


def _add_design(group: Any) -> None:
    add = group.add_argument
    add("--method", choices=tuple(DESIGNS), help="how it drafts (default: dspark)")
    add("--head", choices=head_names(), help="of dspark; none is DFlash (default: vanilla)")
    add("--layers", type=int, help="of the backbone (default: 3 for a small target, else 5)")
    add("--rank", type=int, help="of head or selector (default: 64 for a small target, else 256)")
    add("--intermediate-size", type=int, help="width of its MLPs (default: the target's)")
    add("--taps", type=int, help="target layers that it reads (default: 5; of eagle3 3)")
    add("--block-size", type=int, help="tokens proposed a round (default: 7)")
    add("--mask-token", type=int, metavar="ID", help="a token that texts do not contain")


def _add_recipe(group: Any) -> None:
    add = group.add_argument
    add(
        "--steps",
        type=int,
        default=2000,
        help="in all; more than before go on with a finished run, at the rate that so many steps "
        "have there (default: 2000)",
    )
    add("--learning-rate", type=float, help="its peak (default: 6e-4, with --from 1e-4)")
    add("--batch-tokens", type=int, default=8192, help="of a batch (default: 8192)")
    add("--accumulate", type=int, default=1, help="batches a step (default: 1)")
    add("--anchors-every", type=int, default=8, help="tokens for one block (default: 8)")
    add("--ce", type=float, help="weight of the cross-entropy (default: 0.1, without a head 1)")
    add("--l1", type=float, help="weight of the L1 distance (default: 0.9, without a head 0)")
    add("--decay", type=float, default=4.0, help="of a slot's weight (default: 4)")
    add("--held-out", type=int, default=64, help="texts to judge on (default: 64)")
    add("--evaluate-every", type=int, default=200, help="steps (default: 200)")
    add("--save-every", type=int, default=200, help="steps between checkpoints (default: 200)")
    add("--patience", type=int, default=0, help="evaluations without a better one; 0: no limit")
    add("--chunk-rows", type=int, default=0, help="rows whose logits exist at once (default: auto)")
    add("--grad-checkpoint", action="store_true", help="less memory, more time")
    add("--qat-bits", type=int, default=0, help="train for weights stored in so many bits")
    add("--qat-group-size", type=int, default=64, help="32, 64 or 128 (default: 64)")
    add("--compute", choices=("float32", "bfloat16"), help="(default: bfloat16 on a GPU)")


def settings_of(args: argparse.Namespace, head: str | None) -> TrainingSettings:
    """The run's settings.

    Args:
        args: parsed.
        head: the drafter's sequential head, by which the objective is chosen; None for the
            default's.
    """
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    # The peak that suits first weights undoes what a drafter has learnt already.
    rate = args.learning_rate
    if rate is None:
        rate = 1e-4 if args.start else 6e-4
    # DeepSpec trains DFlash drafters by cross-entropy alone.
    ce, l1 = (1.0, 0.0) if head == NO_HEAD else (0.1, 0.9)
    return TrainingSettings(
        Recipe(args.steps, rate, accumulate=args.accumulate),
        Objective(
            ce if args.ce is None else args.ce, l1 if args.l1 is None else args.l1, decay=args.decay
        ),
        BatchSettings(args.batch_tokens, args.max_length, args.anchors_every, seed=args.seed),
        held_out=args.held_out,
        evaluate_every=args.evaluate_every,
        save_every=args.save_every,
        patience=args.patience,
        chunk=args.chunk_rows,
        checkpoint_layers=args.grad_checkpoint,
        # Fused kernels are built by a C++ compiler on a CPU, and took minutes to build for CUDA.
        compiled=mx.metal.is_available(),
        precision=args.compute or ("bfloat16" if on_gpu else "float32"),
        qat_bits=args.qat_bits,
        qat_group_size=args.qat_group_size,
    )


def design_of(args: argparse.Namespace) -> DrafterDesign:
    """What was chosen of a new drafter.

    Raises:
        InputError: something was, though the drafter is there already.
    """
    flags = (
        "method",
        "head",
        "layers",
        "rank",
        "intermediate_size",
        "taps",
        "block_size",
        "mask_token",
    )
    chosen = {flag: value for flag in flags if (value := getattr(args, flag)) is not None}
    if args.start and chosen:
        names = ", ".join(f"--{flag.replace('_', '-')}" for flag in chosen)
        raise InputError("--from", names, "no choices of a new drafter")
    if "mask_token" in chosen:
        chosen["mask_token_id"] = chosen.pop("mask_token")
    return DrafterDesign(**chosen)


def plan_of(args: argparse.Namespace) -> DataPlan:
    """What texts to write.

    Raises:
        InputError: prompts that cannot be read, temperatures that are no numbers.
    """
    prompts = read_prompt_turns(args.prompts) if args.prompts else ()
    share = 0.5 if args.self_written is None else args.self_written
    return DataPlan(
        prompts=prompts,
        self_written=share if prompts else 1.0,
        imitated=args.imitated,
        temperatures=_temperatures(args.temps),
        max_user=args.max_user,
        max_answer=args.max_answer,
        max_length=args.max_length,
        answer_tokens=args.answer_tokens,
        seed=args.seed,
        follow_up=args.follow_up,
        rows=args.rows,
        shard=args.shard,
    )


def _temperatures(text: str) -> tuple[tuple[float, float], ...]:
    try:
        return tuple((float(part), 1.0) for part in text.split(","))
    except ValueError as error:
        raise InputError("--temps", repr(text), "numbers, separated by commas") from error
