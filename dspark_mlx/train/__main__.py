"""python -m dspark_mlx.train: train a drafter for a target, on texts that the target writes."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from ..checkpoint.frequent_tokens import rank_tokens
from ..decoder import Decoder
from ..load import load
from ..plots import check_path
from ..progress import progress_bar
from ..targets.network import refusing
from ..targets.self_check import check_rollback
from ..terminal import command, flags
from .arguments import design_of, parser, plan_of, settings_of
from .data.budget import unit
from .data.conversations import open_store, write_conversations
from .data.corpus import Corpus
from .data.store import Store, check_same_target, load_all
from .log import Entry
from .memory import check_memory
from .plot import plot
from .publish import calibrate, drafter_folder, prompts_of, write_drafter, write_trained_card
from .run import Result, TrainingRun
from .settings import TrainingSettings
from .start import new_drafter, published_drafter, tapped, target_name

_PROMPTS = 32


def main(argv: list[str] | None) -> int:
    """Write conversations, train, and leave a drafter; returns the exit status."""
    args = parser().parse_args(argv)
    design, plan = design_of(args), plan_of(args)
    settings_of(args, design.head).check()
    plan.check()
    if args.plot:
        check_path(args.plot)
    folder = drafter_folder(args.to)
    decoder = load(args.model, False, precision=args.precision)
    with refusing(decoder.target_folder):
        # A drafter for a target that cannot verify its blocks would be of no use.
        check_rollback(decoder.engine.target, decoder.target_folder)
    flags.advise(decoder)
    name = target_name(args.model, decoder.target_folder)
    if args.start:
        start = published_drafter(decoder, args.start, name)
    else:
        start = new_drafter(decoder, design, args.seed, name)
    settings = settings_of(args, getattr(start.config, "head", None))
    check_memory(start.tensors, settings, decoder.engine.target.vocab_size)
    others = [Store.open(folder) for folder in args.more_conversations]
    store = open_store(decoder, plan, args.conversations or args.to / "conversations")
    check_same_target(store, others)
    with progress_bar("Writing conversations", unit(plan)) as progress:
        write_conversations(decoder, plan, store, progress)
    if args.only_conversations:
        _tell(args, {"conversations": store.conversations, "answer tokens": store.answer_tokens})
        return 0
    corpus = load_all(store, others)
    start.identity["conversations"] = len(corpus)
    start.identity["conversation_tokens"] = len(corpus.tokens)
    target = tapped(decoder, start.config)
    with closing(target), closing(_Bar(settings, args)) as bar:
        run = TrainingRun(target, corpus, start, settings, args.to, bar)
        result = _train(args, run)
    if result.ended == "stopped":
        if args.json:
            print(json.dumps({"ended": "stopped", "steps": result.progress.step}))
        else:
            print(f"stopped at step {result.progress.step}; run it again to go on")
        return command.INTERRUPTED
    vocabulary = start.config.vocab_size
    ranking = rank_tokens(corpus.tokens[corpus.answer], vocabulary, start.ranking)
    write_drafter(folder, start.config, result.tensors, getattr(mx, args.dtype), ranking)
    facts = _facts(corpus, settings, result)
    if start.config.has_confidence and not args.no_calibration:
        prompts = prompts_of(corpus, run.held_out, _PROMPTS)
        _say(
            f"calibrating the confidences on answers to {len(prompts)} held-out prompts "
            "(--no-calibration leaves it out)"
        )
        rounds = _calibrate(decoder, folder, prompts)
        facts["calibrated on rounds"] = rounds or "none: the held-out texts are too short"
    write_trained_card(folder, facts, start.config, builtin=args.model is None)
    if args.plot:
        plot(args.to / "log.csv", args.plot)
    _tell(args, {**facts, "drafter": str(folder)})
    return 0


def _say(text: str) -> None:
    """A line above the bar, on standard error: standard output belongs to the result."""
    tqdm.write(text, file=sys.stderr)


def _tell(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """The result, on standard output."""
    if args.json:
        print(json.dumps(facts))
    else:
        print("\n".join(f"{name:34} {value}" for name, value in facts.items()))


def _train(args: argparse.Namespace, run: TrainingRun) -> Result:
    if done := run.progress.step:
        _say(f"{args.to}: going on after step {done} of {args.steps}")
    with _interruptible() as stopped:
        return run.go(lambda: bool(stopped))


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """The first Ctrl-C is noted in the list, for the step under way to end; the second one ends."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        _say("stopping after this step; once more to stop at once")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


class _Bar:
    """The run's progress bar; evaluations are printed above it."""

    def __init__(self, settings: TrainingSettings, args: argparse.Namespace) -> None:
        self._bar: tqdm[Any] = tqdm(
            total=settings.recipe.steps, desc="Training", unit="step", disable=args.json
        )

    def close(self) -> None:
        """Leave the bar as it is; what comes after is not training."""
        self._bar.close()

    def __call__(self, entry: Entry) -> None:
        watched = entry.watched
        if entry.kind == "held-out":
            slots = " ".join(f"{value:.2f}" for value in watched.acceptance)
            _say(
                f"step {entry.step}: held-out loss {watched.mean_loss:.3f}, tokens a round "
                f"{watched.tau_greedy:.2f} greedy, {watched.tau_sampled:.2f} sampled; "
                f"acceptance by position {slots}"
            )
            return
        self._bar.update(entry.step - self._bar.n)
        self._bar.set_postfix(loss=f"{watched.mean_loss:.3f}", tau=f"{watched.tau_greedy:.2f}")


def _facts(corpus: Corpus, settings: TrainingSettings, result: Result) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "conversations": len(corpus),
        "tokens": len(corpus.tokens),
        "steps": result.progress.step,
        "ended": result.ended,
        "minutes": round(result.progress.seconds / 60, 1),
        "learning rate": settings.recipe.learning_rate,
        "batch tokens": settings.batches.tokens * settings.recipe.accumulate,
    }
    if settings.qat_bits:
        facts["trained for"] = f"{settings.qat_bits} bits in groups of {settings.qat_group_size}"
    if result.judged is not None:
        facts["held-out tokens a round, greedy"] = round(result.judged.tau_greedy, 3)
        facts["held-out tokens a round, sampled"] = round(result.judged.tau_sampled, 3)
    return facts


def _calibrate(decoder: Decoder, folder: Path, prompts: list[list[int]]) -> int:
    with progress_bar("Calibrating", "prompt") as progress:
        return calibrate(decoder, folder, prompts, 128, progress)


if __name__ == "__main__":
    command.run(main)
