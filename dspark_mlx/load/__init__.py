"""Loads a target and its drafter into a Decoder.

Only this package chooses concrete classes and looks up the drafter of a target.
"""

from .load import add_drafter, load, load_unpaired
from .target import open_target

__all__ = ["add_drafter", "load", "load_unpaired", "open_target"]
