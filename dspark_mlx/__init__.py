"""DSpark speculative decoding for MLX: a small drafter makes a large model decode faster."""

from pathlib import Path as _Path

from .decoder import Decoder
from .errors import InputError
from .load import load
from .system import process  # noqa: F401 - before the imports that take seconds
from .system.installation import check_installation as _check_installation
from .types import Chunk, Round, Statistics
from .version import __version__

__all__ = ["Chunk", "Decoder", "InputError", "Round", "Statistics", "__version__", "load"]

_check_installation(_Path(__file__).parent)
