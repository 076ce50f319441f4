"""Several conversations at once in asyncio: each is streamed, and one is cancelled.

Run it with `python examples/chats.py`. The event loop stays free: the decoder has a thread of its
own, which runs the conversations' rounds in turns.
"""

from __future__ import annotations

import asyncio
from typing import Any

import dspark_mlx

QUESTIONS = {
    "sea": ["Write one sentence about the sea.", "Say it shorter."],
    "code": ["Write a Python function that adds two numbers.", "Add a docstring."],
}


async def converse(decoder: dspark_mlx.Decoder, name: str, questions: list[str]) -> None:
    """One conversation; what comes is printed as soon as a line is whole."""
    messages: list[dict[str, Any]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        answer, line = "", ""
        async for chunk in decoder.submit(messages, max_tokens=96):
            answer, line = answer + chunk.content, line + chunk.content
            if "\n" in line:
                whole, line = line.rsplit("\n", 1)
                print(f"{name}: {whole}")
        print(f"{name}: {line}  [{chunk.statistics.accepted_length:.1f} tokens a round]")
        messages.append({"role": "assistant", "content": answer})


async def give_up(decoder: dspark_mlx.Decoder) -> None:
    """A request that is cancelled; what was made until then can still be read."""
    prompt = [{"role": "user", "content": "Count to a thousand."}]
    request = decoder.submit(prompt, max_tokens=1000)
    await asyncio.sleep(3)
    request.cancel()
    answer = await request.answer()
    print(f"cancelled after {len(answer.tokens)} tokens ({answer.finish_reason})")


async def main() -> None:
    """All of them beside each other."""
    with dspark_mlx.load() as decoder:
        chats = [converse(decoder, name, asked) for name, asked in QUESTIONS.items()]
        await asyncio.gather(*chats, give_up(decoder))


if __name__ == "__main__":
    asyncio.run(main())
