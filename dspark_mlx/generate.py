"""python -m dspark_mlx.generate: a prompt in, streamed text out."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from . import cli
from .compare import first_difference, plain_run
from .decoder import Decoder, Prompt
from .errors import InputError
from .show import DraftPainter, statistics_line
from .types import Chunk, Round


def main(argv: list[str] | None) -> int:
    """Parse, generate, print; returns the exit status."""
    args = _parser().parse_args(argv)
    prompt_text = _read_prompt(args.prompt)
    settings = cli.request_settings(args)
    decoder = cli.load_decoder(args)
    prompt = _prompt(decoder, prompt_text, args)
    text, chunk, rounds, interrupted = _generate(decoder, prompt, settings, args)
    if args.json:
        print(json.dumps(_report(text, chunk, rounds), ensure_ascii=False))
    elif args.stats and chunk:
        print(statistics_line(chunk.statistics), file=sys.stderr)
    if args.compare and not interrupted:
        _compare(decoder, prompt, settings, rounds)
    return cli.INTERRUPTED if interrupted else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dspark_mlx.generate",
        description="Generate text with DSpark speculative decoding.",
    )
    parser.add_argument(
        "--prompt", "-p", required=True, help="the user's message; - reads standard input"
    )
    cli.add_model_flags(parser)
    cli.add_request_flags(parser)
    add = parser.add_argument
    add("--ignore-chat-template", action="store_true", help="encode the prompt as it is")
    add("--show-drafts", action="store_true", help="colour accepted drafts by round")
    add("--stats", action="store_true", help="a line of statistics at the end")
    add("--compare", action="store_true", help="decode plainly too: speed and tokens of both")
    add("--json", action="store_true", help="print one JSON object instead of streaming")
    return parser


def _read_prompt(argument: str) -> str:
    text = sys.stdin.read() if argument == "-" else argument
    if not text.strip():
        raise InputError("--prompt", "no text", "a prompt")
    return text


def _prompt(decoder: Decoder, text: str, args: argparse.Namespace) -> Prompt:
    if args.ignore_chat_template or not decoder.tokenizer.has_chat_template:
        if args.system_prompt:
            found = "no chat template to put it in"
            raise InputError("--system-prompt", found, "a target's chat template")
        return text
    system = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    return [*system, {"role": "user", "content": text}]


def _generate(
    decoder: Decoder, prompt: Prompt, settings: dict[str, Any], args: argparse.Namespace
) -> tuple[str, Chunk | None, list[Round], bool]:
    """Stream to the terminal; Ctrl-C ends the text but not the statistics."""
    painter = DraftPainter(sys.stdout.isatty()) if args.show_drafts else None
    rounds: list[Round] = []
    chunks = decoder.stream(prompt, progress=cli.PrefillBar(), on_round=rounds.append, **settings)
    text, chunk, interrupted = "", None, False
    try:
        for chunk in chunks:
            text += chunk.text
            if not args.json:
                shown = painter.paint(chunk) if painter else chunk.text
                print(shown, end="", flush=True)
    except KeyboardInterrupt:
        interrupted = True
    if not args.json:
        print(painter.close() if painter else "", flush=True)
    return text, chunk, rounds, interrupted


def _report(text: str, chunk: Chunk | None, rounds: list[Round]) -> dict[str, Any]:
    tokens = [token for done in rounds for token in done.tokens]
    report: dict[str, Any] = {"text": text, "tokens": tokens, "finish_reason": "interrupted"}
    if chunk:
        statistics = chunk.statistics
        report["tokens"] = tokens[: statistics.generation_tokens]
        report["finish_reason"] = chunk.finish_reason or "interrupted"
        report["prompt_tokens"] = statistics.prompt_tokens
        report["prompt_tps"] = statistics.prompt_tps
        report["generation_tokens"] = statistics.generation_tokens
        report["generation_tps"] = statistics.generation_tps
        report["blocks"] = statistics.blocks
        report["accepted_length"] = statistics.accepted_length
        report["peak_memory_gb"] = statistics.peak_memory / 1e9
    report["rounds"] = [
        {
            "drafted": done.drafted,
            "scheduled": done.scheduled,
            "accepted": done.accepted,
            "tokens": list(done.tokens),
        }
        for done in rounds
    ]
    return report


def _compare(
    decoder: Decoder, prompt: Prompt, settings: dict[str, Any], rounds: list[Round]
) -> None:
    """Decode once more, plainly through mlx-lm, and print speeds and the first difference."""
    ids = decoder.encode(prompt)
    tokens = [token for done in rounds for token in done.tokens]
    stops = decoder.stop_tokens | set(decoder.tokenizer.eos_token_ids)
    target = decoder.engine.target
    plain = plain_run(target, ids, len(tokens), stops, settings["prefill_step_size"])
    seconds = sum(done.seconds for done in rounds[1:])
    lines = []
    if seconds and plain.seconds:
        fast = (len(tokens) - 1) / seconds
        slow = (len(plain.tokens) - 1) / plain.seconds
        speeds = f"{fast:.1f} against {slow:.1f} tokens/s, {fast / slow:.2f}x"
        lines.append(f"speculative against plain: {speeds}")
    difference = first_difference(target, ids, tokens, plain.tokens)
    if difference is None:
        lines.append(f"all {len(tokens)} tokens agree")
    else:
        speculative, other = difference.tokens
        lines.append(
            f"first difference at token {difference.index}: {speculative} against {other}, "
            f"top-two logit margin {difference.margin:.2e}"
        )
    print(" | ".join(lines), file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
