"""Messages on their way in: what is short is read at once, what is long in a thread, in the order of each client.

Owns the bytes that wait to be read, and bounds them for each client and in total. Knows no operation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio
import zmq

from . import protocol, reading
from .places import Kind, NoPlace

WAITING_BYTES = 4 * protocol.MESSAGE_LIMIT  # of all clients' messages that wait to be read
CLIENT_BYTES = 2 * protocol.MESSAGE_LIMIT
OVERHEAD = 512  # what a waiting message takes besides its bytes


@dataclass(slots=True)
class Letter:
    """One message with the way back to its sender."""

    peer: bytes  # the connection
    owner: str  # whose connection it is
    envelope: list[bytes]
    frame: zmq.Frame
    here: bool = True  # the connection was still there when it came

    @property
    def size(self) -> int:
        return len(self.frame) + OVERHEAD


Read = Callable[[Letter, protocol.AnyRequest | protocol.Error], None]


class Inbox:
    """`read` is told every message's request, or the error that it deserves, on the event loop's thread."""

    def __init__(self, nursery: trio.Nursery, read: Read) -> None:
        self._nursery = nursery
        self._read = read
        self._lines: dict[bytes, deque[Letter]] = {}
        self._bytes = Kind(WAITING_BYTES, CLIENT_BYTES, "bytes of messages wait to be read")
        self._limiter = trio.CapacityLimiter(1)  # a second thread would hold the same GIL

    def put(self, letter: Letter) -> None:
        line = self._lines.get(letter.peer)
        if line is None and len(letter.frame) <= reading.SMALL:
            self._read(letter, reading.read(letter.frame.bytes))
            return
        try:
            self._bytes.take(letter.owner, letter.size)
        except NoPlace as error:
            id = reading.first_id(bytes(letter.frame.buffer[:2048]))
            self._read(letter, protocol.Error(id=id, code="busy", message=str(error)))
            return
        if line is None:
            line = self._lines[letter.peer] = deque()
            self._nursery.start_soon(self._work, letter.peer, line)
        line.append(letter)

    async def _work(self, peer: bytes, line: deque[Letter]) -> None:
        """Reads a line to its end."""
        while line:
            letter = line.popleft()
            try:
                if len(letter.frame) > reading.SMALL:
                    found = await trio.to_thread.run_sync(_read, letter.frame, limiter=self._limiter)
                else:
                    found = reading.read(letter.frame.bytes)
                    await trio.lowlevel.checkpoint()
            finally:
                self._bytes.add(letter.owner, -letter.size)
            if self._lines.get(peer) is line:  # else the client went away meanwhile
                self._read(letter, found)
            del letter, found
        if self._lines.get(peer) is line:
            del self._lines[peer]

    def forget(self, peer: bytes) -> None:
        """The client went away: nobody waits for what it sent."""
        line = self._lines.pop(peer, None)
        while line:
            letter = line.popleft()
            self._bytes.add(letter.owner, -letter.size)


def _read(frame: zmq.Frame) -> protocol.AnyRequest | protocol.Error:
    return reading.read(frame.bytes)
