"""The decoder: what `load` returns and applications call."""

from .decoder import Decoder
from .target_text import Messages, Prompt

__all__ = ["Decoder", "Messages", "Prompt"]
