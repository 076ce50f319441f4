"""DSpark speculative decoding for MLX: a small drafter makes a large model decode faster."""

from . import process  # noqa: F401 - before the imports that take seconds
from .decoder import Decoder
from .errors import InputError
from .load import load
from .types import Chunk, Round, Statistics
from .version import __version__

__all__ = ["Chunk", "Decoder", "InputError", "Round", "Statistics", "__version__", "load"]
