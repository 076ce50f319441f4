"""A drafter that knows the text and is wrong as often as a test wants it to be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import mlx.core as mx
import numpy as np

from dspark_mlx.types import Draft


@dataclass
class ScriptedContext:
    """Features and tokens of the committed positions, as the loop gave them."""

    taps: list[tuple[Sequence[mx.array], int]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    bytes_per_token = 0

    def bytes_at(self, tokens: int, rows: int) -> int:
        return 0

    def arrays(self) -> list[mx.array]:
        return [tap for taps, _ in self.taps for tap in taps]

    def features(self) -> list[mx.array]:
        """One `[rows, hidden]` a tap, of all committed positions."""
        rows = [[tap[:count] for tap in taps] for taps, count in self.taps]
        return [mx.concatenate(list(parts)) for parts in zip(*rows, strict=True)]

    def commit(self, tokens: Iterable[int]) -> None:
        pass


class ScriptedDrafter:
    """Proposes the tokens of `text` from where a request stands, some of them changed.

    Args:
        text: the prompt and what plain decoding makes of it.
        vocabulary: tokens of the target.
        wrong: the chance that a token is changed.
        gamma: tokens of a block.
        seed: of the changes.

    Attributes:
        context: of the newest request.
    """

    def __init__(
        self, text: Sequence[int], vocabulary: int, wrong: float, gamma: int = 4, seed: int = 0
    ) -> None:
        self.config = SimpleNamespace(gamma=gamma, has_confidence=False)
        self.calibrations = None
        self.vocabulary_size = vocabulary
        self.context = ScriptedContext()
        self._text = [*text, *[0] * gamma]
        self._wrong = wrong
        self._rng = np.random.default_rng(seed)

    def new_context(self, prompt: Iterable[int] = (), temperature: float = 0.0) -> ScriptedContext:
        self.context = ScriptedContext()
        return self.context

    def extend(self, context, taps, tokens, rows=None) -> None:
        rows = tokens.size if rows is None else rows
        # Cut only when somebody looks: what waits was evaluated with its round.
        context.taps.append((tuple(taps), rows))
        context.tokens += tokens[:rows].tolist()

    def flush(self, context) -> None:
        pass

    def draft(self, context, anchor, pick) -> Draft:
        start, gamma = len(context.tokens) + 1, self.config.gamma
        block = np.array((self._text[start : start + gamma] + [0] * gamma)[:gamma], dtype=np.int32)
        changed = self._rng.random(gamma) < self._wrong
        other = (block + self._rng.integers(1, self.vocabulary_size, gamma)) % self.vocabulary_size
        tokens = mx.array(np.where(changed, other, block).astype(np.int32))
        logits = mx.zeros((gamma, self.vocabulary_size))
        return Draft(tokens=tokens, base_logits=logits, logits=logits, columns=tokens)
