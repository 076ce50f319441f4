"""DSpark speculative decoding for MLX: a small drafter makes a large model decode faster.

    import dspark_mlx

    decoder = dspark_mlx.load("path/to/target", "path/to/drafter")  # load(): the built-in pair
    for chunk in decoder.stream([{"role": "user", "content": "Hello"}], max_tokens=64):
        print(chunk.text, end="", flush=True)

`load` gives a `Decoder`, and `add_drafter` a second one with another drafter on the same target.
`Decoder.stream` yields text as `Chunk`s, which carry the totals so far as `Statistics`;
`Decoder.rounds` yields token ids as `Round`s. `Decoder.submit` queues a request beside others, at
most as many as `Limits` says, and gives a `RequestHandle`, whose result is an `Answer`; a
`ToolCall` is a function that the target wants called. What cannot be used raises `InputError`,
which names the place, what was found and what was expected; `MemoryLimitError` is one for a request
that needs more memory than there is; `BusyError` says that the queue is full, `ClosedError` that
the decoder was closed.
"""

from pathlib import Path as _Path

# Before the imports that take seconds: a command answers Ctrl-C from here on.
from .system import process as _process  # noqa: F401

# isort: split
from .decoder import Decoder
from .errors import BusyError, ClosedError, InputError, MemoryLimitError
from .load import add_drafter, load
from .serving.handle import Answer, RequestHandle
from .serving.service import Limits
from .system.installation import check_installation as _check_installation
from .types import Chunk, Round, Statistics, ToolCall
from .version import __version__

__all__ = [
    "Answer",
    "BusyError",
    "Chunk",
    "ClosedError",
    "Decoder",
    "InputError",
    "Limits",
    "MemoryLimitError",
    "RequestHandle",
    "Round",
    "Statistics",
    "ToolCall",
    "__version__",
    "add_drafter",
    "load",
]

_check_installation(_Path(__file__).parent)
