"""python -m dspark_mlx.chat: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .decoder import Decoder
from .errors import InputError
from .system.process import program
from .system.strict_json import check_text
from .terminal import command, flags
from .terminal.draft_painter import DraftPainter, statistics_line
from .types import Chunk

HELP = "/reset starts over, /help shows this, /exit (or Ctrl-D) leaves; Ctrl-C stops an answer."


def main(argv: list[str] | None) -> int:
    """Run the command: answer messages until the end of the input; returns the exit status."""
    args = _parser().parse_args(argv)
    settings, template = flags.request_settings(args), flags.template_settings(args)
    decoder = flags.load_decoder(args)
    settings = flags.with_loaded(settings, decoder, args) | template
    if not decoder.tokenizer.has_chat_template:
        raise InputError(args.model, "no chat template", "a target made for conversation")
    opening = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    messages, turns = list(opening), 0
    print(HELP, file=sys.stderr)
    while (line := _read_line()) is not None:
        if line == "/exit":
            break
        if line == "/help":
            print(HELP, file=sys.stderr)
        elif line == "/reset":
            messages = list(opening)
        elif line.startswith("/"):
            print(f"no command {line}; {HELP}", file=sys.stderr)
        elif line:
            # Each answer has its own random numbers, so that a repeated question gets a new answer.
            sample = turns if args.temp else 0
            messages = _turn(decoder, messages, line, {**settings, "sample": sample}, args)
            turns += 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=program("chat"), description="Chat with DSpark speculative decoding."
    )
    flags.add_model_flags(parser)
    flags.add_prompt_cache_flags(parser)
    flags.add_request_flags(parser)
    add = parser.add_argument
    add("--show-drafts", action="store_true", help="colour accepted drafts, a colour a round")
    add("--stats", action="store_true", help="print a line of statistics after each answer")
    return parser


def _read_line() -> str | None:
    try:
        return input(">> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        print(file=sys.stderr)
        return None


def _turn(
    decoder: Decoder,
    messages: list[dict[str, Any]],
    line: str,
    settings: dict[str, Any],
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Print the answer to one message; returns the conversation with both.

    A message that is refused is not added.
    """
    messages = [*messages, {"role": "user", "content": line}]
    painter = DraftPainter(sys.stdout.isatty()) if args.show_drafts else None
    text = ""
    chunk: Chunk | None = None
    try:
        check_text("this line", line)
        for chunk in decoder.stream(messages, progress=flags.PrefillBar(), **settings):
            text += chunk.text
            print(painter.paint(chunk) if painter else chunk.text, end="", flush=True)
    except KeyboardInterrupt:
        # The text so far stays in the conversation.
        pass
    except InputError as error:
        print(end="\n" if text else "", flush=True)
        print(f"error: {error} The message was not added; /reset starts over.", file=sys.stderr)
        return messages[:-1]
    print(painter.close() if painter else "", flush=True)
    if args.stats and chunk:
        print(statistics_line(chunk.statistics), file=sys.stderr)
    return [*messages, {"role": "assistant", "content": text}]


if __name__ == "__main__":
    command.run(main)
