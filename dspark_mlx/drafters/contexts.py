"""What all drafters do alike: contexts of requests, calibrations, the size of their vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import mlx.core as mx

from ..calibration.by_temperature import Calibrations
from ..calibration.sts import identity
from ..checkpoint.base_config import CanonicalConfig
from .base import DrafterContext, SharedParts

# Forwards whose features wait while a request decodes plainly: each has arrays of its own, and MLX
# has a limited number of buffers on Metal.
_MAX_PENDING = 256

Config = TypeVar("Config", bound=CanonicalConfig)


class RequestContexts(Generic[Config]):
    """The part of a drafter that does not depend on its network, see `base.Drafter`.

    Args:
        config: the canonical configuration.
        shared: see `SharedParts`.

    Attributes:
        CONTEXT: class of its contexts.
    """

    CONTEXT: ClassVar[type[DrafterContext]] = DrafterContext

    def __init__(self, config: Config, shared: SharedParts) -> None:
        self._config = config
        self._embed = shared.embed
        self._output = shared.output
        self.calibrations = shared.calibrations or Calibrations({0.0: identity(config.gamma)})

    def _new_caches(self) -> Sequence[Any]:
        """Empty caches of one request, one per layer."""
        raise NotImplementedError

    @property
    def config(self) -> Config:
        """See `Drafter.config`."""
        return self._config

    @property
    def vocabulary_size(self) -> int:
        """See `Drafter.vocabulary_size`."""
        return self._output.size or self.config.output_size

    def new_context(self, prompt: Iterable[int] = (), temperature: float = 0.0) -> DrafterContext:
        """See `Drafter.new_context`."""
        temperatures = mx.array(self.calibrations.at(temperature).temperatures)
        return self.CONTEXT(self._new_caches(), temperatures, self._output.vocabulary(prompt))

    def extend(
        self,
        context: DrafterContext,
        taps: Sequence[mx.array],
        tokens: mx.array,
        rows: int | None = None,
    ) -> None:
        """See `Drafter.extend`."""
        context.add(taps, tokens, rows)
        if len(context.pending) > _MAX_PENDING:
            self.flush(context)
            # The next round may be computed by another thread.
            mx.async_eval(context.arrays())

    def flush(self, context: DrafterContext) -> None:
        """See `Drafter.flush`."""
        raise NotImplementedError
