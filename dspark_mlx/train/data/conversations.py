"""Lets the target write conversations: its answers, and if wanted the user turns too.

A drafter predicts what the target writes, so it is trained on the target's own answers only. A
shard depends only on the plan, the seed and the shards before it, so that a run that was killed
goes on with the same content.
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
    """The store in `folder` for this target and plan, opened to go on, or created.

    Raises:
        InputError: the plan cannot be used, or the folder holds something else.
    """
    plan.check()
    target = decoder.target_folder
    vocabulary = decoder.engine.target.vocab_size
    header = Header(vocabulary, target.name, weights_digest(target), plan.seed, plan.settings)
    return Store.obtain(folder, header)


def write_conversations(
    decoder: Decoder, plan: DataPlan, store: Store, progress: ProgressCallback | None = None
) -> None:
    """Write conversations into a store, shard after shard, until the plan's limits are reached.

    Args:
        decoder: a decoder of the target; its drafter is not used.
        plan: what to write.
        store: the store to append to, see `open_store`.
        progress: called while decoding.

    Raises:
        InputError: the plan cannot be used, the target has no chat template or writes nothing that
            can be kept, or the disk is full. Shards written before are kept.
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
    """Writes shards: first user turns, then answers and further user turns in alternation."""

    def __init__(self, decoder: Decoder, plan: DataPlan, template: Template) -> None:
        self._model = decoder.engine.target.model
        self._plan = plan
        self._template = template
        self._max_length = min(plan.max_length, decoder.max_length or plan.max_length)

    def shard(self, number: int, count: int, seen: Seen, budget: Budget) -> list[Conversation]:
        """The conversations of one shard that have no duplicate in `seen`."""
        sequence = np.random.SeedSequence(self._plan.seed, spawn_key=(1, number))
        rng = np.random.default_rng(sequence)
        fresh = Seen(np.zeros((0, KEYS), dtype=np.uint64))
        given = min(count, round(self._plan.shard * (1 - self._plan.share)))
        conversations = [self._begin(turns, rng) for turns in self._given(number, given)]
        for text in self._own_turns(count - given, rng):
            near = near_keys(text)
            if not seen.has(near) and fresh.add(near):
                conversation = self._begin((text,), rng)
                conversation.own, conversation.near = self._plan.most_turns - 1, near
                conversations.append(conversation)
        while to_answer := [one for one in conversations if one.open]:
            self._answer(to_answer, rng, budget)
            self._ask([one for one in to_answer if one.open], rng)
        for conversation in conversations:
            conversation.close()
        written = [one for conversation in conversations for one in conversation.written]
        in_shard = Seen(np.zeros((0, KEYS), dtype=np.uint64))
        return [c for c in written if not seen.has(c.keys) and in_shard.add(c.keys)]

    def _given(self, number: int, count: int) -> list[tuple[str, ...]]:
        """The given prompts of a shard, from all prompts in random order, epoch after epoch."""
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

    def _begin(self, turns: Sequence[str], rng: np.random.Generator) -> OpenConversation:
        temperatures, weights = np.array(self._plan.temperatures).T
        temperature = float(rng.choice(temperatures, p=weights / weights.sum()))
        thinks = bool(rng.random() < self._plan.thinking)
        thinking = thinks if self._template.knows_thinking else None
        first = {"role": "user", "content": turns[0]}
        return OpenConversation([first], temperature, thinking, list(turns[1:]), own=0)

    def _own_turns(self, count: int, rng: np.random.Generator) -> list[str]:
        """First user turns that the target writes; unusable ones are left out."""
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
        """Token ids after which the target writes a user turn like those before `place`.

        The target is shown the `examples` prompts before `place`, or as many as fit its length.
        """
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
        """User turns that the target writes after `prompts`; "" for unusable ones.

        Args:
            prompts: token ids up to where each user turn goes on.
            beginnings: text at the end of each prompt that is the beginning of the turn.
            rng: random numbers.
        """
        jobs = [Job(prompt, self._plan.max_user, 1.0, self._plan.user_min_p) for prompt in prompts]
        stops = self._template.user_stops
        texts = []
        written = batch_decode(self._model, jobs, stops, _key(rng), self._plan.rows)
        for prompt, beginning, new in zip(prompts, beginnings, written, strict=True):
            usable = new[-1] in stops and self._template.is_plain(new[:-1])
            text = beginning + self._template.text(new, prompt) if usable else ""
            # Bytes that are not a whole character decode to U+FFFD.
            texts.append("" if "\ufffd" in text else text.strip())
        return texts

    def _answer(
        self, conversations: list[OpenConversation], rng: np.random.Generator, budget: Budget
    ) -> None:
        """Answer each one's last message; a conversation without a whole answer is closed."""
        jobs = []
        for conversation in conversations:
            prompt = self._template.prompt(conversation.messages, conversation.thinking)
            room = min(self._plan.max_answer, self._max_length - len(prompt))
            jobs.append(Job(prompt, room, conversation.temperature))
        fitting = [(t, j) for t, j in zip(conversations, jobs, strict=True) if self._fits(j)]
        for conversation, job in zip(conversations, jobs, strict=True):
            conversation.open = self._fits(job)
        stops = self._template.answer_stops
        written = batch_decode(
            self._model,
            [job for _, job in fitting],
            stops,
            _key(rng),
            self._plan.rows,
            budget.answered,
        )
        for (conversation, job), new in zip(fitting, written, strict=True):
            text = self._template.text(new, job.prompt)
            conversation.open = bool(text.strip()) and new[-1] in stops
            if text.strip():
                conversation.take(list(job.prompt), new, text)

    def _fits(self, job: Job) -> bool:
        return job.max_tokens >= min(_MIN_ANSWER, self._plan.max_answer)

    def _ask(self, conversations: list[OpenConversation], rng: np.random.Generator) -> None:
        """Add the next user turn of each conversation; those without one are closed."""
        own = []
        for conversation in conversations:
            if conversation.given:
                conversation.messages.append({"role": "user", "content": conversation.given.pop(0)})
            elif conversation.own and rng.random() < self._plan.follow_up:
                conversation.own -= 1
                own.append(conversation)
            else:
                conversation.open = False
        prompts = [self._template.user_turn(conversation.messages) for conversation in own]
        texts = self._user_turns(prompts, [""] * len(own), rng)
        for conversation, text in zip(own, texts, strict=True):
            conversation.messages.append({"role": "user", "content": text})
            conversation.open = bool(text)


def _key(rng: np.random.Generator) -> mx.array:
    return mx.random.key(int(rng.integers(1 << 63)))
