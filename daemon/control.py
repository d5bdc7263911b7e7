"""The control socket: takes messages in, answers every one, and lets no message stop the daemon.

Reads envelopes and bodies and hands requests to `operations`; what an operation means is decided there.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Generic, TypeVar, cast

import msgspec
import trio
import zmq

from . import protocol
from .inbox import Inbox, Letter
from .outbox import QUEUED, Full, Outbox, Room
from .peers import Peers
from .places import NoPlace, Place, Places
from .protocol import Body
from .sockets import Binding, Socket, make, pumping
from .trimming import Trimmer

log = logging.getLogger(__name__)

Asked = TypeVar("Asked", bound=protocol.Request)

# What has been ordered is done, also when who has ordered it leaves; everything else ends with its client.
ORDERS = (protocol.Warm, protocol.Defer, protocol.Pin, protocol.Cancel, protocol.Shutdown)
LAST_REPLY_SECONDS = 0.05
URGENT = (protocol.Cancel, protocol.Shutdown, protocol.Status)
# Messages of one connection that libzmq reads ahead (ZMQ_RCVHWM). With the one that it is reading and the one that is
# being looked at, a client can have three messages of MESSAGE_LIMIT bytes in memory before any limit of ours sees them.
READ_AHEAD = 1
FRAMES = 8  # of a message; what has more is no request, whatever they are


class Refused(Exception):
    """An operation's way to answer with an error."""

    def __init__(self, code: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.field = code, message, field


class Call(Generic[Asked]):
    """One request with the way back to its client. `scope` ends when that leaves, and with it all but orders."""

    def __init__(
        self,
        control: Control,
        peer: bytes,
        owner: str,
        envelope: list[bytes],
        request: Asked,
        place: Place,
        nbytes: int,
    ) -> None:
        self._control, self._place = control, place
        self.peer, self.owner, self.envelope = peer, owner, envelope
        self._request: Asked | None = request
        self.id = request.id
        self.nbytes = nbytes  # of the message
        self.scope = trio.CancelScope()
        self.gone = False

    @property
    def request(self) -> Asked:
        """Until it is forgotten."""
        assert self._request is not None
        return self._request

    def left(self) -> None:
        """The client is gone."""
        self.gone = True
        self.scope.cancel()

    def reply(self, reply: protocol.Reply, body: Body | None = None) -> bool:
        """Never waits; False when the client takes no more."""
        return self._control.outbox.send(self.peer, self.owner, self.envelope, reply, body)

    def reserve(self, nbytes: int) -> Room:
        """Room for a big reply, before it is computed. Raises Refused."""
        try:
            return self._control.outbox.reserve(self.owner, nbytes)
        except Full as error:
            raise Refused("busy", str(error)) from None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For the body the operation only waits, and takes no place from others. Raises Refused."""
        try:
            with self._place.waiting():
                yield
        except NoPlace as error:
            raise Refused("busy", str(error)) from None

    def waits_in_queue(self) -> None:
        """The scheduler counts it from now on."""
        self._place.leave()

    def forget_request(self) -> None:
        """What is left to do needs no more than the way back."""
        self._request = None

    def result(self, data: dict[str, Any] | msgspec.Struct | msgspec.Raw, body: Body | None = None) -> bool:
        """`data`: what JSON has an object for, or that already as JSON (msgspec.Raw) where it is long."""
        return self.reply(protocol.Result(id=self.id, data=cast(dict[str, Any], data)), body)

    def error(self, code: str, message: str, field: str = "") -> bool:
        return self.reply(protocol.Error(id=self.id, code=code, message=message, field=field))


Handler = Callable[[Call[Any]], Awaitable[None]]


class Control:
    """The ROUTER and who is on it."""

    def __init__(
        self, context: zmq.Context[Any], binding: Binding, secure: Callable[[zmq.Socket[bytes]], None]
    ) -> None:
        self._raw = make(
            context,
            zmq.ROUTER,
            linger=500,  # the last reply of a daemon that ends gets out
            router_mandatory=1,
            router_handover=0,
            maxmsgsize=protocol.MESSAGE_LIMIT,
            sndhwm=QUEUED,
            rcvhwm=READ_AHEAD,
            heartbeat_ivl=5000,
            heartbeat_timeout=15000,
            heartbeat_ttl=20000,
        )
        secure(self._raw)
        self._on_gone: list[Callable[[bytes], None]] = []
        self._peers = Peers(self._raw, self._gone)
        binding.bind(self._raw)
        self.outbox: Outbox
        self.inbox: Inbox
        self.in_progress: dict[bytes, set[Call[Any]]] = {}  # by connection
        self._places = Places()
        self._trimmer = Trimmer()
        self.refused = 0

    def on_gone(self, told: Callable[[bytes], None]) -> None:
        self._on_gone.append(told)

    def _gone(self, peer: bytes) -> None:
        self.outbox.forget(peer)
        self.inbox.forget(peer)
        for call in self.in_progress.get(peer, ()):
            call.left()
        for told in self._on_gone:
            told(peer)

    async def serve(
        self, handlers: dict[type, Handler], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Until cancelled. Replies already sent get the socket's linger to arrive."""
        async with AsyncExitStack() as stack:
            socket = await stack.enter_async_context(pumping(self._raw))
            monitor = await stack.enter_async_context(pumping(self._peers.monitor, close=False))
            stack.callback(self._peers.close)
            self.outbox = Outbox(socket, self._gone, self._peers.hang_up, self._trimmer.passed)
            nursery = await stack.enter_async_context(trio.open_nursery())
            self.inbox = Inbox(nursery, lambda letter, found: self._asked(letter, found, handlers, nursery))
            nursery.start_soon(self.outbox.run)
            nursery.start_soon(self._trimmer.run)
            nursery.start_soon(self._peers.run, monitor)
            task_status.started()
            try:
                while True:
                    self._take(await socket.recv(FRAMES))
            finally:
                nursery.cancel_scope.cancel()

    def _take(self, frames: list[zmq.Frame]) -> None:
        peer = frames[0].bytes
        owner, here = self._peers.note(peer, frames[-1])
        parts = frames[1:]
        envelope = [peer]
        if len(parts) > 1 and not len(parts[0]):  # REQ puts an empty frame before the body
            envelope.append(b"")
            parts = parts[1:]
        if len(parts) != 1:
            self.refused += 1
            count = str(len(parts)) if len(frames) < FRAMES else "many"
            message = f"expected one frame with a JSON body, got {count} frames"
            self.outbox.send(peer, owner, envelope, protocol.Error(code="bad-json", message=message))
            return
        self.inbox.put(Letter(peer, owner, envelope, parts[0], here))

    def _asked(
        self,
        letter: Letter,
        request: protocol.AnyRequest | protocol.Error,
        handlers: dict[type, Handler],
        nursery: trio.Nursery,
    ) -> None:
        peer, owner, envelope = letter.peer, letter.owner, letter.envelope
        if isinstance(request, protocol.Error):
            self.refused += 1
            self.outbox.send(peer, owner, envelope, request)
            return
        urgent = isinstance(request, URGENT)
        if not (urgent or self.outbox.takes(peer)):
            self.refused += 1  # it was told that it does not read
            return

        def refuse(code: str, message: str, field: str = "") -> None:
            error = protocol.Error(id=request.id, code=code, message=message, field=field)
            self.outbox.send(peer, owner, envelope, error)

        if getattr(request, "stream", False) and _socket_type(letter.frame) == "REQ":
            refuse("bad-field", "stream: a REQ socket takes one reply only, a DEALER takes many", "stream")
            return
        try:
            place = Place(self._places, owner, len(letter.frame), urgent=urgent)
        except NoPlace as error:
            refuse("busy", str(error))
            return
        call = Call(self, peer, owner, envelope, request, place, len(letter.frame))
        if not letter.here:
            call.left()
        self.in_progress.setdefault(peer, set()).add(call)
        nursery.start_soon(self._handle, call, place, handlers[type(request)])

    async def _handle(self, call: Call[Any], place: Place, handler: Handler) -> None:
        op = call.request.__struct_config__.tag
        try:
            if isinstance(call.request, ORDERS):
                await handler(call)
            else:
                with call.scope:
                    await handler(call)
        except Refused as error:
            call.error(error.code, error.message, error.field)
        except Exception as error:
            log.exception("operation %s failed", op)
            call.error("failed", str(error) or type(error).__name__)
        finally:
            place.leave()
            self._trimmer.passed(call.nbytes)
            calls = self.in_progress[call.peer]
            calls.discard(call)
            if not calls:
                del self.in_progress[call.peer]

    async def flushed(self, seconds: float) -> None:
        """Until every reply is with libzmq, or so long, and has had a moment to get out."""
        with trio.move_on_after(seconds):
            while not self.outbox.empty:  # noqa: ASYNC110
                await trio.sleep(0.01)
        # A last reply that is given to a ROUTER as it closes is lost now and then (3 in 100 were), whatever its linger.
        await trio.sleep(LAST_REPLY_SECONDS)


def _socket_type(frame: zmq.Frame) -> str:
    """The sender's, as it said when it connected (ZMTP's property Socket-Type); empty where that is not known."""
    try:
        return str(frame.get("Socket-Type"))
    except (zmq.ZMQError, ValueError):
        return ""


__all__ = ["Call", "Control", "Handler", "Refused", "Socket"]
