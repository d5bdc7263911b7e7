"""Replies on their way to clients: bounded in bytes for each client and in total, so that one who does not read costs
the others nothing.

Bytes count from the moment at which a reply is promised until libzmq has given them to the kernel. What is promised
(`reserve`) has not been computed yet: a client that is full is refused before the work is done. libzmq gets little at a
time: its own queue for a client is counted in messages, so large parts go one after the other, and libzmq says when it
has let go of each. A client that takes too little loses what waits for it, for one error; one that takes nothing at all
loses its connection.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable

import trio
import zmq

from . import protocol
from .protocol import Body
from .sockets import Frames, Socket

log = logging.getLogger(__name__)

CLIENT_BYTES = 32 << 20  # unread and promised, of one client: with a reply being made, under 64 MiB
TOTAL_BYTES = 256 << 20  # of all clients
PENDING_MESSAGES = 1024  # of one connection: a stream that nobody reads ends while it is short
MESSAGE_BYTES = 256  # what a message costs beside its bytes
QUEUED = 16  # messages that libzmq holds for one connection (ZMQ_SNDHWM)
LARGE = 16 << 10  # from here on a part is handed over without a copy, and libzmq says when it is done with it
WINDOW = 1 << 20  # bytes of such parts that libzmq may have at a time, if it is more than one
FIRST_RETRY, LAST_RETRY = 0.001, 0.25  # seconds: a ROUTER does not say which client reads again
GIVE_UP_SECONDS = 30.0  # without anything taken, for who has a lot to take
PATIENT_BYTES = 1 << 20  # less than that may wait as long as the client is there


class Full(Exception):
    """There is no room for another reply to this client."""


class Room:
    """Bytes that are set aside for a reply, until that is sent or given up."""

    def __init__(self, promised: Counter[str], owner: str, nbytes: int) -> None:
        self._promised, self._owner, self._nbytes = promised, owner, nbytes
        promised[owner] += nbytes

    def release(self) -> None:
        self._promised[self._owner] -= self._nbytes
        self._nbytes = 0
        if not self._promised[self._owner]:
            del self._promised[self._owner]


class Unread:
    """What one connection has not taken yet: `messages` wait here, `handed` are with libzmq."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.messages: deque[tuple[list[Body], int]] = deque()
        self.handed: deque[tuple[zmq.MessageTracker, int]] = deque()
        self.waiting = self.with_libzmq = 0  # bytes
        self.since = trio.current_time()  # when it last took something
        self.envelope: list[bytes] = []  # of the last reply: where an error would go
        self.error = protocol.Error(code="slow-reader", message="")
        self.cut = False


