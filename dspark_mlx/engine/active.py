"""Requests that decode at the same time: they join and leave between rounds."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..caches.batch_attention import ROOM
from ..lookup.lookup import Lookup
from ..progress import ProgressCallback
from ..sampling import Sampler
from ..schedulers.batch import BatchSchedule
from ..targets.batch_check import runs_in_batches
from ..targets.turns import WIRED
from ..types import Round
from ..vision.encoder import ImagePrompt
from .group import Batch, Isolated, Solo
from .keep import keeping
from .prefill import Prefill
from .rounds import next_rounds
from .state import Engine, State

# Prompt tokens between two rounds of requests that decode: a few rounds' time on most devices.
_READ_BESIDE = 512


@dataclass(eq=False)
class ActiveRequest:
    """One request of `ActiveRequests`.

    Attributes:
        solo: the request alone, which it is while it is in no batch.
        reading: reads its prompt; None when that is done.
        resources: held until the request is removed.
    """

    solo: Solo
    reading: Prefill | None
    resources: contextlib.ExitStack

    @property
    def state(self) -> State:
        """The request's state."""
        return self.solo.states[0]

    @property
    def ended(self) -> bool:
        """Whether its last round was delivered, or its error."""
        return self.state.ended or self.state.error is not None


Outcome: TypeAlias = tuple[ActiveRequest, Round | BaseException]
"""What a step gives a request: its round, or what ended it."""


