"""A target and its drafter that were loaded, and decoders of them under other schedulers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Self

from ..engine.state import Engine, make_engine
from ..errors import InputError
from ..numbers import shown
from ..reuse.kept import KeptPrompts
from ..schedulers import Scheduler
from ..schedulers.full import FullScheduler
from ..schedulers.make import check_scheduler, make_scheduler, needs_profile
from ..schedulers.speed_profile import SpeedProfile
from .loaded_target import LoadedTarget
from .target_text import TargetText


class LoadedPair(LoadedTarget):
    """The part of a decoder that no request changes.

    Args:
        engine: target, drafter and scheduler.
        drafter_folder: the drafter's canonical folder; None without a drafter.
        text, precision, adapter: see `LoadedTarget`.
    """

    def __init__(
        self,
        engine: Engine,
        drafter_folder: Path | None,
        text: TargetText,
        precision: str,
        adapter: Path | None,
    ) -> None:
        super().__init__(text, precision, adapter)
        self._engine = engine
        self._drafter_folder = drafter_folder

    @property
    def engine(self) -> Engine:
        """Target, drafter and scheduler."""
        return self._engine

    @property
    def exact(self) -> bool:
        """Whether greedy output has the bits of plain decoding, which `load` has been asked for."""
        return self._engine.target.exact

    @property
    def kept_prompts(self) -> KeptPrompts | None:
        """What is kept of earlier requests' prompts and answers; None where nothing is."""
        return self._engine.kept

    @property
    def drafter_folder(self) -> Path | None:
        """The folder of the drafter in canonical form; None without a drafter."""
        return self._drafter_folder

    def plain(self) -> Self:
        """A decoder of the same target without the drafter; it runs the same loop."""
        kept = self._engine.kept and self._engine.kept.fresh()
        engine = replace(self._engine, drafter=None, scheduler=FullScheduler(), kept=kept)
        return self.with_engine(engine, None)

    def with_scheduler(
        self, scheduler: str | Scheduler, profile: SpeedProfile | None = None
    ) -> Self:
        """A decoder of the same pair under another scheduler; nothing is measured.

        Args:
            scheduler: a name as `load` takes it, or an object with the methods of
                `schedulers.Scheduler`.
            profile: speed profile of the pair on this device. With it a verify forward is padded to
                a wider one where that is cheaper. None for the one that this decoder has, if any.

        Raises:
            InputError: `scheduler` or `profile` is of another type; the scheduler needs a profile
                and there is none; or it reads confidences and the drafter has no confidence head.
        """
        check_scheduler(scheduler)
        if not isinstance(profile, SpeedProfile | None):
            expected = "a SpeedProfile, as schedulers.speed_profile.read_profile returns"
            raise InputError("profile", shown(profile), expected)
        profile, drafter = profile or self._engine.profile, self._engine.drafter
        if isinstance(scheduler, str):
            if drafter is None:  # there is nothing to schedule, as for `load`
                return self
            if profile is None and needs_profile(scheduler):
                where, found = f"scheduler {scheduler}", "no speed profile in this decoder"
                hint = "load and add_drafter measure one when they are asked for this scheduler."
                raise InputError(where, found, "profile=, a speed profile of this pair", hint)
            has_confidence = drafter.config.has_confidence
            scheduler = make_scheduler(scheduler, profile, drafter.calibrations, has_confidence)
        engine = make_engine(self._engine.target, drafter, scheduler, profile)
        engine = replace(engine, kept=self._engine.kept)
        return self.with_engine(engine, self._drafter_folder)

    def with_engine(self, engine: Engine, drafter_folder: Path | None) -> Self:
        """A decoder of the same target with another engine; folder and tokenizer are shared."""
        raise NotImplementedError
