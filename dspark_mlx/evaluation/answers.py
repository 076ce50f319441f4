"""Runs an evaluation: every drafter, and plain decoding, answers every turn of every prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..benchmark.comparison import Row, make_row
from ..benchmark.turns import TimedRun, Turn, take_turn
from ..decoder import Decoder
from ..engine.request import Request
from ..errors import InputError
from ..numbers import check_whole
from ..progress import ProgressCallback
from ..sampling.effective_temperature import effective_temperature
from .sweep import Text, judge, visited
from .tasks import Task


@dataclass(frozen=True)
class EvaluationSettings:
    """How an evaluation decodes.

    Attributes:
        max_tokens: tokens of a turn; the round that passes this number is not cut.
        repeats: runs of each side per turn; speeds are their medians. All sampled runs count for
            acceptance; greedy runs are equal, so only the first one counts.
        plain: whether to decode plainly too, for speeds and to compare the tokens.
        sweep: whether to make the threshold sweep, for which greedy texts are drafted again at
            every position.
        thinking: whether the chat template lets the target think; DeepSpec's evaluator does not.
        sampling: see `request.Settings`; every turn and repeat has a seed of its own, counted up
            from the given one, or from 0.
    """

    max_tokens: int = 128
    repeats: int = 1
    plain: bool = True
    sweep: bool = True
    thinking: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def temperature(self) -> float:
        """The temperature that calibrations are chosen by, see `sampling.effective_temperature`."""
        return effective_temperature(Request.make(self.max_tokens, (), self.sampling).sampling)

    @property
    def greedy(self) -> bool:
        """Whether decoding is greedy."""
        return self.temperature == 0

    def check(self) -> None:
        """Refuse settings outside their range.

        Raises:
            InputError: a setting is outside its range; it is named.
        """
        check_whole("max_tokens", self.max_tokens, 2)
        check_whole("repeats", self.repeats, 1)
        Request.make(self.max_tokens, (), self.sampling)


@dataclass(frozen=True)
class Answer:
    """One turn of a prompt, answered by every drafter.

    Attributes:
        task: name of the task.
        prompt: number of the prompt in the task, from 0.
        turn: number of the turn in the prompt, from 0.
        temperature: temperature of all runs; 0 for greedy decoding.
        runs: the runs of each drafter, by its name; one for each repeat.
        speeds: comparison of each drafter with plain decoding; None where nothing was decoded
            plainly, or where texts have one token.
        texts: blocks of each drafter for the sweep. A greedy text has a block after each token; of
            sampled texts, each drafted block is a text of its own. Empty where no sweep is made.
    """

    task: str
    prompt: int
    turn: int
    temperature: float
    runs: Mapping[str, tuple[TimedRun, ...]]
    speeds: Mapping[str, Row | None]
    texts: Mapping[str, tuple[Text, ...]]


@dataclass(frozen=True)
class LeftOut:
    """The turns of a conversation that do not fit the target's positions, so are not answered.

    Attributes:
        task: name of the task.
        prompt: number of the prompt in the task, from 0.
        turn: number of the first turn that does not fit, from 0.
        turns: number of turns that are left out.
        tokens: tokens of the conversation up to the first of them.
    """

    task: str
    prompt: int
    turn: int
    turns: int
    tokens: int


def answers(
    decoders: Mapping[str, Decoder],
    tasks: Sequence[Task],
    settings: EvaluationSettings,
    progress: ProgressCallback | None = None,
) -> Iterator[Answer | LeftOut]:
    """Answer turn by turn, so that a caller who stops early has the finished answers.

    A conversation goes on with the first drafter's answers.

    Args:
        decoders: at least one decoder by name, all on one target.
        tasks: the tasks to answer.
        settings: how to decode.
        progress: called after each turn with the number of turns done and of all turns.

    Raises:
        InputError: a setting is outside its range, a decoder has no drafter, or the target has no
            chat template.
    """
    settings.check()
    for name, decoder in decoders.items():
        if decoder.engine.drafter is None:
            raise InputError(name, "no drafter", "one to evaluate")
    total, count = count_turns(tasks), 0
    for task in tasks:
        for number, turns in enumerate(task.prompts):
            for answer in _conversation(decoders, task.name, number, turns, settings, count):
                count += answer.turns if isinstance(answer, LeftOut) else 1
                yield answer
                if progress:
                    progress(count, total)


def count_turns(tasks: Sequence[Task]) -> int:
    """Number of turns of all prompts of all tasks."""
    return sum(len(turns) for task in tasks for turns in task.prompts)


def _conversation(
    decoders: Mapping[str, Decoder],
    task: str,
    number: int,
    turns: Sequence[str],
    settings: EvaluationSettings,
    before: int,
) -> Iterator[Answer | LeftOut]:
    first = next(iter(decoders.values()))
    blocks = [each.engine.drafter.config.gamma for each in decoders.values() if each.engine.drafter]
    room = settings.max_tokens + max(blocks) + 1
    messages: list[dict[str, str]] = []
    for index, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        prompt = first.encode(messages, thinking=settings.thinking)
        if first.max_length is not None and len(prompt) + room > first.max_length:
            yield LeftOut(task, number, index, len(turns) - index, len(prompt))
            return
        answer = _answer(decoders, (task, number, index), prompt, settings, before + index)
        yield answer
        tokens = next(iter(answer.runs.values()))[0].tokens[: settings.max_tokens]
        kept = [token for token in tokens if token not in first.stop_tokens]
        messages.append({"role": "assistant", "content": first.tokenizer.decode(kept)})


def _answer(
    decoders: Mapping[str, Decoder],
    place: tuple[str, int, int],
    prompt: Sequence[int],
    settings: EvaluationSettings,
    before: int,
) -> Answer:
    names, sides = tuple(decoders), tuple(decoders.values())
    seed = (settings.sampling.get("seed") or 0) + before * settings.repeats
    turns = [
        take_turn(
            sides,
            prompt,
            settings.max_tokens,
            {**settings.sampling, "seed": seed + repeat},
            sides[0].stop_tokens,
            plain=settings.plain,
            whole=True,
        )
        for repeat in range(settings.repeats)
    ]
    runs = {name: tuple(turn.runs[i] for turn in turns) for i, name in enumerate(names)}
    speeds, texts = dict[str, Row | None](), dict[str, tuple[Text, ...]]()
    for i, (name, decoder) in enumerate(decoders.items()):
        speeds[name] = _speed(decoder, place[0], prompt, settings, turns, i)
        texts[name] = _judged(decoder, prompt, runs[name], settings)
    return Answer(*place, settings.temperature, runs, speeds, texts)


def _speed(
    decoder: Decoder,
    task: str,
    prompt: Sequence[int],
    settings: EvaluationSettings,
    turns: Sequence[Turn],
    index: int,
) -> Row | None:
    if not settings.plain:
        return None
    greedy = settings.greedy
    return make_row(decoder, task, prompt, settings.max_tokens, turns, index, greedy)


def _judged(
    decoder: Decoder, prompt: Sequence[int], runs: Sequence[TimedRun], settings: EvaluationSettings
) -> tuple[Text, ...]:
    drafter = decoder.engine.drafter
    assert drafter is not None
    if not settings.sweep or not drafter.config.has_confidence:
        return ()
    if settings.greedy:
        text = [*runs[0].tokens, *runs[0].beyond]
        return (judge(decoder, prompt, text, decoder.stop_tokens, settings.max_tokens),)
    rounds = [round_ for run in runs for round_ in run.rounds]
    return tuple((block,) for block in visited(rounds, decoder.stop_tokens))
