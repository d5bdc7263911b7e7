"""The daemon's life in one nursery: open, serve ∥ warm ∥ publish, drain. Owns start, order and end; computes nothing.

READY is said as soon as the model is mapped and the sockets are bound. What is slow (tokenizer, engine, warming)
goes on afterwards, and requests wait for what they need.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
import zmq

from . import endpoints, exit_codes, protocol
from .config import Config
from .control import Control
from .notify import Notifier
from .operations import Operations
from .protocol import Body
from .scheduler import Scheduler
from .security import Keys
from .sockets import Binding
from .telemetry import Telemetry, process_start_seconds
from .tending import first_cause

if TYPE_CHECKING:
    from .generation import Job
    from .parts import Hearth, OpenHearth

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
AGAIN_SECONDS = 1.0  # at most between two tries of the watchdog
REPORT_SECONDS = 1.0  # between two looks at what the service manager is told
SIGNALS = (signal.SIGTERM, signal.SIGINT)
STATE_FIELDS = ("state", "warm_percent", "state_note")


class Service:
    """One daemon. `open_hearth` maps the model and returns the parts that serve it (see `hearth.Hearth`)."""

    def __init__(self, config: Config, open_hearth: OpenHearth, version: str) -> None:
        self._config = config
        self._open_hearth = open_hearth
        self._version = version
        self._notifier = Notifier()
        self._started = time.monotonic()
        self._ready_seconds = 0.0
        self._stop_asked = trio.Event()
        self._stop_reason = ""
        self._failure: BaseException | None = None

    async def run(self, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> int:
        """Serve until told to stop; the exit code. Raises what opening the model or binding raises."""
        config = self._config
        control_endpoint = endpoints.control_to_bind(config.control, config.name)
        telemetry_endpoint = endpoints.telemetry_to_bind(config.telemetry, control_endpoint)
        keys = Keys.for_daemon(config.keys, [control_endpoint, telemetry_endpoint])
        bindings: list[Binding] = []
        context: zmq.Context[Any] = zmq.Context()
        hearth: Hearth | None = None
        try:
            for endpoint in (control_endpoint, telemetry_endpoint):
                bindings.append(Binding(endpoint))
            hearth = self._hearth = self._open_hearth(config)
            async with keys.answering(context):
                self._scheduler = Scheduler(
                    self._deliver,
                    sessions=config.sessions,
                    queue=config.queue,
                    step_seconds=config.step_ms / 1000,
                )
                self._control = Control(context, bindings[0], keys.secure)
                self._telemetry = Telemetry(context, bindings[1], keys.secure, hearth, self._scheduler)
                self._endpoints = (control_endpoint, telemetry_endpoint)
                self._operations = Operations(
                    hearth, config, self._scheduler, self._telemetry, stop=self.stop, status=self.status_data
                )
                self._control.on_gone(self._operations.client_gone)
                async with trio.open_nursery() as nursery:
                    await nursery.start(self._control.serve, self._operations.table())
                    await nursery.start(self._telemetry.run)
                    await nursery.start(self._watch_signals)  # who hears READY may send SIGTERM at once
                    nursery.start_soon(self._telemetry.tending.keep, "the watchdog", self._watchdog, AGAIN_SECONDS)
                    nursery.start_soon(self._live, task_status)
                    await self._stop_asked.wait()
                    await self._drain()
                    nursery.cancel_scope.cancel()
        finally:
            if hearth is not None:
                await trio.to_thread.run_sync(hearth.close)
            for binding in bindings:
                binding.close()
            context.destroy(linger=500)
            self._notifier.close()
        if self._failure is not None:
            from .model.gguf import ModelError

            return exit_codes.DATA if isinstance(self._failure, ModelError) else exit_codes.FAILURE
        return exit_codes.OK

    def stop(self, reason: str, failure: BaseException | None = None) -> None:
        """Begin to end; the first call counts."""
        if not self._stop_asked.is_set():
            self._stop_reason = reason
            self._failure = failure
            self._stop_asked.set()

    # -- serving -----------------------------------------------------------------------------------------------------

    async def _live(self, task_status: trio.TaskStatus[str]) -> None:
        hearth, telemetry = self._hearth, self._telemetry
        if self._config.warm != "before-ready":
            self._ready(task_status)
        keep = telemetry.tending.keep
        hearth.begin(telemetry.event)
        self._tell_warnings()
        async with trio.open_nursery() as nursery:
            if hearth.residency is not None:
                nursery.start_soon(hearth.residency.run)
            if self._notifier.listening:
                nursery.start_soon(keep, "telling the service manager", self._report)
            try:
                await hearth.prepare()
            except Exception as caught:
                error = first_cause(caught)
                log.debug("the model cannot be served", exc_info=error)
                telemetry.say("engine", f"the model cannot be served: {error}", level="error")
                self.stop(f"the model cannot be served: {error}", error)
                return
            gc.freeze()  # what has been made stays
            gc.enable()  # the command line turned it off
            self._tell_warnings()  # of the tokenizer, the template, placement and the trace
            self._scheduler.on_step = hearth.step_begins
            assert hearth.engine is not None  # it has been prepared
            self._scheduler.use(hearth.engine)
            nursery.start_soon(self._scheduler.run)
            nursery.start_soon(keep, "following processors", partial(hearth.follow, telemetry.tending.say))
            if self._config.warm == "before-ready":
                while not hearth.warmed():
                    self._notifier.more_time(10, self._status_line())
                    await trio.sleep(0.1)
                self._ready(task_status)
            telemetry.say("serving", "answering requests")

    def _tell_warnings(self) -> None:
        """Those that no event has told yet."""
        told = {(event.code, event.message) for event in self._telemetry.events}
        for warning in self._hearth.warnings:
            if (warning.code, warning.message) not in told:
                self._telemetry.say(warning.code, warning.message, level="warning")

    def _ready(self, task_status: trio.TaskStatus[str]) -> None:
        self._ready_seconds = process_start_seconds()
        self._notifier.ready(self._status_line())
        log.info("ready after %.2f s: %s", self._ready_seconds, self._endpoints[0])
        task_status.started(self._endpoints[0])

    def _status_line(self) -> str:
        residency = self._hearth.residency
        if residency is None or self._telemetry.state == "stopping":
            return self._telemetry.state
        least: dict[str, Any] = {"state": self._telemetry.state}
        stats = self._telemetry.tending.attempt("residency's numbers", residency.stats, least)
        return protocol.Stats(**{name: stats[name] for name in STATE_FIELDS if name in stats}).state_line()

    async def _report(self) -> None:
        while True:
            self._notifier.status(self._status_line())
            await trio.sleep(REPORT_SECONDS)

    async def _watchdog(self) -> None:
        """Alive means: this loop turns, and a step that is running gets somewhere."""
        if (seconds := self._notifier.watchdog_seconds) is None:
            return
        last: tuple[int, ...] | None = None
        moved = trio.current_time()
        while True:
            now = trio.current_time()
            mark = self._progress() if self._scheduler.running else None
            if mark is None or mark != last:
                moved, last = now, mark
            if now - moved < seconds:
                self._notifier.alive()
            else:
                log.error("the running step has not moved for %.0f s", now - moved)
            await trio.sleep(seconds / 2)

    def _progress(self) -> tuple[int, ...]:
        engine = self._hearth.engine
        return (self._scheduler.turns, engine.layer if engine is not None else -1, self._hearth.bytes_read())

    def _deliver(self, job: Job, reply: protocol.Reply, body: Body | None) -> bool:
        return self._operations.deliver(job, reply, body)

    def status_data(self) -> protocol.StatusData:
        hearth = self._hearth
        stats = self._telemetry.stats()
        events, attempt = self._telemetry.events, self._telemetry.tending.attempt
        data = protocol.StatusData(
            version=self._version,
            pid=os.getpid(),
            uptime=time.monotonic() - self._started,
            control=self._endpoints[0],
            telemetry=self._endpoints[1],
            model=hearth.info,
            options=hearth.options(),
            isa=hearth.engine.isa if hearth.engine is not None else "",
            ready_seconds=self._ready_seconds,
            start_line=attempt("the start line", hearth.start_line, ""),
            stats=stats,
            residency=self._telemetry.residency(),
            events=list(events)[-16:],
        )
        if hearth.residency is not None:
            status: dict[str, Any] = attempt("residency's status", hearth.residency.status, {})
            data.warm = dict(status.get("warm", {}))
            data.heat = dict(status.get("heat", {}))
            data.budget = dict(status.get("budget", {}))
            data.arena = dict(status.get("arena", {}))
            data.lookahead = dict(status.get("lookahead", {}))
        data.warnings = [*hearth.warnings, *self._telemetry.tending.warnings]  # of what has just failed, too
        return data

    # -- ending ------------------------------------------------------------------------------------------------------

    async def _watch_signals(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(*SIGNALS) as received:
            task_status.started()
            async for number in received:
                if self._stop_asked.is_set():
                    log.warning("second signal: leaving at once")
                    os._exit(exit_codes.for_signal(number))
                self.stop(signal.Signals(number).name)

    async def _drain(self) -> None:
        """Answers in progress get `drain_seconds`, then end with the reason `stopping`; heat is saved by residency."""
        self._operations.stopping = True
        running = len(self._scheduler.jobs())
        self._notifier.stopping("stopping")
        text = f"stopping ({self._stop_reason}): {running} requests in progress"
        self._telemetry.say("state", text, state="stopping")
        if self._hearth.engine is None:
            self._scheduler.end_all("stopping")
        with trio.move_on_after(self._config.drain_seconds):
            await self._scheduler.until_idle()
        self._scheduler.end_all("stopping")
        if self._scheduler.running and (engine := self._hearth.engine) is not None:  # its step carries nobody any more
            await trio.to_thread.run_sync(engine.close)
        with trio.move_on_after(FLUSH_SECONDS + self._config.drain_seconds):
            await self._scheduler.until_idle()
        await self._control.flushed(FLUSH_SECONDS)
        await trio.to_thread.run_sync(self._hearth.save)


def serve(config: Config, open_hearth: OpenHearth, version: str) -> int:
    """Run a daemon in this process; the exit code."""

    async def main() -> int:
        return await Service(config, open_hearth, version).run()

    return trio.run(main)
