"""python -m dspark_mlx.chat: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from .decoder import Decoder
from .errors import InputError
from .serving.conversation import Conversation
from .system.process import program
from .system.strict_json import check_text
from .terminal import command, flags
from .terminal.draft_painter import DraftPainter, statistics_line
from .terminal.image_flags import add_image_flag, read_images, user_message
from .types import Chunk

HELP = (
    "/image FILE shows an image with the next message, /reset starts over, /help shows this, "
    "/exit (or Ctrl-D) leaves; Ctrl-C stops an answer."
)


def main(argv: list[str] | None) -> int:
    """Run the command: answer messages until the end of the input; returns the exit status."""
    args = _parser().parse_args(argv)
    settings, template = flags.request_settings(args), flags.template_settings(args)
    images = read_images(args.image)
    with flags.load_decoder(args) as decoder:
        settings = flags.with_loaded(settings, decoder, args) | template
        if not decoder.tokenizer.has_chat_template:
            raise InputError(args.model, "no chat template", "a target made for conversation")
        _talk(decoder, settings, images, args)
    return 0


def _talk(
    decoder: Decoder, settings: dict[str, Any], images: list[Any], args: argparse.Namespace
) -> None:
    """Answer lines until one says that it is over; the images go with the first message."""
    opening = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    conversation, turns = decoder.conversation(opening, **settings), 0
    print(HELP, file=sys.stderr)
    while (line := _read_line()) is not None:
        if line == "/exit":
            break
        if line == "/help":
            print(HELP, file=sys.stderr)
        elif line == "/reset":
            conversation, images = decoder.conversation(opening, **settings), []
        elif line.startswith("/image "):
            images += _image(line.removeprefix("/image ").strip())
        elif line.startswith("/"):
            print(f"no command {line}; {HELP}", file=sys.stderr)
        elif line:
            # Each answer has its own random numbers, so that a repeated question gets a new answer.
            sample = turns if args.temp else 0
            if _turn(conversation, line, images, sample, args):
                images = []
            turns += 1


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=program("chat"), description="Chat with DSpark speculative decoding."
    )
    add_image_flag(parser, "the first message")
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


def _image(path: str) -> list[Any]:
    """The image of a file; none, and a line that says why, where it cannot be read."""
    try:
        return read_images([path], "/image")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return []


@command.warnings_behind()
def _turn(
    conversation: Conversation,
    line: str,
    images: Sequence[Any],
    sample: int,
    args: argparse.Namespace,
) -> bool:
    """Print the answer to one message; returns whether the message is part of the conversation.

    A message that is refused is not.
    """
    painter = DraftPainter(sys.stdout.isatty()) if args.show_drafts else None
    chunk: Chunk | None = None
    try:
        check_text("this line", line)
        message = user_message(line, images)
        # The text so far stays in the conversation after Ctrl-C.
        with contextlib.suppress(KeyboardInterrupt):
            answer = conversation.send(message, progress=flags.PrefillBar(), sample=sample)
            with contextlib.closing(answer):
                for chunk in answer:
                    print(painter.paint(chunk) if painter else chunk.text, end="", flush=True)
    except InputError as error:
        print(end="\n" if chunk else "", flush=True)
        print(f"error: {error} The message was not added; /reset starts over.", file=sys.stderr)
        return False
    print(painter.close() if painter else "", flush=True)
    if args.stats and chunk:
        print(statistics_line(chunk.statistics, args.exact), file=sys.stderr)
    return chunk is not None


if __name__ == "__main__":
    command.run(main)
