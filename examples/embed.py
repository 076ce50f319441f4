"""An agent loop that embeds the decoder: the model may call tools until it answers.

Run it with `python examples/embed.py "What is 17 * 23?"`. The built-in model is small; any other
target works the same, with load("path/to/target", "path/to/drafter").
"""

from __future__ import annotations

import re
import sys

import dspark_mlx

SYSTEM = (
    "You are a careful assistant. To compute something, write one line CALC: followed by the "
    "arithmetic expression and stop. You are then told its value. Answer in one sentence."
)
MAX_STEPS = 3


def calculate(expression: str) -> str:
    """Evaluate arithmetic on two integers; anything else is refused in words the model can read."""
    match = re.fullmatch(r"\s*(-?\d+)\s*([-+*/])\s*(-?\d+)\s*", expression)
    if not match:
        return "not an expression of two integers"
    left, operator, right = int(match[1]), match[2], int(match[3])
    if operator == "/" and right == 0:
        return "undefined"
    results = {"+": left + right, "-": left - right, "*": left * right}
    return str(results[operator] if operator in results else left / right)


def main() -> None:
    """Stream the model's turns and feed tool results back."""
    question = " ".join(sys.argv[1:]) or "What is 17 * 23?"
    decoder = dspark_mlx.load()
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": question},
    ]
    for _ in range(MAX_STEPS):
        answer = ""
        for chunk in decoder.stream(messages, max_tokens=128):
            print(chunk.text, end="", flush=True)
            answer += chunk.text
        print(f"\n  [{chunk.generation_tps:.0f} tokens/s]")
        call = re.search(r"CALC:(.*)", answer)
        if not call:
            break
        result = calculate(call[1])
        print(f"  [tool: {result}]")
        messages += [
            {"role": "assistant", "content": answer},
            {"role": "user", "content": f"The value is {result}."},
        ]


if __name__ == "__main__":
    main()
