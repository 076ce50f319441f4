"""The pair that a speed profile is measured for: what to measure it on, and the profile's key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..checkpoint.fingerprint import fingerprint
from ..decoder import Decoder
from ..engine.state import Engine
from ..errors import InputError
from ..targets.deepseek_v4.machines import is_spread
from ..targets.given import network_digest
from ..text.prompt_files import SAMPLE, read_prompts
from ..text.tokenizer_files import has_tokenizer


@dataclass(frozen=True)
class Pair:
    """A target and a drafter that a profile is measured for.

    Attributes:
        engine: the engine of both; its scheduler is not used.
        target, drafter: the folders that they were loaded from; no drafter for a target that drafts
            by copies alone.
        precision: the precision that they were loaded with, see `load`.
        max_length: positions that the target was made for; None where it does not say.
        encode: text to the target's token ids; None without a tokenizer.
        adapter: folder of the target's adapter; None without one.
        given: whether the target was given as a network, so that `target` is no folder.
    """

    engine: Engine
    target: Path
    drafter: Path | None
    precision: str
    max_length: int | None = None
    encode: Callable[[str], list[int]] | None = None
    adapter: Path | None = None
    given: bool = False

    @classmethod
    def of(cls, decoder: Decoder, alone: bool = False) -> Pair:
        """The pair of a decoder.

        Args:
            decoder: target and drafter.
            alone: whether the target may be without a drafter, for copies.

        Raises:
            InputError: the decoder has no drafter, and `alone` is False.
        """
        target, drafter = decoder.target_folder, decoder.drafter_folder
        if not alone and (decoder.engine.drafter is None or drafter is None):
            raise InputError("speed profile", "no drafter", "a target with its drafter")
        encodes = decoder.is_given or has_tokenizer(target)
        return cls(
            decoder.engine,
            target,
            drafter,
            decoder.precision,
            decoder.max_length,
            decoder.encode if encodes else None,
            decoder.adapter_folder,
            decoder.is_given,
        )

    @property
    def name(self) -> str:
        """The names of both folders, for messages."""
        return f"{self.target.name} with {self.drafter.name if self.drafter else 'copies'}"

    @cached_property
    def text(self) -> list[int]:
        """Token ids of a text to measure on, of the prompts that ship with the package; none
        without a tokenizer that can be used."""
        if self.encode is None:
            return []
        try:
            return self.encode("\n\n".join(line.turns[0] for line in read_prompts(SAMPLE)))
        except InputError:
            # A request that needs the tokenizer says what is wrong with it; ids alone decode.
            return []

    def key(self) -> str:
        """Key of the pair's profile, see `fingerprint`; it is computed once."""
        return self._key

    @cached_property
    def _key(self) -> str:
        drafter = self.engine.drafter
        gamma, size = (drafter.config.gamma, drafter.vocabulary_size) if drafter else (0, 0)
        held = self.engine.target
        # On several machines a forward costs something else.
        own = self.given or is_spread(held.model)
        target = network_digest(held.model) if own else self.target
        # Verify forwards of an exact target cost something else, and compiled ones too.
        ways = {"exact": held.exact, "compiled": held.compiled is not None}
        settings = held.cache_settings.key() | {way: True for way, used in ways.items() if used}
        windows = drafter.config.attended if drafter else ()
        drafted = self.drafter, self.precision, gamma, size
        return fingerprint(target, *drafted, settings, self.adapter, windows)
