"""Who is connected: whose connection each is, and when it is gone, also one that only waits for its answer.

libzmq's ROUTER_NOTIFY is in draft builds only. What every build has: a message knows the descriptor it came over
(ZMQ_SRCFD), and the socket monitor reports each descriptor that is opened and closed (ZMQ_EVENT_ACCEPTED,
ZMQ_EVENT_DISCONNECTED). All come from the same I/O thread in order, so emptying the monitor before a message is looked
at keeps a reused descriptor apart. Kept is what is connected now, and nothing of who has left.

A client is a process, or over TCP an address: one program may open any number of connections, and gets no more by that.
The kernel tells the process at the other end of an ipc connection (uid, gid and pid in libzmq's Peer-Address; all
processes of one user that this one cannot see, in other pid namespaces, are one client).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

import zmq

from .sockets import Socket

EVENTS = zmq.Event.ACCEPTED | zmq.Event.DISCONNECTED


class Peers:
    """Identities by the descriptor of their connection. The monitor must exist before the socket binds."""

    def __init__(self, raw: zmq.Socket[bytes], gone: Callable[[bytes], None]) -> None:
        self.monitor: zmq.Socket[bytes] = raw.get_monitor_socket(EVENTS)
        self._raw = raw
        self._gone = gone
        self._connected: dict[int, set[bytes]] = {}  # what messages came over it
        self._known: dict[bytes, tuple[int, str]] = {}  # descriptor and owner

    def note(self, peer: bytes, frame: zmq.Frame) -> tuple[str, bool]:
        """A message of this connection has come: call before acting on it. Its owner, and whether it is still there."""
        self.empty_monitor()
        if (known := self._known.get(peer)) is not None:
            return known[1], True
        owner = _owner(frame)
        try:
            descriptor = int(frame.get(zmq.SRCFD))
        except (zmq.ZMQError, ValueError, TypeError):
            return owner, True  # a transport without one: the next send to a client that left tells
        if descriptor not in self._connected:
            return owner, False
        self._connected[descriptor].add(peer)
        self._known[peer] = descriptor, owner
        return owner, True

    def hang_up(self, peer: bytes) -> None:
        """End a connection: libzmq frees what it holds for it, and the monitor tells. It may come again."""
        self.empty_monitor()
        if (known := self._known.get(peer)) is not None:
            with suppress(OSError), socket.socket(fileno=os.dup(known[0])) as connection:
                connection.shutdown(socket.SHUT_RDWR)

    def empty_monitor(self) -> None:
        while True:
            try:
                frames = self.monitor.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._handle(frames)

    def _handle(self, frames: list[bytes]) -> None:
        event, value = struct.unpack("=hi", frames[0])  # zmq_socket_monitor(3): 16 bits of event, 32 of value
        if event & zmq.Event.ACCEPTED:
            self._connected[value] = set()
        elif event & zmq.Event.DISCONNECTED:
            for peer in self._connected.pop(value, ()):
                self._known.pop(peer, None)
                self._gone(peer)

    async def run(self, monitor: Socket) -> None:
        while True:
            await monitor.readable()
            self.empty_monitor()  # nothing is held over a checkpoint: `note` would see a later event first

    def __len__(self) -> int:
        return len(self._connected)

    def close(self) -> None:
        self._raw.disable_monitor()


def _owner(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return ""
