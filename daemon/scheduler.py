"""Requests to steps: who is in progress, who waits, and what becomes of each after a step. Knows jobs and the engine,
no sockets and no tokens.

A step carries everyone who is in progress: `steps` composes it, one hop into the worker thread runs it and lets each
job take what came of its rows. Each has an outcome of its own; who ends in mid-step loses its own rows and nobody
else's. Waiting requests start in the order of how little their client has in progress already. What waits is bounded,
in requests and in bytes: when it is too much, the newest of the client that has most waiting gives way.

    waits  --begins-->  in progress, its session is open  --has an end-->  delivered, its session is closed
      |                          |
      +----- is ended: at once   +----- is ended: when the step that runs has returned
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from . import protocol
from .generation import Job
from .model.turn import ContextFull, Interrupted, Outcome, StepFailed, Steps
from .pace import Pace
from .protocol import Body
from .rates import Rates, Stepped
from .steps import Composer, Step
from .threads import in_thread

log = logging.getLogger(__name__)

TRIM_SECONDS = 5.0
QUEUE_BYTES = 32 << 20  # of requests that wait

Deliver = Callable[[Job, protocol.Reply, Body | None], bool]


class Busy(Exception):
    """No room for another waiting request."""


@dataclass
class Turn:
    """What came of one job's rows: replies for its client, or why there are none."""

    replies: list[protocol.Reply] = field(default_factory=list)
    error: Exception | None = None


