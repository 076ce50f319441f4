"""Measures a speed profile: times forwards at several cache lengths and takes the medians.

The measurement has its own caches and leaves the engine unchanged.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

import mlx.core as mx
import numpy as np
from mlx_lm.generate import wired_limit

from ..checkpoint.fingerprint import device_name
from ..engine.state import Engine
from ..errors import InputError
from ..progress import ProgressCallback
from ..schedulers.copies import WIDEST
from ..schedulers.speed_profile import SpeedProfile
from .timing import PLAIN_STEPS, Session, Times, take_turns
from .whole_rounds import added_by_rounds

CONTEXTS = (64, 512, 2048)
BATCHES = (2, 4)

LIMIT = 30.0
"""Seconds after which a measurement begins nothing new, but for one pass over the first context."""

QUICK_CONTEXT = 64
QUICK_SECONDS = 2.0
"""Seconds of a quick measurement, if one pass, of about 20 plain steps, takes no longer."""

# A copy's widest forward is measured where it is expected to be quicker than this, in milliseconds,
# and so are a few forwards of about as many rows over several requests.
_WIDEST_MS = 150.0
_QUICK_BATCH = 4
_BLOCK_ALONE = 8

# A plain step of so many milliseconds hides what Python takes; and what rounds need of positions.
_SLOW_MS = 50.0
_ROUNDS_ROOM = 1024

_MORE_WIDTHS = 3
_FILL_SECONDS = 5.0
_BATCH_SECONDS = 1.0
_MIN_REPEATS = 3


def measure_profile(
    engine: Engine,
    name: str,
    key: str,
    progress: ProgressCallback | None = None,
    *,
    contexts: Iterable[int] = CONTEXTS,
    repeats: int = 9,
    max_length: int | None = None,
    limit: float = LIMIT,
    text: Sequence[int] = (),
) -> SpeedProfile:
    """Measure a speed profile: verify forwards of widths 1..gamma+3, drafts and plain steps.

    Takes seconds: after 2.5 of them a context ends with what it has, at least 3 passes. On a slow
    machine the longer contexts come out shorter than asked, see `Session.fill`, and batches are
    left out; after `limit` nothing new begins but one pass over the first context. With rotating
    or recurrent caches a context grows while it is timed, and stands for its mean.

    Args:
        engine: target and drafter; its scheduler is not used.
        name, key: name and key of the profile.
        progress: called with the number of passes done and of all passes.
        contexts: cache lengths to measure at, in tokens; longer ones than `max_length` allows are
            shortened.
        repeats: most passes over a context.
        max_length: positions that the target was made for; None where it does not say.
        limit: see `LIMIT`, in seconds.
        text: token ids that forwards read, see `timing.Session`.

    Raises:
        InputError: the engine has no drafter.
    """
    if engine.drafter is None:
        raise InputError("speed profile", "no drafter", "a target with its drafter")
    widths = range(1, engine.drafter.config.gamma + _MORE_WIDTHS + 1)
    # What rotating and recurrent caches grow by while a context is timed, and the widest forward.
    room = (repeats + 1) * (len(widths) + PLAIN_STEPS + 1) + len(widths)
    lengths = _shortened(contexts, max_length, room)
    steps = _Steps(progress, repeats, (len(lengths) + 1) * repeats)
    reached, times, several, added = [], list[Times](), Times(), Times()
    until = perf_counter() + limit
    with wired_limit(engine.target.model):
        session = Session(engine, text)
        for i, length in enumerate(lengths):
            if times and perf_counter() > until:
                break
            filled = session.fill(length, min(_FILL_SECONDS, until - perf_counter()))
            points = session.points(widths)
            times.append(take_turns(points, repeats, steps.next_phase(), until=until))
            reached.append((filled + session.length) // 2)
            if i == len(lengths) // 2 and _pass_seconds(times[i]) < _BATCH_SECONDS:
                points = session.batches(BATCHES, widths)
                # Batches get a third of the time left: the longer contexts matter more.
                third = perf_counter() + (until - perf_counter()) / 3
                several = take_turns(points, repeats, steps.next_phase(), until=third)
        if perf_counter() < until:
            added = take_turns(session.sampling(), repeats, seconds=0.5, until=until)
    rounds = _added_by_rounds(engine, session, times[0], widths[-1] - _MORE_WIDTHS, max_length)
    mx.clear_cache()
    verify = tuple(_row(t, "verify", widths, _median) for t in times)
    batches = {n: _row(several, str(n), widths, _median) for n in BATCHES} if several else {}
    middle = len(lengths) // 2
    return SpeedProfile(
        name=name,
        key=key,
        device=device_name(),
        contexts=tuple(reached),
        verify=verify,
        draft=tuple(_median(t["draft", 0]) for t in times),
        plain=tuple(map(_plain, times)),
        batches={1: verify[middle], **batches} if batches else {},
        verify_spread=tuple(_row(t, "verify", widths, _spread) for t in times),
        sampling=_added(added, engine.drafter.config.gamma) if added else (0.0, 0.0, 0.0),
        rounds=rounds,
    )


def quick_profile(
    engine: Engine,
    name: str,
    key: str,
    progress: ProgressCallback | None = None,
    *,
    max_length: int | None = None,
    text: Sequence[int] = (),
) -> SpeedProfile:
    """Measure a few widths at one short context; the widths between them are interpolated.

    They are those of a block, and where that is quick the width of the longest copy and those of a
    block of several requests. It serves schedulers that learn the times of rounds while they
    decode, see `RoundTimes` and `BatchTimes`.

    Args:
        engine: target, and drafter if there is one; its scheduler is not used.
        name, key, progress, max_length, text: see `measure_profile`.
    """
    block = engine.drafter.config.gamma + 1 if engine.drafter else _BLOCK_ALONE
    repeats = 5
    measured = sorted({1, min(2, block), (block + 1) // 2, block})
    room = (repeats + 1) * (len(measured) + PLAIN_STEPS + 2) + max(block, WIDEST)
    (length,) = _shortened((QUICK_CONTEXT,), max_length, room)
    steps = _Steps(progress, repeats, repeats)
    with wired_limit(engine.target.model):
        session = Session(engine, text)
        filled = session.fill(length, _FILL_SECONDS)
        points = session.points(measured)
        times = take_turns(points, repeats, steps.next_phase(), QUICK_SECONDS, least=1)
        several = Times()
        if _median(times["verify", block]) * WIDEST < _WIDEST_MS * block:
            more = {("verify", WIDEST): session.points([WIDEST])["verify", WIDEST]}
            times |= take_turns(more, repeats, seconds=QUICK_SECONDS / 4)
            if engine.drafter and (batches := session.batches((_QUICK_BATCH,), measured)):
                several = take_turns(batches, repeats, seconds=QUICK_SECONDS / 4, least=1)
    rounds = _added_by_rounds(engine, session, times, block, max_length)
    mx.clear_cache()
    widths = sorted({width for what, width in times if what == "verify"})
    batch = _between(several, str(_QUICK_BATCH), measured, _median) if several else ()
    return SpeedProfile(
        name=name,
        key=key,
        device=device_name(),
        contexts=((filled + session.length) // 2,),
        verify=(_between(times, "verify", widths, _median),),
        draft=(_median(times["draft", 0]) if engine.drafter else 0.0,),
        plain=(_plain(times),),
        batches={_QUICK_BATCH: batch} if batch else {},
        verify_spread=(_between(times, "verify", widths, _spread),),
        rounds=rounds,
        quick=True,
    )


def _added_by_rounds(
    engine: Engine, session: Session, times: Times, block: int, max_length: int | None
) -> tuple[float, float]:
    """See `SpeedProfile.rounds`; zeros where Python's part could not be seen, or has no room."""
    plain = _plain(times)
    room = max_length or _ROUNDS_ROOM
    if plain > _SLOW_MS or room < _ROUNDS_ROOM:
        return 0.0, 0.0
    draft = _median(times["draft", 0]) if engine.drafter else 0.0
    prompt = session.prompt(QUICK_CONTEXT)
    return added_by_rounds(engine, prompt, plain, draft + _median(times["verify", block]))


