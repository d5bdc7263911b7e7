"""The telemetry socket: stats at 4 Hz, residency at 1 Hz, events as they happen. Measures only while someone listens.

Numbers come from those who measured them: scheduler, residency, engine and the kernel's books on this process.
"""

from __future__ import annotations

import collections
import logging
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio
import zmq

from . import protocol
from .scheduler import Scheduler
from .sockets import Binding, Socket, make, pumping
from .tending import Tending

if TYPE_CHECKING:
    from .parts import Hearth

log = logging.getLogger(__name__)

STATS_SECONDS = 0.25
RESIDENCY_SECONDS = 1.0
AGAIN_SECONDS = 5.0  # at most between two tries of what could not be told
EVENTS_KEPT = 64
LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
STATS_FIELDS = frozenset(protocol.Stats.__struct_fields__)


def _proc_number(path: str, key: str) -> int:
    """A `key: NUMBER` line of a file of /proc/self; 0 where the kernel does not have it."""
    try:
        with open(f"/proc/self/{path}") as file:
            for line in file:
                if line.startswith(key):
                    return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return 0


class Telemetry:
    """Builds what is published and what `status` repeats. `hearth` is the opened model with its parts."""

    def __init__(
        self,
        context: zmq.Context[Any],
        binding: Binding,
        secure: Callable[[zmq.Socket[bytes]], None],
        hearth: Hearth,
        scheduler: Scheduler,
    ) -> None:
        # XPUB is PUB that tells what is subscribed to.
        self._raw = make(context, zmq.XPUB, linger=200, sndhwm=100, rcvhwm=1000, maxmsgsize=1024)
        secure(self._raw)
        binding.bind(self._raw)
        self._hearth = hearth
        self._scheduler = scheduler
        self._socket: Socket | None = None
        self._topics: set[bytes] = set()
        self._cpu = (time.monotonic(), time.process_time())
        self._cpu_percent = 0.0
        self.events: collections.deque[protocol.EventNow] = collections.deque(maxlen=EVENTS_KEPT)
        self.state = "mapped"
        self.tending = Tending(lambda code, message, level: self.say(code, message, level=level))

    # -- what is said ------------------------------------------------------------------------------------------------

    def event(self, event: protocol.EventNow) -> None:
        """Publish and keep one event. Called on the event loop's thread; whoever made it has logged it."""
        event.time = event.time or time.time()
        if event.state is not msgspec.UNSET:
            self.state = event.state
        self.events.append(event)
        self._publish(b"event", event)

    def say(self, code: str, message: str, *, level: protocol.Level = "info", state: str | None = None) -> None:
        log.log(LEVELS.get(level, logging.INFO), "%s", message)
        self.event(protocol.EventNow(level=level, code=code, message=message, state=state or msgspec.UNSET))

    def stats(self) -> protocol.Stats:
        """The numbers of this moment."""
        self.tending.look()
        now = time.monotonic()
        if (passed := now - self._cpu[0]) >= STATS_SECONDS / 2:
            used = time.process_time()
            self._cpu_percent = 100 * (used - self._cpu[1]) / passed
            self._cpu = (now, used)
        scheduler, jobs, rate = self._scheduler, self._scheduler.jobs(), self._scheduler.rates.now()
        stats = protocol.Stats(
            time=time.time(),
            state=self.state,
            prompt_rate=rate.prompt,
            generate_rate=rate.generate,
            steps_rate=rate.steps,
            prompt_rows=rate.prompt_rows,
            answer_rows=rate.answer_rows,
            parts=rate.parts,
            prompt_tokens=scheduler.rates.prompt_tokens,
            generated_tokens=scheduler.rates.generated_tokens,
            requests=[job.row(now) for job in jobs[:32]],
            sessions=len(jobs) - scheduler.waiting,
            waiting=scheduler.waiting,
            disk_read_bytes=_proc_number("io", "read_bytes:"),
            private_bytes=_proc_number("status", "RssAnon:") << 10,
            cpu_percent=self._cpu_percent,
        )
        if (residency := self._hearth.residency) is not None:
            none: dict[str, Any] = {}
            for name, value in self.tending.attempt("residency's numbers", residency.stats, none).items():
                if name in STATS_FIELDS:
                    setattr(stats, name, value)
        if (engine := self._hearth.engine) is not None:
            stats.layer = engine.layer
            guess = engine.lookahead
            stats.lookahead_recall = guess.get("recall")
            stats.lookahead_wasted_bytes = int(guess.get("wasted_bytes", 0))
            pool = engine.pool
            stats.pool_blocks, stats.pool_used, stats.pool_bytes = pool.blocks, pool.used, pool.bytes
        if self.state == "stopping":
            stats.state = self.state
        return stats

    def residency(self) -> protocol.ResidencyNow:
        unknown = protocol.ResidencyNow(time=time.time(), unknown_reason="not measured yet")
        if (residency := self._hearth.residency) is None:
            return unknown
        return self.tending.attempt("residency's picture", residency.snapshot, unknown)

    # -- saying it ---------------------------------------------------------------------------------------------------

    def _publish(self, topic: bytes, message: msgspec.Struct) -> None:
        if self._socket is None or not any(topic.startswith(wanted) for wanted in self._topics):
            return
        try:
            self._socket.send_nowait([topic, protocol.encode(message)])
        except zmq.Again:
            pass  # PUB drops for slow subscribers; that is its contract
        except zmq.ZMQError as error:
            log.debug("telemetry not sent: %s", error)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with AsyncExitStack() as stack:
            self._socket = await stack.enter_async_context(pumping(self._raw))
            nursery = await stack.enter_async_context(trio.open_nursery())
            for name, task in (
                ("hearing who subscribes", partial(self._listen, self._socket)),
                ("telemetry of stats", partial(self._repeat, STATS_SECONDS, b"stats", self.stats)),
                ("telemetry of residency", partial(self._repeat, RESIDENCY_SECONDS, b"residency", self.residency)),
            ):
                nursery.start_soon(self.tending.keep, name, task, AGAIN_SECONDS)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                nursery.cancel_scope.cancel()

    async def _listen(self, socket: Socket) -> None:
        while True:
            body = (await socket.recv())[0].bytes
            if body[:1] == b"\x01":
                self._topics.add(body[1:])
                for event in list(self.events)[-1:] if b"event".startswith(body[1:]) else []:
                    self._publish(b"event", event)
            elif body[:1] == b"\x00":
                self._topics.discard(body[1:])

    async def _repeat(self, seconds: float, topic: bytes, build: Callable[[], msgspec.Struct]) -> None:
        due = trio.current_time()
        while True:
            if any(topic.startswith(wanted) for wanted in self._topics):
                self._publish(topic, build())
            due = max(due + seconds, trio.current_time())
            await trio.sleep_until(due)


def process_start_seconds() -> float:
    """Seconds since this process was started, from the kernel (proc(5), field 22 of stat: clock ticks since boot)."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.process_time()  # what we have computed since then, where the kernel does not tell
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
