"""An agent with tools: the target's calls are run, and their results sent back, until it answers.

Run it with `python examples/tools.py TARGET "What time is it in Paris and in Tokyo?"`, with a
target that was made for tools, as mlx-community/Qwen3-4B-4bit is; the built-in one was not.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import dspark_mlx

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "local_time",
            "description": "The time of day in a time zone",
            "parameters": {
                "type": "object",
                "properties": {"zone": {"type": "string", "description": "as Europe/Paris"}},
                "required": ["zone"],
            },
        },
    }
]
MOST_TURNS = 5


def local_time(zone: str) -> str:
    """The tool."""
    return datetime.now(ZoneInfo(zone)).strftime("%H:%M")


def run(call: dspark_mlx.ToolCall) -> str:
    """A call's result, or what is wrong with the call, for the target to read."""
    if call.name != "local_time":
        return f"error: there is no tool {call.name}"
    try:
        return local_time(**call.arguments)
    except (TypeError, KeyError, ValueError) as error:
        return f"error: {error}"


def turn(answer: dspark_mlx.Answer) -> list[dict[str, Any]]:
    """The messages that an answer with calls adds to the conversation."""
    calls = [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in answer.tool_calls
    ]
    said = {"role": "assistant", "content": answer.content, "tool_calls": calls}
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": run(call)}
        for call in answer.tool_calls
    ]
    return [said, *results]


def main() -> None:
    """Ask, and run tools until there is an answer."""
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/tools.py TARGET [QUESTION]")
    target, question = sys.argv[1], " ".join(sys.argv[2:]) or "What time is it in Paris?"
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    with dspark_mlx.load(target) as decoder:
        for _ in range(MOST_TURNS):
            request = decoder.submit(messages, max_tokens=512, tools=TOOLS, thinking=False)
            answer = request.result()
            if answer.finish_reason != "tool_calls":
                print(answer.content)
                return
            for call in answer.tool_calls:
                print(f"{call.name}({json.dumps(call.arguments)})")
            messages += turn(answer)
    print("no answer within the turns")


if __name__ == "__main__":
    main()
