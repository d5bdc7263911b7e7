"""Who is connected: tells when a client is gone, also one that only waits for its answer.

libzmq's ROUTER_NOTIFY is in draft builds only. What every build has: a message knows the descriptor it came over
(ZMQ_SRCFD), and the socket monitor reports each descriptor that is closed (ZMQ_EVENT_DISCONNECTED). Both come from the
same I/O thread in order, so emptying the monitor before a message is looked at keeps a reused descriptor apart.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import zmq

from .sockets import Socket


class Peers:
    """Identities by the descriptor of their connection. The monitor must exist before the socket binds."""

    def __init__(self, raw: zmq.Socket[bytes], gone: Callable[[bytes], None]) -> None:
        self.monitor: zmq.Socket[bytes] = raw.get_monitor_socket(zmq.Event.DISCONNECTED)
        self._raw = raw
        self._gone = gone
        self._by_descriptor: dict[int, set[bytes]] = {}

    def note(self, peer: bytes, frame: zmq.Frame) -> None:
        """A message of this client has come: call before acting on it."""
        self.empty_monitor()
        try:
            descriptor = int(frame.get(zmq.SRCFD))
        except (zmq.ZMQError, ValueError, TypeError):
            return  # a transport without one: the next send to a client that left tells
        self._by_descriptor.setdefault(descriptor, set()).add(peer)

    def empty_monitor(self) -> None:
        while True:
            try:
                frames = self.monitor.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._handle(frames)

    def _handle(self, frames: list[bytes]) -> None:
        event, value = struct.unpack("=hi", frames[0])  # zmq_socket_monitor(3): 16 bits of event, 32 of value
        if event & zmq.Event.DISCONNECTED:
            for peer in self._by_descriptor.pop(value, ()):
                self._gone(peer)

    async def run(self, monitor: Socket) -> None:
        while True:
            self._handle([frame.bytes for frame in await monitor.recv()])

    def __len__(self) -> int:
        return sum(map(len, self._by_descriptor.values()))

    def close(self) -> Any:
        self._raw.disable_monitor()
