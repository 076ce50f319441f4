"""Chooses the texts of every step, and the anchors of their blocks.

Both depend only on the seed and the step's number, so a run that was stopped goes on with the same
batches. Texts of similar length share a batch, and batches have few different shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ...errors import InputError
from ..data.corpus import Corpus
from .forward import TrainingBatch


@dataclass(frozen=True)
class BatchSettings:
    """How texts are put into batches.

    Attributes:
        tokens: most tokens of a batch, padding included; a longer text is a batch of its own.
        max_length: tokens of a text that are used; the rest is cut.
        anchors_every: tokens of the padded length for each anchor (DeepSpec: 8).
        bucket: lengths are padded to multiples of this number.
        seed: seed of the order of texts and of the anchors.
    """

    tokens: int = 8192
    max_length: int = 1024
    anchors_every: int = 8
    bucket: int = 128
    seed: int = 0

    def check(self) -> None:
        """Refuse settings outside their range.

        Raises:
            InputError: a number is below 1, or the seed is below 0.
        """
        for name in ("tokens", "max_length", "anchors_every", "bucket"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "1 or more")
        if self.seed < 0:
            raise InputError("seed", self.seed, "0 or more")


class Batches:
    """The batches of a corpus, one for each step.

    Args:
        corpus: the texts.
        chosen: numbers of the texts to use.
        gamma: slots of a block.
        settings: see `BatchSettings`.

    Attributes:
        per_epoch: number of batches in which every text appears; the last batch of a length is
            filled with texts of the same epoch.
        texts: number of texts that are used; those without an anchor are not.

    Raises:
        InputError: no text has two answer tokens in a row.
    """

    def __init__(
        self, corpus: Corpus, chosen: Sequence[int], gamma: int, settings: BatchSettings
    ) -> None:
        self._corpus = corpus
        self._gamma = gamma
        self._settings = settings
        buckets: dict[int, list[int]] = {}
        for number in chosen:
            answer = corpus[number].answer[: settings.max_length]
            if anchor_candidates(answer).size:
                padded = -(-len(answer) // settings.bucket) * settings.bucket
                buckets.setdefault(min(padded, settings.max_length), []).append(number)
        if not buckets:
            found = f"{len(chosen)} texts without two answer tokens in a row"
            raise InputError("conversations", found, "at least one to learn from")
        self._buckets = {length: np.array(buckets[length]) for length in sorted(buckets)}
        self.texts = sum(map(len, buckets.values()))
        self.per_epoch = sum(-(-len(m) // self._rows(k)) for k, m in self._buckets.items())
        self._order: tuple[int, list[tuple[int, np.ndarray]]] | None = None

    def __getitem__(self, step: int) -> TrainingBatch:
        """The batch of a step; steps are counted from 0 over all epochs."""
        epoch, place = divmod(step, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._epoch(epoch))
        length, members = self._order[1][place]
        generator = np.random.default_rng([self._settings.seed, 1, step])
        tokens = np.zeros((len(members), length), dtype=np.int32)
        count = max(1, length // self._settings.anchors_every)
        anchors = np.zeros((len(members), count), dtype=np.int32)
        supervised = np.zeros((len(members), count, self._gamma), dtype=bool)
        for row, number in enumerate(members):
            text = self._corpus[int(number)]
            tokens[row, : len(text.tokens)] = text.tokens[:length]
            answer = text.answer[:length]
            candidates = anchor_candidates(answer)
            drawn = generator.permutation(candidates)[:count]
            anchors[row, : len(drawn)] = np.sort(drawn)
            supervised[row, : len(drawn)] = supervised_slots(
                answer, anchors[row, : len(drawn)], self._gamma
            )
        return TrainingBatch(mx.array(tokens), mx.array(anchors), mx.array(supervised))

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """The padded length and the texts' numbers of every batch of an epoch, shuffled."""
        generator = np.random.default_rng([self._settings.seed, 0, epoch])
        batches = []
        for length, members in self._buckets.items():
            rows = self._rows(length)
            shuffled = generator.permutation(members)
            # The last batch is filled up with texts of this epoch, so that it has the same shape.
            filled = np.resize(shuffled, -(-len(members) // rows) * rows)
            batches += [(length, filled[i : i + rows]) for i in range(0, len(filled), rows)]
        return [batches[i] for i in generator.permutation(len(batches))]

    def _rows(self, length: int) -> int:
        return max(1, self._settings.tokens // length)


def anchor_candidates(answer: np.ndarray) -> np.ndarray:
    """Positions whose token and next token both belong to an answer (as in DeepSpec)."""
    return np.flatnonzero(answer[:-1] & answer[1:])


def supervised_slots(answer: np.ndarray, anchors: np.ndarray, gamma: int) -> np.ndarray:
    """A mask of the slots to learn from, bool `[n, gamma]`.

    It is True where the slot's token, and those of all slots before it, belong to an answer.

    Args:
        answer: True where a token belongs to an answer, bool `[length]`.
        anchors: positions of the anchors, `[n]`.
        gamma: slots of a block.
    """
    padded = np.concatenate([answer, np.zeros(gamma, dtype=bool)])
    return np.logical_and.accumulate(padded[anchors[:, None] + 1 + np.arange(gamma)], axis=1)


def split(count: int, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the texts to train on, and of those held out for evaluation.

    Args:
        count: number of all texts.
        held_out: number of texts to hold out.
        seed: seed of the random choice.
    """
    order = np.random.default_rng([seed, 2]).permutation(count).tolist()
    return sorted(order[held_out:]), sorted(order[:held_out])
