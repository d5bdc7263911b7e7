"""The monitor's line to the daemon: asks `status`, listens to telemetry, feeds the Collector.

Owns the sockets, and the decision when a silent daemon counts as away. A daemon that returns, also as another process
with another telemetry endpoint, is found again without being told.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from hearthd.daemon import protocol
from hearthd.tui.collector import Collector

ASK_SECONDS = 1.0  # between two `status` requests
PATIENCE_SECONDS = 2.5  # silence on both sockets after which the daemon is away


class Link:
    def __init__(
        self,
        collector: Collector,
        *,
        clock: Callable[[], float] = time.time,
        ask: float = ASK_SECONDS,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.collector = collector
        self.clock = clock
        self.ask = ask
        self.patience = patience
        self._context = zmq.asyncio.Context()
        self._control: zmq.asyncio.Socket | None = None
        self._telemetry: zmq.asyncio.Socket | None = None
        self._telemetry_endpoint = ""
        self._serial = 0
        self._actions: dict[str, str] = {}  # request id → what the operator asked for
        self._unanswered = False

    async def run(self, changed: Callable[[], None]) -> None:
        """Runs until cancelled; calls `changed` after the collector has learnt something."""
        self._reconnect()
        self._telemetry = self._socket(zmq.SUB)
        self._telemetry.setsockopt(zmq.SUBSCRIBE, b"")
        try:
            await asyncio.gather(
                self._asking(changed),
                self._receiving(lambda: self._control, self._take_reply, changed),
                self._receiving(lambda: self._telemetry, self._take_telemetry, changed),
            )
        finally:
            for socket in (self._control, self._telemetry):
                if socket is not None:
                    socket.close(linger=0)
            self._context.term()

    async def act(self, request: protocol.Request, what: str) -> None:
        """Sends an operation; its outcome becomes an event that begins with `what`."""
        self._serial += 1
        request.id = f"top-{self._serial}"
        if self.collector.link != "up" or not await self._send(request):
            self.collector.note("error", "not-sent", f"{what}: the daemon is away", self.clock())
            return
        self._actions[request.id] = what

    def _socket(self, kind: int) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        return socket

    def _reconnect(self) -> None:
        # A fresh socket: requests queued for a daemon that is gone would all reach the next one.
        if self._control is not None:
            self._control.close(linger=0)
        self._control = self._socket(zmq.DEALER)
        self._control.connect(self.collector.endpoint)
        self._unanswered = False

    async def _send(self, request: protocol.Request) -> bool:
        assert self._control is not None
        try:
            # The empty frame makes the message one that a REQ socket could have sent.
            await self._control.send_multipart([b"", protocol.encode(request)], flags=zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    async def _asking(self, changed: Callable[[], None]) -> None:
        while True:
            now = self.clock()
            if now - self.collector.heard > self.patience and self._unanswered:
                self.collector.lost(now)
                self._reconnect()
                changed()
            if not self._unanswered:
                self._serial += 1
                self._unanswered = await self._send(protocol.Status(id=f"status-{self._serial}"))
            await asyncio.sleep(self.ask)

    async def _receiving(
        self,
        socket: Callable[[], zmq.asyncio.Socket | None],
        take: Callable[[list[bytes]], Any],
        changed: Callable[[], None],
    ) -> None:
        while True:
            current = socket()
            assert current is not None
            # Waiting is bounded because _reconnect may replace the socket under a pending receive.
            if not await _readable(current, self.ask):
                continue
            with contextlib.suppress(zmq.ZMQError):
                frames = await current.recv_multipart(flags=zmq.DONTWAIT)
                try:
                    take(frames)
                except msgspec.MsgspecError as error:
                    self.collector.note("error", "bad-message", f"not understood: {error}", self.clock())
                changed()

    def _take_reply(self, frames: list[bytes]) -> None:
        reply = protocol.decode_reply(frames[-1])
        now = self.clock()
        what = self._actions.pop(reply.id, "")
        if what:
            if isinstance(reply, protocol.Error):
                self.collector.note("error", reply.code, f"{what}: {reply.message}", now)
            elif isinstance(reply, protocol.Progress):
                self._actions[reply.id] = what
            else:
                self.collector.note("info", "done", what, now)
            return
        if not reply.id.startswith("status-"):
            return
        self._unanswered = False
        if isinstance(reply, protocol.Error):
            self.collector.note("error", reply.code, f"status: {reply.message}", now)
        elif isinstance(reply, protocol.Result):
            status = msgspec.convert(reply.data, protocol.StatusData)
            self.collector.take_status(status, now)
            self._listen(status.telemetry)

    def _listen(self, endpoint: str) -> None:
        if not endpoint or endpoint == self._telemetry_endpoint:
            return
        assert self._telemetry is not None
        if self._telemetry_endpoint:
            with contextlib.suppress(zmq.ZMQError):
                self._telemetry.disconnect(self._telemetry_endpoint)
        self._telemetry.connect(endpoint)
        self._telemetry_endpoint = endpoint

    def _take_telemetry(self, frames: list[bytes]) -> None:
        message = protocol.decode_telemetry(frames[-1])
        now = self.clock()
        if isinstance(message, protocol.Stats):
            self.collector.take_stats(message, now)
        elif isinstance(message, protocol.ResidencyNow):
            self.collector.take_residency(message, now)
        else:
            self.collector.take_event(message, now)


async def _readable(socket: zmq.asyncio.Socket, seconds: float) -> bool:
    """Whether a message is there within `seconds`; a socket closed meanwhile has none."""
    try:
        waiting: Awaitable[int] = socket.poll(int(seconds * 1000), zmq.POLLIN)
        return bool(await waiting)
    except (zmq.ZMQError, asyncio.CancelledError) as error:
        if isinstance(error, asyncio.CancelledError) and not socket.closed:
            raise
        await asyncio.sleep(0)
        return False
