"""dspark-mlx-lm COMMAND: every command of the package by its name, and their console scripts."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from importlib import import_module

from .terminal import command
from .version import __version__

COMMANDS = {
    "generate": "one prompt in, streamed text out",
    "chat": "a conversation in the terminal",
    "server": "OpenAI's and Anthropic's HTTP dialects, on this machine",
    "bench": "speculative against plain decoding",
    "evaluate": "drafters side by side on benchmark tasks",
    "train": "a drafter for your target",
    "profile": "what verifying, drafting and plain steps cost here",
    "calibrate": "fit a drafter's confidences to what the target accepts",
    "models": "published pairs of targets and drafters",
    "convert": "drafters and targets to folders that load at once",
}
_FOLDERS = ("convert", "server", "train")


def main() -> None:
    """The distribution's own script: the command's name comes first."""
    command.run(_dispatch)


def _dispatch(argv: list[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    # Only the name is parsed here: flags behind it are the command's own, --help among them.
    name = _parser().parse_args(argv[:1] or ["--help"]).command
    return _run(name, argv[1:])


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
    parser = command.Parser(
        prog="dspark-mlx-lm",
        usage="%(prog)s COMMAND [flags]",
        description="DSpark speculative decoding for MLX.",
        epilog=f"commands:\n{listed}\n\nEach explains its flags: %(prog)s COMMAND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help=argparse.SUPPRESS)
    return parser


def _run(name: str, argv: list[str] | None) -> int:
    """A command's exit status; without `argv` its arguments are the process's."""
    # Imported when it is asked for: `python -m dspark_mlx.generate` must be the first to do it.
    module = import_module(f".{name}.__main__" if name in _FOLDERS else f".{name}", __package__)
    status: int = module.main(argv)
    return status


def _script(name: str) -> None:
    command.run(partial(_run, name))


generate = partial(_script, "generate")
chat = partial(_script, "chat")
server = partial(_script, "server")
bench = partial(_script, "bench")
evaluate = partial(_script, "evaluate")
train = partial(_script, "train")
profile = partial(_script, "profile")
calibrate = partial(_script, "calibrate")
models = partial(_script, "models")
convert = partial(_script, "convert")

if __name__ == "__main__":
    main()
