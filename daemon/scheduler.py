"""Requests to steps: who has the next turn. Knows jobs and the engine, no sockets and no tokens.

Jobs in progress take turns one by one; a turn is a chunk of a prompt, a token, or a chunk to score, and one hop into
the worker thread. Waiting requests start in the order of how little their client has in progress already. What waits is
bounded, in requests and in bytes: when it is too much, the newest of the client that has most waiting gives way.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from . import protocol
from .generation import Job
from .protocol import Body
from .threads import in_thread

log = logging.getLogger(__name__)

TRIM_SECONDS = 5.0
QUEUE_BYTES = 32 << 20  # of requests that wait

Deliver = Callable[[Job, protocol.Reply, Body | None], bool]


class Busy(Exception):
    """No room for another waiting request."""


class Rate:
    """Tokens per second over the last second."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float, int]] = deque()

    def add(self, start: float, end: float, count: int) -> None:
        self._marks.append((start, end, count))
        self._forget(end)

    def _forget(self, now: float) -> None:
        while self._marks and self._marks[0][1] < now - 1.0:
            self._marks.popleft()

    def now(self) -> float:
        moment = time.monotonic()
        self._forget(moment)
        if not self._marks:
            return 0.0
        return sum(mark[2] for mark in self._marks) / max(1.0, self._marks[-1][1] - self._marks[0][0])


class Scheduler:
    """One engine's turns. `deliver` sends a reply and says whether the client still takes any."""

    def __init__(self, deliver: Deliver, *, sessions: int, queue: int, queue_bytes: int = QUEUE_BYTES) -> None:
        self._deliver = deliver
        self._sessions = sessions
        self._queue = queue
        self._queue_bytes = queue_bytes
        self._engine: Any = None
        self._active: deque[Job] = deque()
        self._waiting: list[Job] = []
        self._current: Job | None = None  # whose turn it is, until all that it brought is delivered
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._idle.set()
        self._limiter = trio.CapacityLimiter(1)
        self._untrimmed = False
        self.on_prefill: Callable[[bool, int], None] = lambda running, tokens: None
        self.prompt_rate, self.generate_rate = Rate(), Rate()
        self.prompt_tokens = self.generated_tokens = self.turns = 0

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

    def use(self, engine: Any) -> None:
        """The engine is there: turns may begin."""
        self._engine = engine
        self._wake.set()

    def jobs(self) -> list[Job]:
        return ([self._current] if self._current else []) + list(self._active) + self._waiting

    def end(self, job: Job, reason: str) -> None:
        """End a job with a reason, also in the middle of its step."""
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

    @property
    def running(self) -> bool:
        return self._current is not None

    async def until_idle(self) -> None:
        while self.jobs():
            await self._idle.wait()

    # -- the turns ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs as long as the daemon."""
        while True:
            self._admit()
            if self._engine is None or not self._active:
                if not self.jobs():
                    self._idle.set()
                await self._rest()
                continue
            job = self._active.popleft()
            self._current = job
            try:
                await self._turn(job)
            finally:
                self._current = None
            if not job.ended:
                self._active.append(job)

    async def _rest(self) -> None:
        """Until there is something to do; after a while of nothing the engine's buffers are given back."""
        self._wake = trio.Event()
        if self._engine is not None and self._untrimmed:
            with trio.move_on_after(TRIM_SECONDS):
                await self._wake.wait()
                return
            self._untrimmed = False
            await trio.to_thread.run_sync(self._engine.trim, limiter=self._limiter)
        else:
            await self._wake.wait()

    def _admit(self) -> None:
        if self._engine is None:
            return
        while len(self._active) < self._sessions and (ready := [job for job in self._waiting if job.ready]):
            share = Counter(job.owner for job in self._active)
            job = min(ready, key=lambda waiting: share[waiting.owner])  # the first of equals
            self._waiting.remove(job)
            self._active.append(job)

    async def _turn(self, job: Job) -> None:
        if job.stop_reason:
            self._finish(job, job.stop_reason)
            return
        before, generated, prefill = job.prompt_done, job.generated, job.in_prompt
        start = time.monotonic()
        job.started = job.started or start
        if prefill:
            self.on_prefill(True, min(len(job.prompt) - before, self._engine.batch))
        try:
            events = await in_thread(partial(self._work, job), self._limiter)
        except Exception as error:
            self._failed(job, error)
            return
        finally:
            if prefill:
                self.on_prefill(False, 0)
        self.turns += 1
        self._untrimmed = True
        end = time.monotonic()
        if count := job.prompt_done - before:
            self.prompt_tokens += count
            self.prompt_rate.add(start, end, count)
        if (count := job.generated - generated) and not prefill:
            self.generate_rate.add(start, end, count)
        self.generated_tokens += job.generated - generated
        for event in events:
            if not job.ended and not self._deliver(job, event, None):
                job.stop_reason = job.stop_reason or "gone"
            elif job.ended:
                self._deliver(job, event, None)
        if job.ended:
            self._finish(job, job.ended)
        elif job.stop_reason:
            self._finish(job, job.stop_reason)

    def _work(self, job: Job) -> list[protocol.Reply]:
        if job.session is None:
            job.session = self._engine.new_session()
        return job.turn(self._engine)

    def _failed(self, job: Job, error: Exception) -> None:
        kind = type(error).__name__
        if job.stop_reason:
            self._finish(job, job.stop_reason)
        elif kind == "ContextFull":
            if job.generated:
                self._finish(job, "context")
            else:
                self._fail(job, "too-long", str(error))
        else:
            log.error("request %s failed: %s", job.name, error, exc_info=kind != "StepFailed")
            self._fail(job, "failed", str(error) or kind)

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
