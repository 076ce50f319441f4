"""Training forwards by drafting method.

To make a method trainable, add its forward here, and to `designs.DESIGNS` how a new drafter of
it looks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...drafters.base import Embed
from ...drafters.dflash2.config import DFlash2Config
from ...drafters.dspark.config import DSparkConfig
from ...drafters.eagle3.config import Eagle3Config
from ...drafters.mtp.config import MTPConfig
from .chain import Eagle3Forward, MTPForward
from .forward import TrainingForward
from .parallel import DFlash2Forward, DSparkForward

FORWARDS: dict[str, Callable[[Any, Embed, bool], TrainingForward]] = {
    DSparkConfig.METHOD: DSparkForward,
    DFlash2Config.METHOD: DFlash2Forward,
    Eagle3Config.METHOD: Eagle3Forward,
    MTPConfig.METHOD: MTPForward,
}
"""Each is called with a configuration, the embedding, and whether to save memory by computing
layers again in the backward pass."""
