"""The control socket: takes messages in, answers every one, and lets no message stop the daemon.

Reads envelopes and bodies and hands requests to `operations`; what an operation means is decided there.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import trio
import zmq

from . import protocol
from .outbox import Outbox
from .peers import Peers
from .sockets import Binding, Socket, make, pumping

log = logging.getLogger(__name__)

CONCURRENT = 64  # operations in progress that the scheduler does not count

KNOWN = {kind.__struct_config__.tag: kind for kind in protocol.AnyRequest.__args__}


class Refused(Exception):
    """An operation's way to answer with an error."""

    def __init__(self, code: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.field = code, message, field


class Call:
    """One request with the way back to its client."""

    __slots__ = ("_control", "envelope", "gone", "peer", "request")

    def __init__(self, control: Control, peer: bytes, envelope: list[bytes], request: Any) -> None:
        self._control, self.peer, self.envelope, self.request = control, peer, envelope, request
        self.gone = False  # the client left before the operation was done or in the queue

    def reply(self, reply: protocol.Reply, body: bytes | None = None) -> bool:
        """Never waits; False when the client takes no more."""
        return self._control.outbox.send(self.peer, self.envelope, reply, body)

    def waits_in_queue(self) -> None:
        """The scheduler counts it from now on."""
        self._control.in_progress.discard(self)

    def result(self, data: Any, body: bytes | None = None) -> bool:
        return self.reply(protocol.Result(id=self.request.id, data=msgspec.to_builtins(data)), body)

    def error(self, code: str, message: str, field: str = "") -> bool:
        return self.reply(protocol.Error(id=self.request.id, code=code, message=message, field=field))


Handler = Callable[[Call], Awaitable[None]]


def explain(body: bytes) -> protocol.Error:
    """The error for a body that is no request, with the id if one can be read, naming the field at fault."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return protocol.Error(code="bad-json", message=f"not a JSON message: {error}")
    if not isinstance(found, dict):
        return protocol.Error(code="bad-json", message=f"expected a JSON object, got {type(found).__name__}")
    id = given if isinstance(given := found.get("id"), str) else ""
    op = found.get("op")
    if not isinstance(op, str) or op not in KNOWN:
        named = f"{op!r:.80}" if op is not None else "none"
        message = f"unknown operation {named}; known: {', '.join(sorted(map(str, KNOWN)))}"
        return protocol.Error(id=id, code="unknown-op", message=message, field="op")
    try:
        protocol.decode_request(body)
    except (msgspec.ValidationError, RecursionError) as error:
        # msgspec ends with "- at `$.sampling.top_k`" where it knows
        text, _, place = str(error).partition(" - at `$")
        field = place.rstrip("`").lstrip(".")
        return protocol.Error(id=id, code="bad-field", message=f"{field}: {text}" if field else text, field=field)
    return protocol.Error(id=id, code="failed", message="the message could not be read")


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
            sndhwm=256,
            rcvhwm=256,
            heartbeat_ivl=5000,
            heartbeat_timeout=15000,
            heartbeat_ttl=20000,
        )
        secure(self._raw)
        self._on_gone: list[Callable[[bytes], None]] = []
        self._peers = Peers(self._raw, self._gone)
        binding.bind(self._raw)
        self.outbox: Outbox
        self.in_progress: set[Call] = set()
        self.refused = 0

    def on_gone(self, told: Callable[[bytes], None]) -> None:
        self._on_gone.append(told)

    def _gone(self, peer: bytes) -> None:
        self.outbox.forget(peer)
        for call in self.in_progress:
            call.gone = call.gone or call.peer == peer
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
            self.outbox = Outbox(socket, self._gone)
            nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(self.outbox.run)
            nursery.start_soon(self._peers.run, monitor)
            task_status.started()
            try:
                while True:
                    self._take(await socket.recv(), handlers, nursery)
            finally:
                nursery.cancel_scope.cancel()

    def _take(self, frames: list[zmq.Frame], handlers: dict[type, Handler], nursery: trio.Nursery) -> None:
        peer = frames[0].bytes
        self._peers.note(peer, frames[-1])
        parts = frames[1:]
        envelope = [peer]
        if len(parts) > 1 and not parts[0].bytes:  # REQ puts an empty frame before the body
            envelope.append(b"")
            parts = parts[1:]
        if len(parts) != 1:
            self.refused += 1
            message = f"expected one frame with a JSON body, got {len(parts)} frames"
            self.outbox.send(peer, envelope, protocol.Error(code="bad-json", message=message))
            return
        body = parts[0].bytes
        try:
            request = protocol.decode_request(body)
        except Exception:  # a message of any kind is answered
            self.refused += 1
            self.outbox.send(peer, envelope, explain(body))
            return
        call = Call(self, peer, envelope, request)
        if request.v > protocol.VERSION:
            call.error("version", f"this daemon speaks version {protocol.VERSION}, the message is of {request.v}", "v")
            return
        urgent = isinstance(request, protocol.Cancel | protocol.Shutdown | protocol.Status)
        if len(self.in_progress) >= CONCURRENT and not urgent:
            call.error("busy", f"{CONCURRENT} operations are in progress already")
            return
        self.in_progress.add(call)
        nursery.start_soon(self._handle, call, handlers[type(request)])

    async def _handle(self, call: Call, handler: Handler) -> None:
        try:
            await handler(call)
        except Refused as error:
            call.error(error.code, error.message, error.field)
        except Exception as error:
            log.exception("operation %s failed", call.request.__struct_config__.tag)
            call.error("failed", str(error) or type(error).__name__)
        finally:
            self.in_progress.discard(call)

    async def flushed(self, seconds: float) -> None:
        """Until every reply is with libzmq, or so long."""
        with trio.move_on_after(seconds):
            while not self.outbox.empty:  # noqa: ASYNC110
                await trio.sleep(0.01)


__all__ = ["Call", "Control", "Handler", "Refused", "Socket", "explain"]
