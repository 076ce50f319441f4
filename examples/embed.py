"""An agent that embeds the decoder: the model calls a tool, and its result ends in the answer.

Run it with `python examples/embed.py "What is 17 * 23?"`; it needs the extra `grammar`. The
built-in model is small, so a JSON schema keeps its call to one that the tool takes. Any other
target works the same, with load("path/to/target", "path/to/drafter").
"""

from __future__ import annotations

import json
import sys
from typing import Any

import dspark_mlx

SYSTEM = "Write the calculation that the user asks for as JSON."
EXAMPLES = {
    "What is 12 plus 30?": {"left": 12, "operator": "+", "right": 30},
    "How much is 7 times 8?": {"left": 7, "operator": "*", "right": 8},
    "What is 50 - 6?": {"left": 50, "operator": "-", "right": 6},
}
NUMBER = {"type": "integer", "minimum": 0, "maximum": 99999}
CALL = {
    "type": "object",
    "properties": {"left": NUMBER, "operator": {"enum": ["+", "-", "*"]}, "right": NUMBER},
    "required": ["left", "operator", "right"],
    "additionalProperties": False,
}


def calculate(left: int, operator: str, right: int) -> int:
    """The tool."""
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def tool_call(decoder: dspark_mlx.Decoder, question: str) -> dict[str, Any]:
    """What the model wants calculated: JSON that follows the schema, streamed as it comes."""
    messages = [{"role": "system", "content": SYSTEM}]
    for asked, call in EXAMPLES.items():
        messages += [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": json.dumps(call)},
        ]
    messages.append({"role": "user", "content": question})
    text = ""
    schema = decoder.json_schema(CALL)
    for chunk in decoder.stream(messages, max_tokens=64, logits_processors=(schema,)):
        print(chunk.text, end="", flush=True)
        text += chunk.text
    print(f"  [{chunk.statistics.accepted_length:.1f} tokens a round]")
    call = json.loads(text)
    assert isinstance(call, dict)
    return call


def main() -> None:
    """Ask, call the tool, and say its result."""
    question = " ".join(sys.argv[1:]) or "What is 17 * 23?"
    decoder = dspark_mlx.load()
    call = tool_call(decoder, question)
    print(f"{question} {call['left']} {call['operator']} {call['right']} = {calculate(**call)}")


if __name__ == "__main__":
    main()
