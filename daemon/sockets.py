"""ZeroMQ sockets under trio, and binding that takes nobody's place. Knows nothing of messages.

ZMQ_FD is edge-triggered and shared by both directions: any call on the socket may swallow the edge. So: try first and
park only on EAGAIN; after every call made while somebody is parked, read ZMQ_EVENTS again and unpark; one pump task
per socket turns edges into unparks. (Facts: zmq_getsockopt(3), ZMQ_FD and ZMQ_EVENTS.)
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio
import zmq

from . import endpoints
from .trust import distrust

Frames = Sequence[bytes | memoryview | zmq.Frame]


class Taken(OSError):
    """Another living process holds the endpoint."""


class Socket:
    """One ZeroMQ socket. `recv` and `send` are checkpoints; the `_nowait` forms never are."""

    def __init__(self, raw: zmq.Socket[bytes]) -> None:
        self.raw = raw
        self._fd = int(raw.getsockopt(zmq.FD))
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()

    def _settle(self) -> int:
        events = int(self.raw.getsockopt(zmq.EVENTS))
        if events & zmq.POLLIN:
            self._readers.unpark_all()
        if events & zmq.POLLOUT:
            self._writers.unpark_all()
        return events

    def _after_call(self) -> None:
        if self._readers or self._writers:
            self._settle()

    def writable(self) -> bool:
        """Whether a send would not wait now; wakes whoever this look would otherwise have left parked."""
        return bool(self._settle() & zmq.POLLOUT)

    async def pump(self) -> None:
        """Runs as long as the socket is used."""
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            self._settle()

    async def recv(self, most: int = 1 << 30) -> list[zmq.Frame]:
        """The next message's frames (as zmq.Frame: `.bytes`, and `.get` for the sender's properties).

        Of a message with more than `most` frames the first ones; the others are dropped.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        parked = False
        while True:
            try:
                message = [self.raw.recv(zmq.DONTWAIT, copy=False)]
            except zmq.Again:
                if self._writers:
                    self._settle()
                await self._readers.park()
                parked = True
            else:
                while message[-1].more and len(message) < most:  # a message is there whole, or not at all
                    message.append(self.raw.recv(zmq.DONTWAIT, copy=False))
                if message[-1].more:
                    await self._drop_the_rest()
                self._after_call()
                if not parked:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return message

    async def readable(self) -> None:
        """Until there is something to receive; it stays there."""
        await trio.lowlevel.checkpoint()
        while not self._settle() & zmq.POLLIN:
            await self._readers.park()

    async def _drop_the_rest(self) -> None:
        """A message may have a million frames: the others have their turns in between."""
        dropped = 1
        while self.raw.recv(zmq.DONTWAIT, copy=False).more:
            if (dropped := dropped + 1) % 64 == 0:
                await trio.lowlevel.cancel_shielded_checkpoint()

    def recv_nowait(self) -> list[zmq.Frame]:
        """Raises zmq.Again when nothing is there."""
        try:
            return self.raw.recv_multipart(zmq.DONTWAIT, copy=False)
        finally:
            self._after_call()

    def send_nowait(self, frames: Frames) -> None:
        """Raises zmq.Again when the peer's queue is full, zmq.ZMQError(EHOSTUNREACH) when a ROUTER knows it no more."""
        try:
            self.raw.send_multipart(frames, zmq.DONTWAIT)
        finally:
            self._after_call()

    async def send(self, frames: Frames) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        parked = False
        while True:
            try:
                self.raw.send_multipart(frames, zmq.DONTWAIT)
            except zmq.Again:
                # A throttled send may look at a stale pipe: settle the events before parking.
                if self._settle() & zmq.POLLOUT:
                    await trio.lowlevel.checkpoint()
                    continue
                await self._writers.park()
                parked = True
            else:
                self._after_call()
                if not parked:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return


class Binding:
    """The right to an endpoint: an exclusive lock beside the socket file, and the file's removal at the end.

    A second bind on an ipc path would steal it silently, and a dead daemon leaves its file behind; the lock tells the
    two apart. Raises Taken, and EndpointError where no socket of ours can or should be.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._path = endpoints.ipc_path(endpoint)
        self._lock = -1
        if self._path is None:
            return
        try:
            self._lock = self._locked(self._path)
        except BlockingIOError:
            raise Taken(f"{endpoint} is served by another hearthd: --name starts one beside it") from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise endpoints.EndpointError(f"{endpoint}: {where}{error.strerror}") from None

    def _locked(self, path: Path) -> int:
        before = os.umask(0o027)  # of a directory that is made on the way, too, nobody else makes use
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        finally:
            os.umask(before)
        lock_path = path.with_name(path.name + ".lock")
        if why := distrust(path) or distrust(lock_path):
            raise endpoints.EndpointError(f"{self.endpoint}: {why}")
        # ZeroMQ removes what lies there before it binds: that must be a dead daemon's socket and nobody's file.
        if path.exists() and not path.is_socket():
            raise endpoints.EndpointError(f"{self.endpoint}: there is something that is no socket")
        # 0660 like the socket: a second user of the group may wait for us, nobody else may hold us up.
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise
        return lock

    def bind(self, raw: zmq.Socket[bytes]) -> None:
        """Bind with a socket file that owner and group may use."""
        before = os.umask(0o117)
        try:
            raw.bind(self.endpoint)
        except zmq.ZMQError as error:
            if error.errno == errno.EADDRINUSE:
                raise Taken(f"{self.endpoint} is in use by another program") from None
            text = {errno.ENODEV: "no such host or interface", errno.EADDRNOTAVAIL: "not an address of this machine"}
            number = error.errno or 0
            reason = text.get(number, os.strerror(number))
            raise endpoints.EndpointError(f"{self.endpoint}: {reason}") from None
        finally:
            os.umask(before)

    def close(self) -> None:
        if self._lock >= 0:
            assert self._path is not None
            with suppress(OSError):
                self._path.unlink()
            os.close(self._lock)  # the lock's file stays: unlinking it would let two locks live
            self._lock = -1


@asynccontextmanager
async def pumping(raw: zmq.Socket[bytes], *, close: bool = True) -> AsyncIterator[Socket]:
    """A Socket whose pump runs for the body; the raw socket is closed afterwards with the linger it has."""
    sock = Socket(raw)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sock.pump, name="zmq pump")
            try:
                yield sock
            finally:
                nursery.cancel_scope.cancel()
    finally:
        if close:
            raw.close()


def make(context: zmq.Context[Any], kind: int, **options: object) -> zmq.Socket[bytes]:
    """A raw socket with options by their pyzmq attribute names (`sndhwm=100`)."""
    raw: zmq.Socket[bytes] = context.socket(kind)
    for name, value in options.items():
        setattr(raw, name, value)
    return raw
