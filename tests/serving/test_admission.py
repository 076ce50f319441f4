"""Memory before a request is admitted, with a reading that tests choose."""

from __future__ import annotations

from typing import Any

import pytest

from dspark_mlx import InputError
from dspark_mlx.errors import MemoryLimitError
from dspark_mlx.reuse.kept import KeptPrompts
from dspark_mlx.serving.admission import Admission, Need, Reservation
from dspark_mlx.system.memory import Memory
from dspark_mlx.types import Round


class Sizes:
    """A request of n positions takes n bytes, and a forward over n rows n more."""

    def caches(self, tokens: int, rows: int) -> int:
        return tokens

    def forward(self, rows: int, keys: int) -> int:
        return rows


class Kept(KeptPrompts):
    """Kept prompts of so many bytes."""

    nbytes = 0

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self.nbytes = nbytes

    def give_up(self, nbytes: int) -> None:
        self.nbytes = max(self.nbytes - nbytes, 0)


class Machine:
    """Memory of which the requests of one admission take what they hold."""

    def __init__(self, total: int, kept: int = 0) -> None:
        self.total, self.kept = total, Kept(kept)
        self.admission = Admission(self.reading)
        self.made: list[Reservation] = []

    def reading(self) -> Memory:
        used = sum(each.now for each in self.made if each.holds) + self.kept.nbytes
        return Memory(self.total, self.total - used, "a toy")

    def request(self, prompt: int, answer: int, rows: int = 1, batched: bool = False):
        need = Need(prompt, answer, rows, batched)
        sizes: Any = Sizes()
        self.made.append(Reservation(self.admission, need, sizes, self.kept))
        return self.made[-1]


def test_what_does_not_fit_is_refused_with_both_numbers():
    """A machine that swaps; a refusal without numbers."""
    machine = Machine(3_000_000)
    machine.request(1_000_000, 1_999_999).check()
    with pytest.raises(MemoryLimitError, match=r"needs 3\.0 MB .*at most 3\.0 MB") as caught:
        machine.request(1_000_000, 2_000_000).check()
    assert caught.value.needed == 3_000_001 and caught.value.free == 3_000_000
    assert not caught.value.later and isinstance(caught.value, InputError)
    assert "1,000,000 tokens of prompt, 2,000,000 of answer" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_forward_counts():
    """A long prompt read in one forward, whose activations are not looked at."""
    machine = Machine(100)
    assert machine.request(50, 10, rows=40).take() is None
    assert Machine(100).request(50, 10, rows=41).take() is not None
    # A prompt has no more rows than tokens.
    assert Machine(100).request(40, 20, rows=2048).take() is None


def test_what_others_have_yet_to_take_is_theirs():
    """Two requests admitted one after the other, each of which would fit alone."""
    machine = Machine(100)
    first, second = machine.request(10, 50), machine.request(10, 50)
    assert first.take() is None
    waits = second.take()
    assert waits is not None and waits.later
    second.check()  # it fits when the first has ended
    with pytest.raises(MemoryLimitError), second:
        pass
    first.release()
    assert second.take() is None


def test_progress_is_not_counted_twice():
    """What a request holds already, taken from what is free and from its reserve."""
    machine = Machine(100)
    first, second = machine.request(10, 50), machine.request(5, 34)
    first.take()
    for done in (5, 10):
        first.reading(None)(done, 10)
        assert second.take() is None
        second.release()
    rounds = [Round((1, 2, 3)) for _ in range(16)]
    for round_ in rounds:
        first.count(round_)
    assert first.tokens == 58
    assert second.take() is None and machine.request(1, 1).take() is not None


def test_kept_prompts_give_way_first():
    """A refusal while kept prompts fill the memory; more of them dropped than is needed."""
    machine = Machine(100, kept=80)
    assert machine.request(5, 25).take() is None
    assert machine.kept.nbytes == 69
    machine = Machine(100, kept=80)
    machine.request(5, 94).check()
    assert machine.request(5, 95).take() is not None and machine.kept.nbytes == 80


def test_a_batch_is_as_wide_as_its_longest_request():
    """Eight short requests beside a long one, whose rows are padded to its length."""
    alone, together = Machine(100), Machine(100)
    assert alone.request(10, 40).take() is None and alone.request(1, 1).take() is None
    assert together.request(10, 40, batched=True).take() is None
    assert together.request(1, 1, batched=True).take() is not None


def test_whoever_waits_is_called_at_an_end():
    """A queue that sleeps though the memory is there."""
    machine, calls = Machine(100), []

    class Queue:
        def wake(self) -> None:
            calls.append(1)

    queue = Queue()
    machine.admission.when_released(queue.wake)
    held = machine.request(1, 1)
    held.take()
    held.release()
    held.release()
    assert calls == [1]
    del queue
    with machine.request(1, 1):
        pass
    assert calls == [1]
