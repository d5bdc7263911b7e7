"""Replies on their way to clients: bounded for each client, so that one who does not read costs the others nothing.

The socket's own queue per client comes first (its high-water mark), then ours. When both are full the client's
messages are dropped for one error, and whoever produces for it is told.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import trio
import zmq

from . import protocol
from .sockets import Socket

log = logging.getLogger(__name__)

PENDING_MESSAGES = 1024
PENDING_BYTES = 8 << 20
RETRY_SECONDS = 0.02  # a ROUTER does not say which client reads again
GIVE_UP_SECONDS = 30.0


class Pending:
    """What one client has not taken yet."""

    def __init__(self) -> None:
        self.messages: deque[list[bytes]] = deque()
        self.bytes = 0
        self.since = trio.current_time()
        self.overflowed = False

    def push(self, frames: list[bytes]) -> None:
        self.messages.append(frames)
        self.bytes += sum(map(len, frames))


class Outbox:
    """Sends without ever waiting; `gone` is told of every client that is away or that takes too little."""

    def __init__(self, socket: Socket, gone: Callable[[bytes], None]) -> None:
        self._socket = socket
        self._gone = gone
        self._pending: dict[bytes, Pending] = {}
        self._some = trio.Event()

    def send(self, peer: bytes, envelope: list[bytes], reply: protocol.Reply, body: bytes | None = None) -> bool:
        """False when the client is gone or reads too slowly to be sent more."""
        frames = [*envelope, protocol.encode(reply)]
        if body is not None:
            frames.append(body)
        pending = self._pending.get(peer)
        if pending is None:
            sent = self._try(peer, frames)
            if sent is not None:
                return sent
            pending = self._pending[peer] = Pending()
            self._some.set()
        if pending.overflowed:
            return False
        if len(pending.messages) >= PENDING_MESSAGES or (pending.messages and pending.bytes > PENDING_BYTES):
            message = f"{len(pending.messages)} replies were waiting to be read; they are dropped and the request ended"
            log.warning("a client does not read: %s", message)
            pending.messages.clear()
            pending.bytes = 0
            pending.overflowed = True
            error = protocol.Error(id=reply.id, code="slow-reader", message=message)
            pending.push([*envelope, protocol.encode(error)])
            return False
        pending.push(frames)
        return True

    def _try(self, peer: bytes, frames: list[bytes]) -> bool | None:
        """True when sent, False when the client is gone, None when its queue is full."""
        try:
            self._socket.send_nowait(frames)
        except zmq.Again:
            return None
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.forget(peer)
            self._gone(peer)
            return False
        return True

    def forget(self, peer: bytes) -> None:
        self._pending.pop(peer, None)

    @property
    def empty(self) -> bool:
        return not self._pending

    async def run(self) -> None:
        """Offers what is pending again and again, as long as the daemon runs."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            while self._pending:
                await trio.sleep(RETRY_SECONDS)
                for peer in list(self._pending):
                    self._flush(peer)

    def _flush(self, peer: bytes) -> None:
        pending = self._pending[peer]
        while pending.messages:
            sent = self._try(peer, pending.messages[0])
            if sent is None:
                if trio.current_time() > pending.since + GIVE_UP_SECONDS and pending.overflowed:
                    self._pending.pop(peer, None)  # it did not even take the error
                return
            if not sent:
                return
            pending.bytes -= sum(map(len, pending.messages.popleft()))
            pending.since = trio.current_time()
        self._pending.pop(peer, None)
