"""DSpark speculative decoding for MLX: a small drafter makes a large model decode faster.

    import dspark_mlx

    decoder = dspark_mlx.load("path/to/target", "path/to/drafter")  # load(): the built-in pair
    for chunk in decoder.stream([{"role": "user", "content": "Hello"}], max_tokens=64):
        print(chunk.text, end="", flush=True)

`load` gives a `Decoder`, and `add_drafter` a second one with another drafter on the same target.
`Decoder.stream` yields text as `Chunk`s, which carry the totals so far as `Statistics`;
`Decoder.rounds` yields token ids as `Round`s. What cannot be used raises `InputError`, which names
the place, what was found and what was expected.
"""

from pathlib import Path as _Path

# Before the imports that take seconds: a command answers Ctrl-C from here on.
from .system import process as _process  # noqa: F401

# isort: split
from .decoder import Decoder
from .errors import InputError
from .load import add_drafter, load
from .system.installation import check_installation as _check_installation
from .types import Chunk, Round, Statistics
from .version import __version__

__all__ = [
    "Chunk",
    "Decoder",
    "InputError",
    "Round",
    "Statistics",
    "__version__",
    "add_drafter",
    "load",
]

_check_installation(_Path(__file__).parent)
