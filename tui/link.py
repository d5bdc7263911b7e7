"""The monitor's line to the daemon: asks `status`, listens to telemetry, feeds the Collector.

Owns the sockets, and the decision when a silent daemon counts as away. A daemon that returns, also as another process
with another telemetry endpoint, is found again without being told.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from hearthd.daemon import protocol
from hearthd.tui.collector import Collector

ASK_SECONDS = 2.0  # between two `status` requests
PATIENCE_SECONDS = 2.5  # silence on both sockets after which the daemon is away


class Link:
    """`secure` prepares a socket for an endpoint before it connects there: keys, where the endpoint wants them."""

    def __init__(
        self,
        collector: Collector,
        *,
        secure: Callable[[zmq.Socket[Any], str], object] = lambda socket, endpoint: None,
        clock: Callable[[], float] = time.time,
        ask: float = ASK_SECONDS,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.collector = collector
        self.clock = clock
        self.ask = ask
        self.patience = patience
        self._secure = secure
        self._context = zmq.asyncio.Context()
        self._control = self._fresh()
        self._telemetry = self._socket(zmq.SUB)
        self._telemetry_endpoint = ""
        self._serial = 0
        self._actions: dict[str, str] = {}  # request id → what the operator asked for
        self._unanswered = False
        self._spent = False  # the control socket is to be replaced

    async def run(self) -> None:
        """Until cancelled."""
        self._telemetry.setsockopt(zmq.SUBSCRIBE, b"")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._asking())
                tasks.create_task(self._answers())
                tasks.create_task(self._news())
        finally:
            self._control.close(linger=0)
            self._telemetry.close(linger=0)
            self._context.term()

    async def act(self, request: protocol.Request, what: str) -> None:
        """Sends an operation; its outcome becomes an event that begins with `what`."""
        self._serial += 1
        request.id = f"top-{self._serial}"
        if self.collector.link != "up" or not await self._send(request):
            self.collector.note("error", "not-sent", f"{what}: the daemon is away", self.clock())
            return
        self._actions[str(request.id)] = what

    def _socket(self, kind: int) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        return socket

    def _fresh(self) -> zmq.asyncio.Socket:
        socket = self._socket(zmq.DEALER)
        self._secure(socket, self.collector.endpoint)
        socket.connect(self.collector.endpoint)
        return socket

    async def _send(self, request: protocol.Request) -> bool:
        try:
            # The empty frame makes the message one that a REQ socket could have sent.
            await self._control.send_multipart([b"", protocol.encode(request)], flags=zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    async def _asking(self) -> None:
        asked = float("-inf")
        while True:
            now = self.clock()
            if self._unanswered and now - max(asked, self.collector.heard) > self.patience:
                self.collector.lost(now)
                self._spent = True
            elif not self._unanswered and now - asked >= self.ask:
                asked = now
                self._serial += 1
                self._unanswered = await self._send(protocol.Status(id=f"status-{self._serial}"))
            await asyncio.sleep(min(0.25, self.ask))

    async def _answers(self) -> None:
        while True:
            if self._spent:
                # Requests queued for a daemon that is gone would all reach the next one. Replaced here, where nobody
                # can be waiting on the old socket.
                self._control.close(linger=0)
                self._control = self._fresh()
                self._actions.clear()
                self._spent = self._unanswered = False
            await self._receive(self._control, self._take_reply)

    async def _news(self) -> None:
        while True:
            await self._receive(self._telemetry, self._take_telemetry)

    async def _receive(self, socket: zmq.asyncio.Socket, take: Callable[[list[bytes]], None]) -> None:
        """Takes one message, if one comes within a moment."""
        poller = zmq.asyncio.Poller()
        poller.register(socket, zmq.POLLIN)
        if not await poller.poll(int(1000 * min(0.25, self.ask))):
            return
        try:
            take(await socket.recv_multipart(flags=zmq.DONTWAIT))
        except zmq.Again:
            return
        except msgspec.MsgspecError as error:
            self.collector.note("error", "bad-message", f"not understood: {error}", self.clock())

    def _take_reply(self, frames: list[bytes]) -> None:
        reply = protocol.decode_reply(frames[-1])
        now = self.clock()
        what = self._actions.pop(id := str(reply.id), "")
        if what:
            if isinstance(reply, protocol.Error):
                self.collector.note("error", reply.code, f"{what}: {reply.message}", now)
            elif isinstance(reply, protocol.Progress):
                self._actions[id] = what
            else:
                self.collector.note("info", "done", what, now)
            return
        if not id.startswith("status-"):
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
        if self._telemetry_endpoint:
            with contextlib.suppress(zmq.ZMQError):
                self._telemetry.disconnect(self._telemetry_endpoint)
        self._telemetry_endpoint = endpoint
        try:
            self._secure(self._telemetry, endpoint)
            self._telemetry.connect(endpoint)
        except (ValueError, zmq.ZMQError) as error:
            # `status` still answers: the screen lives on its numbers alone, once in a while.
            self.collector.note("error", "no-telemetry", f"{endpoint}: {error}", self.clock())

    def _take_telemetry(self, frames: list[bytes]) -> None:
        message = protocol.decode_telemetry(frames[-1])
        now = self.clock()
        if isinstance(message, protocol.Stats):
            self.collector.take_stats(message, now)
        elif isinstance(message, protocol.ResidencyNow):
            self.collector.take_residency(message, now)
        else:
            self.collector.take_event(message, now)
