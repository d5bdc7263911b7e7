"""The service manager's notification socket: READY, STATUS, WATCHDOG, STOPPING. Says nothing when there is none.

Protocol: sd_notify(3): datagrams of `NAME=value` lines to `$NOTIFY_SOCKET`, `@` for an abstract name.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

from .utf8 import plain

log = logging.getLogger(__name__)


class Notifier:
    """Sends states to `$NOTIFY_SOCKET`. `watchdog_seconds` is None unless this process is watched."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._socket: socket.socket | None = None
        self._last_status = ""
        self.watchdog_seconds: float | None = None
        address = environ.get("NOTIFY_SOCKET", "")
        if address[:1] in ("/", "@"):
            self._address = "\0" + address[1:] if address.startswith("@") else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        if self._socket and usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid())):
            self.watchdog_seconds = int(usec) / 1e6

    @property
    def listening(self) -> bool:
        """There is a manager to tell."""
        return self._socket is not None

    def send(self, **states: str | int) -> None:
        """One datagram; a manager that is away or slow never holds the daemon up."""
        if self._socket is None:
            return
        # A line break in a value (a file's name may have one) would begin another state.
        body = "\n".join(f"{name}={' '.join(str(value).splitlines())}" for name, value in states.items())
        try:
            self._socket.sendto(plain(body).encode(), self._address)
        except OSError as error:
            log.debug("notification not delivered: %s", error)

    def ready(self, status: str) -> None:
        self._last_status = status
        self.send(READY=1, STATUS=status, MAINPID=os.getpid())

    def status(self, text: str) -> None:
        """Only when it changed."""
        if text != self._last_status:
            self._last_status = text
            self.send(STATUS=text)

    def more_time(self, seconds: float, status: str) -> None:
        """Before READY: ask not to be given up for so long."""
        self._last_status = status
        self.send(EXTEND_TIMEOUT_USEC=int(seconds * 1e6), STATUS=status)

    def alive(self) -> None:
        self.send(WATCHDOG=1)

    def stopping(self, status: str) -> None:
        self._last_status = status
        self.send(STOPPING=1, STATUS=status)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