class Outbox:
    """Sends without ever waiting. `gone` is told of every client that is away; `hang_up` ends a connection; `passed` is
    told of bytes that are held or freed."""

    def __init__(
        self,
        socket: Socket,
        gone: Callable[[bytes], None],
        hang_up: Callable[[bytes], None],
        passed: Callable[[int], None],
    ) -> None:
        self._socket = socket
        self._gone = gone
        self._hang_up = hang_up
        self._passed = passed
        self._unread: dict[bytes, Unread] = {}
        self._held: Counter[str] = Counter()  # bytes by client, here and with libzmq
        self._promised: Counter[str] = Counter()
        self._total = 0
        self._some = trio.Event()

    # -- what it holds -----------------------------------------------------------------------------------------------

    def held(self, owner: str) -> int:
        """Bytes that wait for this client, here or with libzmq."""
        return self._held[owner]

    @property
    def empty(self) -> bool:
        """Nothing waits here any more."""
        return not any(unread.messages for unread in self._unread.values())

    def takes(self, peer: bytes) -> bool:
        """False while a client that was cut off has not read that it was."""
        unread = self._unread.get(peer)
        return unread is None or not unread.cut

    def reserve(self, owner: str, nbytes: int) -> Room:
        """Room for a reply that is about to be computed. Raises Full."""
        held, promised = self._held[owner], self._promised[owner]
        if held + promised + nbytes > CLIENT_BYTES:
            raise Full(
                f"{held} bytes wait to be read by this client and {promised} are being computed for it: {nbytes} more "
                f"would be over {CLIENT_BYTES}"
            )
        if (taken := self._total + self._promised.total()) + nbytes > TOTAL_BYTES:
            raise Full(f"replies of {taken} bytes are waiting or being computed already, {TOTAL_BYTES} may")
        return Room(self._promised, owner, nbytes)

    def _count(self, unread: Unread, nbytes: int) -> None:
        self._passed(abs(nbytes))
        self._total += nbytes
        self._held[unread.owner] += nbytes
        if not self._held[unread.owner]:
            del self._held[unread.owner]

    # -- sending -----------------------------------------------------------------------------------------------------

    def send(
        self, peer: bytes, owner: str, envelope: list[bytes], reply: protocol.Reply, body: Body | None = None
    ) -> bool:
        """False when the client is gone or reads too slowly to be sent more."""
        frames: list[Body] = [*envelope, protocol.encode(reply)]
        if body is not None:
            frames.append(body)
        nbytes = sum(map(len, frames)) + MESSAGE_BYTES
        unread = self._unread.get(peer)
        if unread is None:
            if nbytes < LARGE and (sent := self._try(peer, frames)) is not None:
                return sent
            unread = self._unread[peer] = Unread(owner)
        if unread.cut:
            return False
        unread.envelope, unread.error.id = envelope, reply.id
        if nbytes > CLIENT_BYTES:
            text = f"the reply would have {nbytes} bytes, {CLIENT_BYTES} may wait for a client"
            return self.send(peer, owner, envelope, protocol.Error(id=reply.id, code="too-long", message=text))
        if len(unread.messages) >= PENDING_MESSAGES or self._held[owner] + nbytes > CLIENT_BYTES:
            self._cut(unread)
        else:
            self._push(unread, frames, nbytes)
            while self._total > TOTAL_BYTES and (most := self._heaviest()) is not None:
                self._cut(most)
        self._flush(peer, unread)
        self._some.set()
        return not unread.cut

    def _push(self, unread: Unread, frames: list[Body], nbytes: int) -> None:
        unread.messages.append((frames, nbytes))
        unread.waiting += nbytes
        self._count(unread, nbytes)

    def _heaviest(self) -> Unread | None:
        """Whose messages go first when all together are too many."""
        some = (unread for unread in self._unread.values() if unread.messages and not unread.cut)
        return max(some, key=lambda unread: (self._held[unread.owner], unread.waiting), default=None)

    def _cut(self, unread: Unread) -> None:
        """What waits here is dropped for one error, and no more is taken until that has been read."""
        message = f"{len(unread.messages)} replies were waiting to be read; they are dropped and the request ended"
        log.warning("a client does not read: %s", message)
        unread.error.message = message
        self._count(unread, -unread.waiting)
        unread.messages.clear()
        unread.waiting = 0
        unread.cut = True
        error = protocol.encode(unread.error)
        self._push(unread, [*unread.envelope, error], len(error))

    def _try(self, peer: bytes, frames: Frames) -> bool | None:
        """True when libzmq has it, False when the client is gone, None when its queue is full."""
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
        if (unread := self._unread.pop(peer, None)) is not None:
            self._count(unread, -unread.waiting - unread.with_libzmq)

    def _flush(self, peer: bytes, unread: Unread) -> bool:
        """Offer what waits; whether the client has taken anything."""
        moved = False
        while unread.handed and unread.handed[0][0].done:
            _, nbytes = unread.handed.popleft()
            unread.with_libzmq -= nbytes
            self._count(unread, -nbytes)
            moved = True
        while unread.messages:
            frames, nbytes = unread.messages[0]
            if nbytes >= LARGE and unread.with_libzmq and unread.with_libzmq + nbytes > WINDOW:
                break
            parts = [zmq.Frame(frame, copy=False, track=True) if len(frame) >= LARGE else frame for frame in frames]
            sent = self._try(peer, parts)
            if sent is None:
                break
            if not sent:
                unread.cut = True
                return False
            unread.messages.popleft()
            unread.waiting -= nbytes
            for part in parts:
                if isinstance(part, zmq.Frame):
                    unread.handed.append((part.tracker, len(part)))
                    unread.with_libzmq += len(part)
                    nbytes -= len(part)
            self._count(unread, -nbytes)
            moved = True
        if moved:
            unread.since = trio.current_time()
        if not unread.messages and not unread.handed:
            self.forget(peer)
        return moved

    async def run(self) -> None:
        """Offers what is pending again and again, ever more rarely while nobody takes anything."""
        pause = FIRST_RETRY
        while True:
            with trio.move_on_after(pause if self._unread else float("inf")):
                await self._some.wait()
            if self._some.is_set():
                self._some = trio.Event()
                pause = FIRST_RETRY
                await trio.sleep(pause)
            moved = [self._flush(peer, unread) for peer, unread in list(self._unread.items()) if peer in self._unread]
            pause = FIRST_RETRY if any(moved) else min(2 * pause, LAST_RETRY)
            self._give_up()

    def _give_up(self) -> None:
        """A client that takes nothing of a lot loses what waits here, then, for what libzmq has, its connection."""
        late = trio.current_time() - GIVE_UP_SECONDS
        for peer, unread in list(self._unread.items()):
            if unread.since > late or unread.waiting + unread.with_libzmq < PATIENT_BYTES:
                continue
            unread.since = trio.current_time()
            if not unread.cut:
                self._cut(unread)
            else:
                log.warning("a client reads nothing: %d bytes are dropped with its connection", unread.with_libzmq)
                self._hang_up(peer)
