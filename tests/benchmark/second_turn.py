"""Time to the first token of a second turn, cold, kept and after a restart.

`python tests/benchmark/second_turn.py`: a conversation of about 2,000 tokens, then a question.
Cold, a decoder that keeps nothing reads all of it. Warm, the first turn's caches are kept in
memory. Restarted, a new decoder reads them from disk; opening the store is timed apart. Greedy;
the tokens and the accepted lengths of all three are compared.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from time import perf_counter
from typing import Any

import dspark_mlx
from dspark_mlx.pairs import builtin
from dspark_mlx.system.files import DATA, read_json_lines

QUESTION = "Which of these would you do first? Answer in two sentences."


def conversation(decoder: dspark_mlx.Decoder, tokens: int) -> list[dict[str, str]]:
    """One message of about so many tokens, made of prompts that ship with the package."""
    lines = read_json_lines(DATA / "bench_prompts.jsonl", "JSON lines", "prompt")
    text = "\n\n".join(line["prompt"] for _, line in lines)
    kept = (decoder.encode(text) * tokens)[:tokens]
    return [{"role": "user", "content": decoder.tokenizer.hugging_face.decode(kept)}]


def timed(
    decoder: dspark_mlx.Decoder, messages: list[dict[str, str]], tokens: int
) -> dict[str, Any]:
    """Seconds to the first token, and what the whole answer was."""
    started, first, chunk, ids = perf_counter(), 0.0, None, []
    for chunk in decoder.stream(messages, tokens):
        first = first or perf_counter() - started
        ids.append(chunk.token)
    assert chunk is not None
    s = chunk.statistics
    return {
        "first_token_seconds": first,
        "prompt_tokens": s.prompt_tokens,
        "cached_tokens": s.cached_tokens,
        "accepted_length": s.accepted_length,
        "tokens": ids,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the built-in pair")
    parser.add_argument("--drafter")
    parser.add_argument("--tokens", type=int, default=2000, help="of the first turn")
    parser.add_argument("--answer", type=int, default=48)
    args = parser.parse_args()
    drafter = args.drafter or (builtin.DRAFTER if args.model is None else None)
    cold = dspark_mlx.load(args.model, drafter, "full", prompt_cache_bytes=0)
    with tempfile.TemporaryDirectory() as folder:
        pair = args.model, drafter, "full"
        warm = dspark_mlx.load(*pair, prompt_cache_dir=folder)
        messages = conversation(cold, args.tokens)
        answer = warm.generate(messages, args.answer)
        messages += [
            {"role": "assistant", "content": answer},
            {"role": "user", "content": QUESTION},
        ]
        warm.close()  # writes nothing more, and keeps in memory what it has
        cold.generate(messages[:1], 4)  # what is compiled once counts for nobody
        found = {"cold": timed(cold, messages, args.answer)}
        found["warm"] = timed(warm, messages, args.answer)
        started = perf_counter()
        restarted = dspark_mlx.load(*pair, prompt_cache_dir=folder)
        opened = perf_counter() - started
        found["restarted"] = timed(restarted, messages, args.answer)
        restarted.close()
    reference = found["cold"]
    for name, each in found.items():
        share = each["first_token_seconds"] / reference["first_token_seconds"]
        same = "equal" if each["tokens"] == reference["tokens"] else "differ"
        print(
            f"{name:>9}: first token after {each['first_token_seconds']:.3f} s "
            f"({share:.1%} of cold), {each['cached_tokens']} of {each['prompt_tokens']} prompt "
            f"tokens kept, accepted length {each['accepted_length']:.3f}, tokens {same}"
        )
    print(f"loading the pair with its store: {opened:.3f} s")
    print(json.dumps({**found, "load_seconds": opened}))


if __name__ == "__main__":
    main()