class Scheduler:
    """One engine's steps. `deliver` sends a reply and says whether the client still takes any.

    sessions: jobs in progress at a time. step_seconds: what a step may take while answers run.
    """

    def __init__(
        self,
        deliver: Deliver,
        *,
        sessions: int,
        queue: int,
        step_seconds: float = 0.2,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._deliver = deliver
        self._sessions = sessions
        self._queue = queue
        self._queue_bytes = queue_bytes
        self._engine: Steps | None = None
        self._pace = Pace(step_seconds)
        self._active: list[Job] = []  # in the order in which they began
        self._waiting: list[Job] = []
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._idle.set()
        self._limiter = trio.CapacityLimiter(1)
        self._untrimmed = False
        self.running = False  # a step
        self.on_step: Callable[[int, int], None] = lambda prompts, answers: None
        self.rates = Rates()
        self.turns = 0

    # -- what the control loop asks for ------------------------------------------------------------------------------

    def submit(self, job: Job, arrival: Job | None = None) -> None:
        """Raises Busy. `arrival`, if there is one, gives its place in the queue to the job."""
        if arrival is not None:
            job.arrived = arrival.arrived
            self._waiting[self._waiting.index(arrival)] = job
        else:
            self._make_room(job)
            self._waiting.append(job)
        self._idle = trio.Event() if self._idle.is_set() else self._idle
        self._wake.set()

    def _make_room(self, job: Job) -> None:
        """Until one more may wait, the newest request of whoever has most waiting gives way. Raises Busy when that is
        the one that comes: among equals, who is there already stays."""
        while True:
            waiting = [*self._waiting, job]
            nbytes = sum(each.nbytes for each in waiting)
            if len(waiting) > self._queue:
                weight = dict.fromkeys(waiting, 1)
                full = f"{self._queue} requests are waiting already"
            elif nbytes > self._queue_bytes and self._waiting:
                weight = {each: each.nbytes for each in waiting}
                full = f"requests of {nbytes - job.nbytes} bytes are waiting already"
            else:
                return
            shares: Counter[str] = Counter()
            for each in waiting:
                shares[each.owner] += weight[each]
            most = max(shares.values())
            if shares[job.owner] == most:
                raise Busy(full)
            last = next(each for each in reversed(self._waiting) if shares[each.owner] == most)
            self._waiting.remove(last)
            self._fail(last, "busy", f"{full}, most of them of this client: its newest gave way to another client's")

    def withdraw(self, arrival: Job) -> None:
        """It leaves the queue without an answer from here, if it is still there."""
        if arrival in self._waiting:
            self._waiting.remove(arrival)
            self._wake.set()

    def use(self, engine: Steps) -> None:
        """The engine is there: steps may begin."""
        self._engine = engine
        self._wake.set()

    def jobs(self) -> list[Job]:
        return self._active + self._waiting

    def end(self, job: Job, reason: str) -> None:
        """End a job with a reason: one that waits at once, one in progress before the next step."""
        job.stop_reason = job.stop_reason or reason
        if job in self._waiting:
            self._waiting.remove(job)
            self._finish(job, reason)
        self._wake.set()

    def end_all(self, reason: str, choose: Callable[[Job], bool] = lambda job: True) -> int:
        chosen = [job for job in self.jobs() if choose(job)]
        for job in chosen:
            self.end(job, reason)
        return len(chosen)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def until_idle(self) -> None:
        while self.jobs():
            await self._idle.wait()

    # -- the steps ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs as long as the daemon."""
        while self._engine is None:
            await self._rest(None)
        composer = Composer(self._engine.batch, self._engine.n_vocab, self._pace)
        while True:
            await self._drop()
            await self._admit(self._engine)
            step = composer.compose([job for job in self._active if not (job.ended or job.stop_reason)])
            if step.parts:
                await self._run(self._engine, step)
            elif not self._active:
                await self._rest(self._engine)

    async def _rest(self, engine: Steps | None) -> None:
        """Until there is something to do; after a while of nothing the engine's buffers are given back."""
        if not self.jobs():
            self._idle.set()
        self._wake = trio.Event()
        if engine is not None and self._untrimmed:
            self.on_step(0, 0)
            with trio.move_on_after(TRIM_SECONDS):
                await self._wake.wait()
                return
            self._untrimmed = False
            await in_thread(engine.trim, self._limiter)
        else:
            await self._wake.wait()

    async def _admit(self, engine: Steps) -> None:
        """Jobs begin while there is room: their sessions are opened."""
        begun = []
        while len(self._active) < self._sessions and (ready := [job for job in self._waiting if job.ready]):
            share = Counter(job.owner for job in self._active)
            job = min(ready, key=lambda waiting: share[waiting.owner])  # the first of equals
            self._waiting.remove(job)
            self._active.append(job)
            begun.append(job)

        def open_sessions() -> list[Turn]:
            return [attempt(open_session, job, engine) for job in begun]

        if begun:
            for job, opened in zip(begun, await in_thread(open_sessions, self._limiter), strict=True):
                if opened.error is not None:
                    self._failed(job, opened.error)

    async def _drop(self) -> None:
        """Those that have an end, or have been given one, are in progress no more."""
        if over := [job for job in self._active if job.ended or job.stop_reason]:

            def close_sessions() -> None:
                for job in over:
                    job.close_session()

            await in_thread(close_sessions, self._limiter)
            for job in over:
                if not job.ended:
                    self._finish(job, job.stop_reason)
                self._active.remove(job)

    async def _run(self, engine: Steps, step: Step) -> None:
        start = time.monotonic()
        for job in step.jobs:
            job.started = job.started or start
        before = [job.generated for job in step.jobs]
        self.rates.begin(start)
        self.on_step(step.prompts, step.answers)
        self.running = self._untrimmed = True
        try:
            turns = await in_thread(lambda: carried(engine, step), self._limiter)
        finally:
            self.running = False
        end = time.monotonic()
        self.turns += 1
        self._pace.note(step.answers, step.rows, end - start)
        chosen = sum(job.generated for job in step.jobs) - sum(before)
        self.rates.step(
            Stepped(start, end, prompt_rows=step.prompts, answer_rows=step.answers, chosen=chosen, parts=len(step.jobs))
        )
        for job, turn in zip(step.jobs, turns, strict=True):
            self._tell(job, turn)
        self._active = [job for job in self._active if not job.ended]

    def _tell(self, job: Job, turn: Turn) -> None:
        """A job's client hears what came of its rows."""
        if turn.error is not None:
            self._failed(job, turn.error)
            return
        for reply in turn.replies:
            if not self._deliver(job, reply, None) and not job.ended:
                job.stop_reason = job.stop_reason or "gone"
        if job.ended:
            self._finish(job, job.ended)
        elif job.stop_reason and job.session is None:
            self._finish(job, job.stop_reason)

    def _failed(self, job: Job, error: Exception) -> None:
        if job.stop_reason:
            self._finish(job, job.stop_reason)
        elif isinstance(error, ContextFull) and job.generated:
            self._finish(job, "context")
        elif isinstance(error, ContextFull):
            self._fail(job, "too-long", str(error))
        elif isinstance(error, Interrupted):
            self._finish(job, "stopping")
        else:
            known = isinstance(error, StepFailed)
            log.error("request %s failed: %s", job.name, error, exc_info=None if known else error)
            self._fail(job, "failed", str(error) or type(error).__name__)

    def _fail(self, job: Job, code: str, message: str) -> None:
        job.ended = code
        self._deliver(job, protocol.Error(id=job.id, code=code, message=message), None)
        job.close()

    def _finish(self, job: Job, reason: str) -> None:
        job.ended = job.ended or reason
        if reason != "gone":
            for event in job.rest():
                self._deliver(job, event, None)
            reply, body = job.finish(reason)
            self._deliver(job, reply, body)
        job.close()


# What runs in the worker thread.


def attempt(act: Callable[..., list[protocol.Reply]], *given: object) -> Turn:
    try:
        return Turn(act(*given))
    except Exception as error:
        return Turn(error=error)


def open_session(job: Job, engine: Steps) -> list[protocol.Reply]:
    job.session = engine.new_session()
    return []


def carried(engine: Steps, step: Step) -> list[Turn]:
    """Run the step; each job takes what came of its rows. Sessions that are not needed any more are closed."""
    outcomes = stepped(engine, step)
    turns = []
    for job, outcome in zip(step.jobs, outcomes, strict=True):
        if outcome.error is not None:
            turns.append(Turn(error=outcome.error))
        else:  # the rows of a job that was ended meanwhile are dropped
            turns.append(Turn() if job.stop_reason else attempt(job.take, outcome))
        if job.ended or job.stop_reason or turns[-1].error is not None:
            job.close_session()
    return turns


def stepped(engine: Steps, step: Step) -> list[Outcome]:
    """Of its own, so that no frame which an error's traceback keeps knows the error, too: see `threads`."""
    try:
        return engine.step(step.parts)
    except Exception as error:  # the engine closes, or is broken: nobody's rows were computed
        return [Outcome(error=error)] * len(step.parts)
