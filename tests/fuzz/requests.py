"""Requests from Python: prompts and settings of odd types and sizes, drawn from a seed.

`main` is the command of these cases: it loads the pair in the current folder and streams.
"""

from __future__ import annotations

import sys
from random import Random
from typing import Any

import numpy as np

from dspark_mlx.engine.request import Settings
from dspark_mlx.load import load
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.terminal import command

from . import odd

_PROMPTS: tuple[Any, ...] = (
    *("", " ", "abc", "\ud800", "a" * 5000, b"abc", None, 7, True, {}, {"role": "user"}, [], ()),
    *([3, 4, 5], (3, 4), [3.0], [-1], [64], [2**63], [10**30], [True], [None], ["a"], [[3]]),
    *(range(3, 9), {3, 4}, np.array([3, 4]), np.array([[3, 4]]), np.array([3.5]), [np.int64(3)]),
    *([{}], [{"role": "user"}], [{"content": "a"}], [{"role": None, "content": "a"}], [None, {}]),
    [{"role": "user", "content": None}],
    [{"role": "user", "content": 3}],
    [{"role": "user", "content": ["a", {"type": "text", "text": "b"}]}],
    [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
    [{"role": "user", "content": "\ud800"}],
    [{"role": "user", "content": "abc"}, "abc"],
    [{"role": "assistant", "content": "", "tool_calls": [{"function": None}]}],
    [{1: 2}],
)
_NAMES = (*Settings.__annotations__, "max_tokens", "stop", "max_token", "scheduler")
_VALUES: tuple[Any, ...] = (
    *(np.float32(0.7), np.int64(3), np.array(0.5), np.array([1, 2]), np.nan, np.bool_(True)),
    *(b"", object, {3}, {3: 1.5}, {"3": 1.0}, {3: None}, {3: np.nan}, {-1: 1.0}, {2**70: 1.0}),
    *({3.5: 1.0}, [3, 3], (-1,), [64], ["~"], ("a", ""), ("\ud800",), [len], [None], 1j, 10**400),
)


def draw(rng: Random) -> tuple[Any, dict[str, Any]]:
    """A prompt and its settings, of which most are what no request can have."""
    settings: dict[str, Any] = {"max_tokens": 4}
    if rng.random() < 0.3:
        settings |= {"temperature": 0.8, "seed": 1}
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        name = rng.choice(_NAMES)
        settings[name] = _setting(rng, name)
    return rng.choice(_PROMPTS) if rng.random() < 0.5 else [3, 4, 5], settings


def _setting(rng: Random, name: str) -> Any:
    if rng.random() < 0.3:
        return rng.choice(_VALUES)
    if rng.random() < 0.5:
        return odd.near(rng, getattr(Sampling(), name, 3))
    value = odd.value(rng)
    return str(value) if isinstance(value, odd.Raw) else value


def main(argv: list[str] | None) -> int:
    """Stream the request of the seed that is the first argument."""
    seed = (argv or sys.argv[1:])[0]
    plain = ("abc", {"max_tokens": 4})
    prompt, settings = plain if seed == "undamaged" else draw(Random(seed))
    for chunk in load("target", "drafter").stream(prompt, **settings):
        assert chunk.token >= 0
    return 0


if __name__ == "__main__":
    command.run(main)
