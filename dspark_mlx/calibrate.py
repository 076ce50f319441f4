"""python -m dspark_mlx.calibrate: fit the confidence head's temperatures and store them."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import cli
from .bars import counting
from .calibration import fit, write_calibration
from .calibration_report import SlotReport, report, table
from .decoder import Decoder
from .errors import InputError
from .plots import check_path, reliability
from .prompts import read_prompts
from .recording import RecordedRound, arrays, read_rounds, record, write_rounds

MIN_ROUNDS = 200


def main(argv: list[str] | None) -> int:
    """Parse, record or read the rounds, fit, print before and after, store."""
    args = _parser().parse_args(argv)
    _check_flags(args)
    prompts = read_prompts(args.prompts) if args.prompts else []
    held_out_prompts = read_prompts(args.held_out) if args.held_out else []
    fitted = read_rounds(args.rounds) if args.rounds else []
    held_out = read_rounds(args.held_out_rounds) if args.held_out_rounds else []
    _check_enough(len(fitted) or len(prompts) * args.max_tokens)
    to: Path | None = args.to
    if prompts or held_out_prompts or not (to or args.dry_run):
        decoder = _load(args)
        _check_slots(fitted, decoder)
        if prompts:
            fitted = _record(decoder, prompts, args.max_tokens, "Recording")
        if held_out_prompts:
            held_out = _record(decoder, held_out_prompts, args.max_tokens, "Held out")
            _check_any(held_out, args.held_out)
        to = to or decoder.sources[1]
    _check_enough(len(fitted))
    calibration = fit(*arrays(fitted))
    judged = {"fitted": report(*arrays(fitted), calibration)}
    if held_out:
        judged["held out"] = report(*arrays(held_out), calibration)
    if args.record:
        write_rounds(args.record, fitted)
    if args.plot:
        reliability.plot(*arrays(held_out or fitted), calibration, args.plot)
    stored = None if args.dry_run or to is None else write_calibration(to, calibration)
    counts = {"fitted": len(fitted), "held out": len(held_out)}
    if args.json:
        rows = {name: [_row(slot) for slot in slots] for name, slots in judged.items()}
        path = None if stored is None else str(stored)
        print(json.dumps({"stored": path, **asdict(calibration), "slots": rows}))
        return 0
    for name, slots in judged.items():
        print(f"{counts[name]} rounds, {name}:\n{table(slots)}\n")
    print("temperatures: " + " ".join(f"{t:.2f}" for t in calibration.temperatures))
    print(f"stored in {stored}" if stored else "not stored (--dry-run)")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dspark_mlx.calibrate", description=__doc__)
    cli.add_model_flags(parser)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prompts", type=Path, help='JSON lines with "task" and "prompt", to fit on'
    )
    source.add_argument("--rounds", type=Path, help="recorded rounds to fit on, instead of running")
    judge = parser.add_mutually_exclusive_group()
    judge.add_argument("--held-out", type=Path, help="other prompts, to judge the fit on")
    judge.add_argument("--held-out-rounds", type=Path, help="the same, as recorded rounds")
    add("--max-tokens", "-m", type=int, default=128, help="rounds per prompt (default: 128)")
    add("--record", type=Path, metavar="FILE", help="keep the rounds of --prompts")
    add("--to", type=Path, metavar="FOLDER", help="where to store (default: beside the drafter)")
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="reliability diagram (.png, .svg, .pdf) of the held-out rounds, else of the fitted",
    )
    add("--dry-run", action="store_true", help="store nothing")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def _check_flags(args: argparse.Namespace) -> None:
    """Refuse what could only fail after the work is done."""
    if args.no_drafter:
        raise InputError("--no-drafter", "nothing to calibrate", "a drafter")
    if args.scheduler != "auto":
        raise InputError("--scheduler", repr(args.scheduler), "none: whole blocks are recorded")
    if args.max_tokens < 1:
        raise InputError("--max-tokens", args.max_tokens, "1 or more")
    if args.record and args.rounds:
        raise InputError("--record", f"rounds already in {args.rounds}", "--prompts to record")
    if args.record and not args.record.parent.is_dir():
        raise InputError("--record", f"no folder {args.record.parent}", "an existing one")
    if args.to and not args.to.is_dir():
        raise InputError("--to", f"no folder {args.to}", "an existing one")
    if args.plot:
        check_path(args.plot)


def _check_enough(rounds: int) -> None:
    if rounds < MIN_ROUNDS:
        hint = "Give more prompts, or more --max-tokens."
        raise InputError("calibration", f"{rounds} rounds", f"{MIN_ROUNDS} or more", hint)


def _check_any(rounds: Sequence[RecordedRound], prompts: Path) -> None:
    if not rounds:
        found = "prompts whose texts are shorter than a block"
        raise InputError(prompts, found, "at least one round to judge on")


def _load(args: argparse.Namespace) -> Decoder:
    decoder = cli.load_decoder(args)
    drafter = decoder.engine.drafter
    if drafter is None or not drafter.config.has_confidence:
        found = "a drafter without a confidence head"
        raise InputError(args.drafter or "--drafter", found, "one with a confidence head")
    return decoder


def _check_slots(rounds: Sequence[RecordedRound], decoder: Decoder) -> None:
    assert decoder.engine.drafter is not None
    gamma = decoder.engine.drafter.config.gamma
    if rounds and (slots := len(rounds[0].confidence_logits)) != gamma:
        raise InputError("--rounds", f"blocks of {slots} tokens", f"{gamma}, as the drafter's")


def _record(
    decoder: Decoder, prompts: Sequence[dict[str, str]], max_tokens: int, label: str
) -> list[RecordedRound]:
    assert decoder.engine.drafter is not None
    longest = max_tokens + decoder.engine.drafter.config.gamma
    encoded = []
    for number, prompt in enumerate(prompts, 1):
        ids = decoder.encode([{"role": "user", "content": prompt["prompt"]}])
        if decoder.max_length is not None and len(ids) + longest > decoder.max_length:
            found = f"{len(ids)} tokens, with {longest} to decode"
            raise InputError(f"prompt {number}", found, f"{decoder.max_length} positions at most")
        encoded.append((prompt["task"], ids))
    with counting(label, "prompt") as progress:
        return record(decoder.engine, encoded, max_tokens, decoder.stop_tokens, progress)


def _row(slot: SlotReport) -> dict[str, Any]:
    """As JSON, which has no nan."""
    return {k: None if math.isnan(v) else v for k, v in asdict(slot).items()}


if __name__ == "__main__":
    cli.run(main)
