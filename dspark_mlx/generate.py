"""python -m dspark_mlx.generate: prints the text that a target writes after a prompt."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .benchmark.comparison import compare
from .decoder import Decoder, Prompt
from .engine.stream import TextStream, stream
from .errors import InputError
from .system.process import program
from .terminal import command, flags
from .terminal.draft_painter import EXPLANATION, DraftPainter, explained, statistics_line
from .terminal.image_flags import add_image_flag, read_images, user_message
from .terminal.sampling_flags import (
    add_setting_flag,
    read_json_argument,
)
from .text.detokenizer import TokenIds
from .types import Chunk, Round

# Flags that make no sense for a prompt of token ids.
_OF_TEXT = ("image", "stop", "system_prompt", "json_schema", "prefill_response")
_CUT = (
    "--max-tokens ended the text, whose JSON may be incomplete; give the schema's objects "
    '"additionalProperties": false and its strings and arrays bounds, or the text more tokens'
)


def main(argv: list[str] | None) -> int:
    """Run the command: generate and print; returns the exit status."""
    args = _parser().parse_args(argv)
    prompt_text = _read_prompt(args.prompt) if args.prompt_ids is None else ""
    settings = flags.request_settings(args, logprobs=args.logprobs)
    template = flags.template_settings(args, prefill_response=args.prefill_response)
    _check(args)
    images = read_images(args.image)
    schema = None
    if args.json_schema is not None:
        schema = read_json_argument("--json-schema", args.json_schema)
    with flags.load_decoder(args) as decoder:
        settings = flags.with_loaded(settings, decoder, args)
        ids: list[int] = args.prompt_ids or []
        prompt: Prompt = ids
        if not ids:
            prompt = _prompt(decoder, prompt_text, images, args)
            if images:
                settings |= template
            else:
                prompt = ids = decoder.encode(prompt, **template)
        if schema is not None:
            settings["logits_processors"] = (decoder.json_schema(schema),)
        return _print_texts(decoder, prompt, ids, settings, args)


def _print_texts(
    decoder: Decoder,
    prompt: Prompt,
    ids: list[int],
    settings: dict[str, Any],
    args: argparse.Namespace,
) -> int:
    """Generate and print as many texts as are asked for; returns the exit status.

    Args:
        decoder: the decoder.
        prompt: the prompt, or its token ids.
        ids: its token ids; none where it has images.
        settings: of each text.
        args: parsed.
    """
    for sample in range(args.samples):
        one = {**settings, "sample": sample}
        if args.samples > 1 and not args.json:
            print(f"--- sample {sample + 1} of {args.samples} ---", flush=True)
        output = _generate(decoder, prompt, one, args)
        if args.json_schema is not None and output.is_cut:
            warnings.warn(_CUT, stacklevel=2)
        if args.json:
            command.print_json({"sample": sample, **_report(output, args.explain)})
        elif args.stats and output.chunks:
            line = statistics_line(output.chunks[-1].statistics, decoder.exact)
            print(line, file=sys.stderr)
        if args.explain and not args.json:
            lines = [explained(done, i) for i, done in enumerate(output.rounds) if not done.prefill]
            legend = [] if sample else [EXPLANATION]
            print("\n".join([*legend, *lines]), file=sys.stderr)
        if output.interrupted:
            return command.INTERRUPTED
        if args.compare:
            compared = compare(decoder, ids, output.rounds, one)
            print(compared, file=sys.stderr)
    return 0


@dataclass
class GeneratedText:
    """One generated text: its chunks, its rounds, and whether Ctrl-C ended it."""

    chunks: list[Chunk] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    interrupted: bool = False

    @property
    def is_cut(self) -> bool:
        """Whether --max-tokens ended it."""
        return bool(self.chunks) and self.chunks[-1].finish_reason == "length"


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=program("generate"),
        description="Generate text with DSpark speculative decoding.",
    )
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", "-p", help="the user's message; - reads standard input")
    prompt.add_argument(
        "--prompt-ids",
        type=int,
        nargs="+",
        metavar="ID",
        help="token ids in place of text, and ids are printed: needs no tokenizer",
    )
    add_image_flag(parser, "the message")
    flags.add_model_flags(parser)
    flags.add_prompt_cache_flags(parser)
    flags.add_request_flags(parser)
    add = parser.add_argument
    add("--ignore-chat-template", action="store_true", help="encode the prompt as it is")
    add(
        "--samples",
        type=int,
        default=1,
        help="number of independent texts, each behind a line with its number (default: 1)",
    )
    add("--json-schema", metavar="JSON", help="JSON schema that the text follows, or a file of it")
    add_setting_flag(parser, "prefill_response")
    add_setting_flag(parser, "logprobs")
    add("--show-drafts", action="store_true", help="colour accepted drafts, a colour a round")
    add("--stats", action="store_true", help="print a line of statistics at the end")
    add("--explain", action="store_true", help="print what each round decided, and why, at the end")
    add("--compare", action="store_true", help="decode plainly too and compare speed and tokens")
    add("--json", action="store_true", help="print one JSON object a sample instead of streaming")
    return parser


def _check(args: argparse.Namespace) -> None:
    if args.prompt_ids is not None:
        for name in _OF_TEXT:
            if getattr(args, name):
                flag = f"--{name.replace('_', '-')}"
                raise InputError("--prompt-ids", f"{flag} beside it", f"no {flag}, which is text")
    if args.samples < 1 or (args.samples > 1 and args.temp == 0):
        expected = "1 or more, and 1 at --temp 0: all are the same"
        hint = "Sample them, with --temp 0.7 for example." if args.samples > 1 else ""
        raise InputError("--samples", args.samples, expected, hint)
    if args.logprobs is not None and not args.json:
        raise InputError("--logprobs", "no --json", "--json, which prints them")
    for name in ("compare", "ignore_chat_template"):
        if args.image and getattr(args, name):
            flag = f"--{name.replace('_', '-')}"
            raise InputError("--image", f"{flag} beside it", f"no {flag}, which knows no images")


def _read_prompt(argument: str) -> str:
    text = command.read_input() if argument == "-" else argument
    if not text.strip():
        raise InputError("--prompt", "no text", "a prompt")
    return text


def _prompt(decoder: Decoder, text: str, images: list[Any], args: argparse.Namespace) -> Prompt:
    if args.ignore_chat_template or not decoder.tokenizer.has_chat_template:
        if args.system_prompt:
            found = "no chat template to put it in"
            raise InputError("--system-prompt", found, "a target's chat template")
        return text
    system = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    return [*system, user_message(text, images)]


@command.warnings_behind()
def _generate(
    decoder: Decoder, prompt: Prompt, settings: dict[str, Any], args: argparse.Namespace
) -> GeneratedText:
    """Stream one text to the terminal; Ctrl-C ends the text but not the statistics."""
    painter = DraftPainter(sys.stdout.isatty()) if args.show_drafts else None
    output = GeneratedText()
    if args.prompt_ids is None:
        chunks = decoder.stream(
            prompt, progress=flags.PrefillBar(), on_round=output.rounds.append, **settings
        )
    else:
        chunks = _chunks_of_ids(decoder, args.prompt_ids, settings, output)
    try:
        for chunk in chunks:
            output.chunks.append(chunk)
            if not args.json:
                shown = painter.paint(chunk) if painter else chunk.text
                print(shown, end="", flush=True)
    except KeyboardInterrupt:
        output.interrupted = True
    except InputError:
        # The error message begins a line of its own.
        print(end="" if args.json or not output.chunks else "\n", flush=True)
        raise
    if not args.json:
        print(painter.close() if painter else "", flush=True)
    return output


def _chunks_of_ids(
    decoder: Decoder, ids: list[int], settings: dict[str, Any], output: GeneratedText
) -> Iterator[Chunk]:
    """The chunks of an answer to token ids, whose text is token ids."""
    others = {name: value for name, value in settings.items() if name != "stop"}
    ends = others.setdefault("stop_tokens", decoder.stop_tokens)
    rounds = decoder.rounds(ids, progress=flags.PrefillBar(), **others)
    longest = settings["max_tokens"]
    if decoder.max_length is not None:
        longest = min(longest, decoder.max_length - len(ids))
    text = TextStream(
        TokenIds(), prompt_tokens=len(ids), max_tokens=longest, stop_tokens=ends, stop=()
    )
    return stream(rounds, text, output.rounds.append)


def _report(output: GeneratedText, explains: bool) -> dict[str, Any]:
    tokens = [token for done in output.rounds for token in done.tokens]
    text = "".join(chunk.text for chunk in output.chunks)
    report: dict[str, Any] = {"text": text, "tokens": tokens, "finish_reason": "interrupted"}
    if output.chunks:
        chunk = output.chunks[-1]
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
        report["rollback_seconds"] = statistics.rollback_seconds
        report["target_bytes_per_token"] = statistics.target_bytes_per_token
        report["drafter_bytes_per_token"] = statistics.drafter_bytes_per_token
        if chunk.logprobs:
            each = [chunk.logprobs for chunk in output.chunks if chunk.logprobs]
            report["logprobs"] = [dataclasses.asdict(one) for one in each]
    report["rounds"] = [_round_report(done, explains) for done in output.rounds]
    return report


def _round_report(done: Round, explains: bool) -> dict[str, Any]:
    report: dict[str, Any] = {
        "drafted": done.drafted,
        "scheduled": done.scheduled,
        "accepted": done.accepted,
        "tokens": list(done.tokens),
    }
    if explains:
        decision = dataclasses.asdict(done.decision) if done.decision else None
        report |= {"proposer": done.proposer, "seconds": done.seconds, "decision": decision}
    return report


if __name__ == "__main__":
    command.run(main)