def _plain(times: Times) -> float:
    """Milliseconds of a plain step: no more than a forward of one row, which it is.

    On a slow machine each is timed once, and drafts would seem to pay where one was disturbed.
    """
    return min(_median(times["plain", 0]), _median(times["verify", 1]))


def _added(times: Times, gamma: int) -> tuple[float, float, float]:
    """Milliseconds that sampling adds, see `SpeedProfile.sampling`; never below 0."""
    ms = {point: _median(taken) for point, taken in times.items()}
    draft = ms["sampled draft", 0] - ms["greedy draft", 0]
    first = ms["sampled rows", 1] - ms["greedy rows", 1]
    all_rows = ms["sampled rows", gamma + 1] - ms["greedy rows", gamma + 1]
    return max(draft, 0.0), max(first, 0.0), max((all_rows - first) / gamma, 0.0)


def spot_check(
    engine: Engine, context: int, repeats: int, text: Sequence[int] = ()
) -> tuple[float, float, float]:
    """Milliseconds of a verify forward of width 1, one of gamma + 1, and a draft, from few runs."""
    assert engine.drafter is not None
    block = engine.drafter.config.gamma + 1
    with wired_limit(engine.target.model):
        session = Session(engine, text)
        session.fill(context, _FILL_SECONDS)
        points = session.points((1, block))
        del points["plain", 0]
        times = take_turns(points, repeats, seconds=0.3, least=1)
    return _median(times["verify", 1]), _median(times["verify", block]), _median(times["draft", 0])


class _Steps:
    """Counts the passes of all phases for a progress bar; a phase has `repeats` passes at most."""

    def __init__(self, progress: ProgressCallback | None, repeats: int, total: int) -> None:
        self._progress = progress
        self._repeats = repeats
        self._total = total
        self._phase = -1

    def next_phase(self) -> Callable[[int], None]:
        """Begin a phase; returns the function that it calls with the number of its passes."""
        self._phase += 1
        before = self._phase * self._repeats

        def measured(passes: int) -> None:
            if self._progress:
                self._progress(before + passes, self._total)

        return measured


def _pass_seconds(times: Times) -> float:
    return sum(statistics.median(taken) for taken in times.values())


def _row(
    times: Times, what: str, widths: Iterable[int], of: Callable[[list[float]], float]
) -> tuple[float, ...]:
    return tuple(of(times[what, width]) for width in widths)


def _between(
    times: Times, what: str, measured: Sequence[int], of: Callable[[list[float]], float]
) -> tuple[float, ...]:
    """The row of every width up to the last; between those that were measured in straight lines."""
    row = _row(times, what, measured, of)
    return tuple(np.interp(range(1, measured[-1] + 1), measured, row).tolist())


def _shortened(contexts: Iterable[int], max_length: int | None, room: int) -> list[int]:
    """The contexts in ascending order, shortened so that `room` positions follow the last one."""
    last = max(max_length - room, 1) if max_length else None
    return sorted({min(length, last or length) for length in contexts})


def _median(seconds: list[float]) -> float:
    """The median, in milliseconds."""
    return 1e3 * statistics.median(seconds)


def _spread(seconds: list[float]) -> float:
    """The distance of the quartiles over the median; 1 for fewer than 3 values."""
    if len(seconds) < _MIN_REPEATS:
        return 1.0
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    return float((high - low) / middle)
