"""Conversations written by the target itself: its answers, and where wanted the user turns too.

A drafter is to predict what the target says, so every answer it learns from is the target's own.
Shards depend on the plan, the seed and the shards before them alone: a killed run goes on with the
same content.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from ...checkpoint.fingerprint import weights_digest
from ...decoder import Decoder
from ...errors import InputError
from ...progress import ProgressCallback
from .batch_decode import Job, batch_decode
from .budget import Budget
from .conversation import OpenConversation
from .corpus import KEYS, Conversation
from .duplicates import Seen, near_keys
from .plan import DataPlan
from .store import Header, Store
from .templates import Template

_MIN_ANSWER = 16
_MAX_FRUITLESS = 3
_FIRST_WORDS = (2, 7)


def open_store(decoder: Decoder, plan: DataPlan, folder: Path) -> Store:
    """The store that this target and plan write into, begun or gone on with.

    Raises:
        InputError: the plan cannot be used, or the folder holds anything else.
    """
    plan.check()
    target = decoder.target_folder
    vocabulary = decoder.engine.target.vocab_size
    header = Header(vocabulary, target.name, weights_digest(target), plan.seed, plan.settings)
    return Store.obtain(folder, header)


def write_conversations(
    decoder: Decoder, plan: DataPlan, store: Store, progress: ProgressCallback | None = None
) -> None:
    """Write until the plan's budget is met, one shard after the other.

    Args:
        decoder: of the target; its drafter is not used.
        plan: what to write.
        store: to append to; see `open_store`.
        progress: called while decoding.

    Raises:
        InputError: the plan cannot be used, the target has no chat template, or it writes nothing
            that can be kept; or the disk is full. Shards written before are kept.
    """
    plan.check()
    writer = _Writer(decoder, plan, Template(decoder))
    seen, fruitless = Seen(store.keys()), 0
    budget = Budget(plan, store, progress)
    with decoder.engine.target.untapped():
        while fruitless < _MAX_FRUITLESS and (count := budget.to_begin()):
            written = writer.shard(store.shards, count, seen, budget)[: budget.to_keep()]
            store.append(written)
            for conversation in written:
                seen.add(conversation.keys)
            budget.begin_shard()
            fruitless = 0 if written else fruitless + 1
    if fruitless == _MAX_FRUITLESS or not store.conversations:
        found = f"nothing new in {fruitless} shards, {store.conversations} conversations"
        hint = "Give more prompts, or let the target write some itself."
        raise InputError(store.folder, found, "answers that are not there yet", hint)


class _Writer:
    """Writes shards: first user turns, then answers and further user turns by turns."""

    def __init__(self, decoder: Decoder, plan: DataPlan, template: Template) -> None:
        self._model = decoder.engine.target.model
        self._plan = plan
        self._template = template
        self._max_length = min(plan.max_length, decoder.max_length or plan.max_length)

    def shard(self, number: int, count: int, seen: Seen, budget: Budget) -> list[Conversation]:
        """The conversations of one shard that are not `seen`."""
        sequence = np.random.SeedSequence(self._plan.seed, spawn_key=(1, number))
        rng = np.random.default_rng(sequence)
        fresh = Seen(np.zeros((0, KEYS), dtype=np.uint64))
        given = min(count, round(self._plan.shard * (1 - self._plan.share)))
        talks = [self._talk(turns, rng) for turns in self._given(number, given)]
        for text in self._own_turns(count - given, rng):
            near = near_keys(text)
            if not seen.has(near) and fresh.add(near):
                talk = self._talk((text,), rng)
                talk.own, talk.near = self._plan.most_turns - 1, near
                talks.append(talk)
        while any(talk.open for talk in talks):
            self._answer([talk for talk in talks if talk.open], rng, budget)
            self._ask([talk for talk in talks if talk.open], rng)
        for talk in talks:
            talk.close()
        written = [conversation for talk in talks for conversation in talk.written]
        only = Seen(np.zeros((0, KEYS), dtype=np.uint64))
        return [c for c in written if not seen.has(c.keys) and only.add(c.keys)]

    def _given(self, number: int, count: int) -> list[tuple[str, ...]]:
        """The prompts of a shard: all of them in random order, then again in another."""
        prompts = self._plan.prompts
        start = number * round(self._plan.shard * (1 - self._plan.share))
        chosen: list[tuple[str, ...]] = []
        for position in range(start, start + count):
            epoch, place = divmod(position, len(prompts))
            if not chosen or place == 0:
                sequence = np.random.SeedSequence(self._plan.seed, spawn_key=(0, epoch))
                order = np.random.default_rng(sequence).permutation(len(prompts))
            chosen.append(prompts[order[place]])
        return chosen

    def _talk(self, turns: Sequence[str], rng: np.random.Generator) -> OpenConversation:
        temperatures, weights = np.array(self._plan.temperatures).T
        temperature = float(rng.choice(temperatures, p=weights / weights.sum()))
        thinks = bool(rng.random() < self._plan.thinking)
        thinking = thinks if self._template.knows_thinking else None
        first = {"role": "user", "content": turns[0]}
        return OpenConversation([first], temperature, thinking, list(turns[1:]), own=0)

    def _own_turns(self, count: int, rng: np.random.Generator) -> list[str]:
        """First user turns that the target wrote."""
        plan, beginnings, prompts = self._plan, [], []
        empty = self._template.user_turn([])
        for _ in range(count):
            imitated = plan.prompts and plan.imitated and rng.random() < plan.imitated
            continued = plan.prompts and rng.random() < plan.continued
            place = int(rng.integers(len(plan.prompts))) if imitated or continued else 0
            beginnings.append(self._first_words(place, rng) if continued else "")
            if imitated:
                prompts.append(self._imitating(place, beginnings[-1]))
            else:
                prompts.append(self._template.user_turn([], beginnings[-1]) if continued else empty)
        return [text for text in self._user_turns(prompts, beginnings, rng) if text]

    def _imitating(self, place: int, beginning: str) -> list[int]:
        """A user turn to write after the prompts before `place`: as many as the length allows."""
        plan = self._plan
        places = range(place - plan.examples, place)
        before = [plan.prompts[i % len(plan.prompts)][0] for i in places]
        while True:
            prompt = self._template.user_turn(self._template.asked(before), beginning)
            if len(prompt) + plan.max_user <= self._max_length or not before:
                return prompt
            del before[0]

    def _first_words(self, place: int, rng: np.random.Generator) -> str:
        words = self._plan.prompts[place][0].split(" ")
        return " ".join(words[: min(int(rng.integers(*_FIRST_WORDS)), max(len(words) // 2, 1))])

    def _user_turns(
        self, prompts: list[list[int]], beginnings: list[str], rng: np.random.Generator
    ) -> list[str]:
        """User turns that begin at the end of prompts, with `beginnings`; "" for unusable ones."""
        jobs = [Job(prompt, self._plan.max_user, 1.0, self._plan.user_min_p) for prompt in prompts]
        stops = self._template.user_stops
        texts = []
        written = batch_decode(self._model, jobs, stops, _key(rng), self._plan.rows)
        for prompt, beginning, new in zip(prompts, beginnings, written, strict=True):
            usable = new[-1] in stops and self._template.is_plain(new[:-1])
            text = beginning + self._template.text(new, prompt) if usable else ""
            # Bytes that are no character decode to this mark.
            texts.append("" if "\ufffd" in text else text.strip())
        return texts

    def _answer(
        self, talks: list[OpenConversation], rng: np.random.Generator, budget: Budget
    ) -> None:
        """Answer the last message of each; a talk ends where there is no whole answer."""
        jobs = []
        for talk in talks:
            prompt = self._template.prompt(talk.messages, talk.thinking)
            room = min(self._plan.max_answer, self._max_length - len(prompt))
            jobs.append(Job(prompt, room, talk.temperature))
        fitting = [(t, j) for t, j in zip(talks, jobs, strict=True) if self._fits(j)]
        for talk, job in zip(talks, jobs, strict=True):
            talk.open = self._fits(job)
        stops = self._template.answer_stops
        written = batch_decode(
            self._model,
            [job for _, job in fitting],
            stops,
            _key(rng),
            self._plan.rows,
            budget.answered,
        )
        for (talk, job), new in zip(fitting, written, strict=True):
            text = self._template.text(new, job.prompt)
            talk.open = bool(text.strip()) and new[-1] in stops
            if text.strip():
                talk.take(list(job.prompt), new, text)

    def _fits(self, job: Job) -> bool:
        return job.max_tokens >= min(_MIN_ANSWER, self._plan.max_answer)

    def _ask(self, talks: list[OpenConversation], rng: np.random.Generator) -> None:
        """Add each one's next user turn, if there is to be one."""
        own = []
        for talk in talks:
            if talk.given:
                talk.messages.append({"role": "user", "content": talk.given.pop(0)})
            elif talk.own and rng.random() < self._plan.follow_up:
                talk.own -= 1
                own.append(talk)
            else:
                talk.open = False
        prompts = [self._template.user_turn(talk.messages) for talk in own]
        texts = self._user_turns(prompts, [""] * len(own), rng)
        for talk, text in zip(own, texts, strict=True):
            talk.messages.append({"role": "user", "content": text})
            talk.open = bool(text)


def _key(rng: np.random.Generator) -> mx.array:
    return mx.random.key(int(rng.integers(1 << 63)))
