"""python -m dspark_mlx.server: a local HTTP server with OpenAI's and Anthropic's dialects."""

from __future__ import annotations

import argparse
import ipaddress
from pathlib import Path
from typing import Any

from ..engine.request import Request
from ..errors import InputError
from ..serving.service import Limits
from ..system.files import read_text
from ..system.process import ended_by_interrupt, program
from ..terminal import command, flags
from ..terminal.sampling_flags import (
    add_sampling_flags,
    add_setting_flag,
    read_json_argument,
    sampling_settings,
    with_special_tokens,
)

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def main(argv: list[str] | None) -> int:
    """Run the command: serve until Ctrl-C or SIGTERM; returns the exit status."""
    # Until the server's own handlers of signals stand; starting it leaves nothing behind.
    with ended_by_interrupt():
        return _serve(_parser().parse_args(argv))


def _serve(args: argparse.Namespace) -> int:
    try:
        from .app import make_app
        from .connection import Connection
        from .listening import Server, listener
        from .options import Options
    except ImportError as error:
        hint = 'pip install ".[server]", in a clone of the project'
        raise InputError("server", f"no {error.name}", "this package", hint) from error
    api_key = _api_key(args)
    limits = Limits(args.decode_concurrency, args.queue_size)
    limits.check()
    settings = sampling_settings(args) | {"prefill_step_size": args.prefill_step_size}
    Request.make(args.max_tokens, (), settings)
    variables = _object(args.chat_template_args)
    # Before a large model is loaded for nothing.
    socket = listener(args.host, args.port)
    decoder = flags.load_decoder(args)
    settings = with_special_tokens(settings, decoder)
    if args.generation_config:
        settings |= _not_named(decoder.generation_defaults, settings)
        Request.make(args.max_tokens, (), settings)
    decoder.limits = limits
    options = Options(
        name=args.served_model_name or Path(args.model or "SmolLM2-135M-Instruct").name,
        hosts=_LOOPBACK | {args.host.lower()} | {each.lower() for each in args.allowed_hosts},
        origins=frozenset(args.allowed_origins),
        api_key=api_key,
        max_body_bytes=args.max_body_bytes,
        max_tokens=args.max_tokens,
        max_tokens_limit=max(args.max_tokens_limit, args.max_tokens),
        timeout=args.timeout,
        settings=settings,
        template_kwargs=variables,
    )
    server = Server(
        decoder,
        make_app(decoder, options),
        host=args.host,
        port=args.port,
        log_level=args.log_level.lower(),
        access_log=args.log_level == "DEBUG",
        proxy_headers=False,
        server_header=False,
        http=Connection,
        ws="none",
        timeout_graceful_shutdown=args.drain_seconds,
    )
    server.run([socket])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=program("server"),
        description="Serve one model over HTTP, to this machine alone unless you say otherwise.",
    )
    flags.add_model_flags(parser)
    flags.add_prompt_cache_flags(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    port = command.whole_number(0, (1 << 16) - 1, "a port")
    add("--port", type=port, default=8080, help="port to listen on (default: 8080)")
    _list(parser, "--allowed-origins", "web origins that may call it, by commas (default: none)")
    _list(parser, "--allowed-hosts", "further names of this machine in Host headers, by commas")
    add("--api-key-file", metavar="FILE", help="file with the key that requests must have")
    add("--served-model-name", metavar="NAME", help="the model's id in answers")
    add(
        "--generation-config",
        action="store_true",
        help="sample as the model's generation_config.json recommends, where no flag says how",
    )
    add(
        "--chat-template-args",
        default="{}",
        metavar="JSON",
        help='variables of the chat template, as {"enable_thinking": false}',
    )
    number = {"type": command.whole_number(1), "metavar": "N"}
    _add(parser, "--decode-concurrency", 8, "requests that decode at a time", **number)
    _add(parser, "--queue-size", 64, "requests that wait; more are refused", **number)
    _add(parser, "--max-tokens", 2048, "tokens of an answer that names no length", **number)
    _add(parser, "--max-tokens-limit", 32768, "tokens of any answer, at most", **number)
    _add(parser, "--max-body-bytes", 8 << 20, "bytes of a request, at most", **number)
    _add(parser, "--timeout", 1800, "seconds after which an answer ends where it is", **number)
    _add(parser, "--drain-seconds", 30, "seconds that answers get after Ctrl-C", **number)
    levels = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
    add("--log-level", default="INFO", choices=levels, help="what is logged (default: INFO)")
    add_setting_flag(parser, "prefill_step_size")
    add_sampling_flags(parser)
    return parser


def _add(
    parser: argparse.ArgumentParser, name: str, default: int, meaning: str, **more: Any
) -> None:
    parser.add_argument(name, default=default, help=f"{meaning} (default: {default})", **more)


def _list(parser: argparse.ArgumentParser, name: str, meaning: str) -> None:
    parser.add_argument(name, default=[], metavar="LIST", type=_listed, help=meaning)


def _listed(text: str) -> list[str]:
    return [each.strip().rstrip("/") for each in text.split(",") if each.strip()]


def _api_key(args: argparse.Namespace) -> str | None:
    """The key of the file; whoever listens to other machines must have one."""
    if "*" in args.allowed_origins:
        raise InputError("--allowed-origins", "*", "origins by name, as http://localhost:3000")
    if args.api_key_file is not None:
        key = read_text(Path(args.api_key_file), "a key").strip()
        if not key or not key.isprintable() or " " in key:
            raise InputError(args.api_key_file, "no key", "one line with the key")
        return key
    if not _is_loopback(args.host):
        found = f"{args.host}, which other machines reach"
        raise InputError("--host", found, "a loopback address, or --api-key-file")
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _object(text: str) -> dict[str, Any]:
    found = read_json_argument("--chat-template-args", text)
    if not isinstance(found, dict):
        raise InputError("--chat-template-args", text, "a JSON object")
    return found


def _not_named(defaults: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The defaults whose settings are as they are without flags."""
    own = Request().sampling
    return {name: v for name, v in defaults.items() if settings[name] == getattr(own, name)}


if __name__ == "__main__":
    command.run(main)