class ActiveRequests:
    """Decodes any number of requests, a round of each per step; for one thread at a time.

    Requests that have read their prompts draft in one forward and verify in one forward. A single
    one decodes as `rounds.rounds` does. A target that gives other results in a batch runs its
    requests one after the other, and so does a drafter of longer blocks than a batch has room for.

    Args:
        engine: target, drafter and scheduler.
        isolates: what ends the request whose own code, such as a logits processor, raised it, while
            the others go on. Anything else ends all requests of a step, and `step` raises it: in a
            program's main thread Ctrl-C, and `sys.exit` in a handler of signals, are no request's
            own. A thread that no signal reaches can isolate BaseException.

    Warns:
        UserWarning: once, where several requests run one after the other.
    """

    def __init__(self, engine: Engine, isolates: type[BaseException] = Exception) -> None:
        self._engine = engine
        self._isolates = isolates
        self._requests: list[ActiveRequest] = []
        self._batch: Batch | None = None
        self._together: bool | None = None
        times, drafter = engine.batch_times, engine.drafter
        self._schedule = BatchSchedule(times, drafter.calibrations) if times and drafter else None

    def __len__(self) -> int:
        return len(self._requests)

    def add(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        stop_tokens: Collection[int],
        sampler: Sampler,
        prefill_step_size: int = 2048,
        progress: ProgressCallback | None = None,
        images: ImagePrompt | None = None,
        lookup: Lookup | None = None,
    ) -> ActiveRequest:
        """Add a request; the next steps read its prompt. Arguments as for `rounds.rounds`."""
        state = State.start(self._engine, prompt, sampler, max_tokens, stop_tokens, lookup)
        state.isolates = self._isolates
        if self._schedule is not None:
            state.belief = self._schedule.start(state.policy, sampler.temperature)
        solo, resources = Solo(self._engine, state), contextlib.ExitStack()
        resources.enter_context(WIRED.use(self._engine.target.model))
        resources.callback(state.close)
        # Tokens do not tell images apart.
        kept = resources.enter_context(keeping(solo, keeps=images is None))
        reading = Prefill(solo, prompt, prefill_step_size, progress, images, kept)
        request = ActiveRequest(solo, reading, resources)
        self._requests.append(request)
        return request

    def remove(self, request: ActiveRequest) -> None:
        """Take a request out, ended or not, and free its caches; does nothing the second time."""
        if request not in self._requests:
            return
        self._requests.remove(request)
        batch, state = self._batch, request.state
        with request.resources:
            if batch is not None and state in batch.states:
                others = [other for other in batch.states if other is not state]
                if self._engine.kept is not None and state.error is None:
                    batch.leave(batch.states.index(state))
                self._regroup(others)

    def close(self) -> None:
        """Remove all requests."""
        for request in list(self._requests):
            self.remove(request)

    def step(self, chosen: Collection[ActiveRequest] | None = None) -> list[Outcome]:
        """Read a part of the prompts, and run a round of each request that has read its prompt.

        At most one prefill forward's tokens are read, and fewer beside requests that decode, so
        that those do not stall; whole chunks where the text depends on how its prompt is cut.

        Args:
            chosen: the requests to go on with; None for all. Others keep their caches, and leave
                the batch meanwhile.

        Returns:
            Requests and their rounds; for a request that failed what was raised: `InputError` as
            from `rounds.rounds`, or whatever its logits processors or its policy raised. What the
            round of several raised, as a device without memory does, ends all of them, those that
            were to leave the batch included. It is for the caller to `remove` requests that have
            `ended`.
        """
        going = [r for r in self._requests if not r.ended and (chosen is None or r in chosen)]
        running = [request for request in going if request.reading is None]
        done = self._read(going)
        members = self._batch.states if self._batch else []
        held = [r for r in self._requests if not r.ended and (r in running or r.state in members)]
        with Isolated(*(request.state for request in held)):
            return done + self._run(running, len(going))
        self._batch = None  # its caches may be those of half a round
        return done + [_outcome(request, None) for request in held]

    def _read(self, going: Sequence[ActiveRequest]) -> list[Outcome]:
        """Read prompts, those of the longest waiting requests first."""
        reading = [(r, r.reading) for r in going if r.reading is not None]
        left = max((prompt.chunk_size for _, prompt in reading), default=0)
        if len(reading) < len(going):
            left = min(left, _READ_BESIDE)
        done: list[Outcome] = []
        for request, prompt in reading:
            state, round_ = request.state, None
            while left > 0 and round_ is None and state.error is None:
                size = prompt.next_size(left)
                with Isolated(state):
                    round_ = prompt.step(left)
                left -= size
            if round_ is not None:
                state.count(round_)
                request.reading = None
            if round_ or state.error:
                done.append(_outcome(request, round_))
        return done

    def _run(self, running: Sequence[ActiveRequest], count: int) -> list[Outcome]:
        """A round of each request; arguments as for `_run_together`."""
        if len(running) > 1 and self._runs_together():
            return self._run_together(running, count)
        self._regroup([])
        done: list[Outcome] = []
        for request in running:
            done += self._run_alone(request, more=count == 1 or self._together is False)
        return done

    def _run_alone(self, request: ActiveRequest, more: bool) -> list[Outcome]:
        round_ = None
        with Isolated(request.state):
            (round_,) = next_rounds(request.solo, more)
        return [_outcome(request, round_)]

    def _run_together(self, running: Sequence[ActiveRequest], count: int) -> list[Outcome]:
        """A round of several requests; those that cannot take part in it have one of their own.

        Args:
            running: the requests.
            count: how many there are with those that still read their prompts.
        """
        batch = self._batch
        joining = [r for r in running if batch is None or r.state not in batch.states]
        # A plain step that runs already is finished by the requests that it was started for, and
        # rows that have positions of their own are in no batch.
        apart = [r for r in joining if r.state.next_step or r.state.forward]
        waiting = joining if batch is not None and batch.next_step else apart
        together = [request for request in running if request not in waiting]
        self._regroup([request.state for request in together])
        done: list[Outcome] = []
        for request in apart if self._batch else together + apart:
            done += self._run_alone(request, more=False)
        if self._batch:
            rounds = next_rounds(self._batch, more=len(together) == count)
            owners = {id(request.state): request for request in together}
            done += [
                _outcome(owners[id(state)], round_)
                for state, round_ in zip(self._batch.states, rounds, strict=True)
            ]
        return done

    def _regroup(self, states: Sequence[State]) -> None:
        """Make a batch of these requests; others that go on later get their caches back."""
        batch, wanted = self._batch, list(states) if len(states) > 1 else []
        members = batch.states if batch else []
        joining = [state for state in wanted if state not in members]
        if not joining and len(wanted) == len(members):
            return
        if self._schedule is not None:
            self._schedule.changed()
        staying = [i for i, state in enumerate(members) if state in wanted]
        if batch is not None:
            keeps = self._engine.kept is not None
            going = [
                each.state
                for each in self._requests
                if each.state.error is None and (keeps or not each.ended)
            ]
            for i, state in enumerate(members):
                if state in going and state not in wanted:
                    batch.leave(i)
            if staying:
                self._batch = batch.with_(staying, joining)
                return
            batch.finish()
        self._batch = Batch.of(self._engine, self._schedule, joining) if joining else None

    def _runs_together(self) -> bool:
        if self._together is None:
            target, drafter = self._engine.target, self._engine.drafter
            wide = drafter is not None and drafter.config.gamma >= ROOM
            self._together = not wide and runs_in_batches(target)
            if not self._together:
                why = "it is exact" if target.exact else "it gives other results in a batch"
                if wide:
                    why = f"the drafter proposes {ROOM} tokens or more at once"
                message = f"requests of this model run one after the other, since {why}"
                warnings.warn(f"{target.where}: {message}", stacklevel=4)
        return self._together


def _outcome(request: ActiveRequest, round_: Round | None) -> Outcome:
    error = request.state.error
    if error is not None:
        return request, error
    assert round_ is not None
    return request, round_
