"""python -m dspark_mlx.calibrate: fit the confidence head's temperatures and store them."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .calibration.by_temperature import write_calibrations
from .calibration.report import SlotReport, report_table, slot_reports
from .calibration.sts import Calibration
from .decoder import Decoder
from .errors import InputError
from .plots import check_path, reliability
from .progress import progress_bar
from .replay.fit import (
    MIN_ROUNDS,
    TEMPERATURES,
    fewest_rounds,
    fit_temperatures,
    record_temperatures,
)
from .replay.recorded import (
    RecordedRound,
    arrays,
    by_temperature,
    read_rounds,
    write_rounds,
)
from .sampling.settings import Sampling
from .system.files import check_folder, check_output
from .system.process import program
from .terminal import command, flags
from .text.prompt_files import PromptLine, read_prompts


def main(argv: list[str] | None) -> int:
    """Parse, record or read the rounds, fit, print before and after, store."""
    args = _parser().parse_args(argv)
    _check_flags(args)
    temperatures = sorted(set(TEMPERATURES if args.temp is None else args.temp))
    prompts = read_prompts(args.prompts) if args.prompts else []
    held_out_prompts = read_prompts(args.held_out) if args.held_out else []
    fitted = read_rounds(args.rounds) if args.rounds else []
    held_out = read_rounds(args.held_out_rounds) if args.held_out_rounds else []
    _check_enough(fewest_rounds(fitted) if fitted else len(prompts) * args.max_tokens)
    to: Path | None = args.to
    if prompts or held_out_prompts or not (to or args.dry_run):
        decoder = _load(args)
        _check_slots(fitted, decoder)
        to = to or decoder.drafter_folder
        if to and not args.dry_run:
            check_folder("--to", to)
        if prompts:
            fitted = _record(decoder, prompts, args.max_tokens, temperatures, "Recording")
            if args.record:  # kept even where they are too few to fit
                write_rounds(args.record, fitted)
        if held_out_prompts:
            held_out = _record(decoder, held_out_prompts, args.max_tokens, temperatures, "Held out")
            _check_any(held_out, args.held_out)
    _check_enough(fewest_rounds(fitted, temperatures if prompts else ()))
    calibrations = fit_temperatures(fitted)
    judging = by_temperature(held_out)
    fits = [
        _fit(temperature, calibrations.by_temperature[temperature], rounds, judging)
        for temperature, rounds in by_temperature(fitted).items()
    ]
    if args.plot:
        _plot(fits, args.plot)
    stored = None
    if to and not args.dry_run:
        stored = write_calibrations(to, calibrations)
    if args.json:
        path = None if stored is None else str(stored)
        print(json.dumps({"stored": path, "fits": [fitted.numbers() for fitted in fits]}))
        return 0
    for each in fits:
        print(each.text())
    print(f"stored in {stored}" if stored else "not stored (--dry-run)")
    return 0


@dataclass(frozen=True)
class _Fit:
    """A calibration fitted at one sampling temperature, and the rounds that it is judged on."""

    temperature: float
    calibration: Calibration
    judged: dict[str, list[RecordedRound]]
    reports: dict[str, list[SlotReport]]

    def text(self) -> str:
        lines = []
        sampled = f" at temperature {self.temperature:g}" if self.temperature else ""
        for name, slots in self.reports.items():
            lines.append(
                f"{len(self.judged[name])} rounds{sampled}, {name}:\n{report_table(slots)}\n"
            )
        found = " ".join(f"{t:.2f}" for t in self.calibration.temperatures)
        return "\n".join([*lines, f"temperatures{sampled}: {found}\n"])

    def numbers(self) -> dict[str, Any]:
        rows = {name: [_row(slot) for slot in slots] for name, slots in self.reports.items()}
        sampled = {"sampling_temperature": self.temperature}
        return {**sampled, **asdict(self.calibration), "slots": rows}


def _fit(
    temperature: float,
    calibration: Calibration,
    rounds: list[RecordedRound],
    held_out: dict[float, list[RecordedRound]],
) -> _Fit:
    judged = {"fitted": rounds}
    if temperature in held_out:
        judged["held out"] = held_out[temperature]
    reports = {name: slot_reports(*arrays(each), calibration) for name, each in judged.items()}
    return _Fit(temperature, calibration, judged, reports)


def _plot(fits: Sequence[_Fit], path: Path) -> None:
    """Draw one diagram for each sampling temperature; several go to files named after theirs."""
    for each in fits:
        rounds = each.judged.get("held out", each.judged["fitted"])
        to = path if len(fits) == 1 else path.with_stem(f"{path.stem}-{each.temperature:g}")
        reliability.plot(*arrays(rounds), each.calibration, to)


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=program("calibrate"),
        description="Fit a drafter's confidences to what the target accepts, and store the fit.",
    )
    flags.add_model_flags(parser)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prompts",
        type=Path,
        help='JSON lines with "prompt" or "turns", to fit on, see "Prompt files" in '
        "docs/evaluation.md",
    )
    source.add_argument("--rounds", type=Path, help="recorded rounds to fit on, instead of running")
    judge = parser.add_mutually_exclusive_group()
    judge.add_argument("--held-out", type=Path, help="other prompts, to judge the fit on")
    judge.add_argument("--held-out-rounds", type=Path, help="the same, as recorded rounds")
    add(
        "--temp",
        type=float,
        nargs="+",
        metavar="T",
        help="sampling temperatures to record and fit at, 0 is greedy; a request between two gets "
        "what lies between (default: 0 0.7 1)",
    )
    add(
        "--max-tokens",
        "-m",
        type=int,
        default=128,
        help="rounds per prompt and temperature (default: 128)",
    )
    add("--record", type=Path, metavar="FILE", help="keep the rounds of --prompts")
    add(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="where to store (default: in the drafter's folder)",
    )
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="reliability diagram (.png, .svg, .pdf) of the held-out rounds, else of the fitted; "
        "one a temperature",
    )
    add("--dry-run", action="store_true", help="store nothing")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def _check_flags(args: argparse.Namespace) -> None:
    """Refuse what could only fail after the work is done."""
    flags.check_drafter(args, "whose confidence head is calibrated")
    if args.scheduler != "auto":
        raise InputError("--scheduler", repr(args.scheduler), "none: whole blocks are recorded")
    if args.max_tokens < 1:
        raise InputError("--max-tokens", args.max_tokens, "1 or more")
    if args.temp is not None and args.rounds:
        found = f"rounds already in {args.rounds}"
        raise InputError("--temp", found, "none: rounds keep their temperature")
    for temperature in args.temp or ():
        Sampling(temperature=temperature).check()
    if args.record and args.rounds:
        raise InputError("--record", f"rounds already in {args.rounds}", "--prompts to record")
    if args.record:
        check_output("--record", args.record)
    if args.to and not args.dry_run:
        check_folder("--to", args.to)
    if args.plot:
        check_path(args.plot)


def _check_enough(rounds: int) -> None:
    """Refuse too few rounds of a sampling temperature, recorded or to be recorded."""
    if rounds < MIN_ROUNDS:
        hint = "Give more prompts, or more --max-tokens."
        expected = f"{MIN_ROUNDS} or more at each sampling temperature"
        raise InputError("calibration", f"{rounds} rounds", expected, hint)


def _check_any(rounds: Sequence[RecordedRound], prompts: Path) -> None:
    if not rounds:
        found = "prompts whose texts are shorter than a block"
        raise InputError(prompts, found, "at least one round to judge on")


def _load(args: argparse.Namespace) -> Decoder:
    # Another scheduler would look for a speed profile, which nothing here needs.
    args.scheduler = "full"
    decoder = flags.load_decoder(args)
    drafter = decoder.engine.drafter
    if drafter is None or not drafter.config.has_confidence:
        found = "a drafter without a confidence head"
        expected = "one with a confidence head, whose confidences can be calibrated"
        raise InputError(args.drafter or "--drafter", found, expected)
    return decoder


def _check_slots(rounds: Sequence[RecordedRound], decoder: Decoder) -> None:
    assert decoder.engine.drafter is not None
    gamma = decoder.engine.drafter.config.gamma
    if rounds and (slots := len(rounds[0].confidence_logits)) != gamma:
        raise InputError("--rounds", f"blocks of {slots} tokens", f"{gamma}, as the drafter's")


def _record(
    decoder: Decoder,
    prompts: Sequence[PromptLine],
    max_tokens: int,
    temperatures: Sequence[float],
    label: str,
) -> list[RecordedRound]:
    assert decoder.engine.drafter is not None
    longest = max_tokens + decoder.engine.drafter.config.gamma
    encoded = []
    for number, prompt in enumerate(prompts, 1):
        ids = decoder.encode([{"role": "user", "content": prompt.turns[0]}])
        if decoder.max_length is not None and len(ids) + longest > decoder.max_length:
            found = f"{len(ids)} tokens, with {longest} to decode"
            raise InputError(f"prompt {number}", found, f"{decoder.max_length} positions at most")
        encoded.append((prompt.task, ids))
    with progress_bar(label, "prompt") as progress:
        return record_temperatures(
            decoder.engine, encoded, max_tokens, decoder.stop_tokens, temperatures, progress
        )


def _row(slot: SlotReport) -> dict[str, Any]:
    """A report's row as JSON values; JSON has no NaN, so None stands for it."""
    return {k: None if math.isnan(v) else v for k, v in asdict(slot).items()}


if __name__ == "__main__":
    command.run(main)
