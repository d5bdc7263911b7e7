"""Daemons in a guest: forked from a process that has imported everything, as emulation makes a start slow.

Imported before anything else of a check; owns the daemons' processes and directories, judges nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import built  # noqa: F401
from hearthd.daemon import cli, client, hearth, protocol, service
from hearthd.daemon.model import engine, template, tokenizer

__all__ = ["Daemon", "attempt", "engine", "hearth", "service", "template", "tokenizer"]


class Daemon:
    """hearthd with these arguments. `before` is called in its process first."""

    count = 0

    def __init__(self, directory: Path, *arguments: str, before: Callable[[], Any] | None = None) -> None:
        Daemon.count += 1
        self.endpoint = f"ipc://{directory}/{Daemon.count}.control"
        self._log = directory / f"{Daemon.count}.log"
        notify = str(directory / f"{Daemon.count}.notify")
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._told.bind(notify)
        self._told.settimeout(0.1)
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                os.environ["NOTIFY_SOCKET"] = notify
                log = os.open(self._log, os.O_WRONLY | os.O_CREAT, 0o644)
                os.dup2(log, 1)
                os.dup2(log, 2)
                if before is not None:
                    before()
                state = str(directory / f"{Daemon.count}.state")
                code = cli.main(["--control", self.endpoint, "--state-directory", state, *arguments])
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def alive(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def ready(self, seconds: float = 30.0) -> bool:
        """Wait for READY; False when it has ended instead."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in self._told.recv(4096):
                    return True
            if not self.alive():
                return False
        raise AssertionError(f"not ready after {seconds} s:\n{self.log}")

    def ask(self) -> client.Client:
        return client.Client(self.endpoint, timeout=60)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20.0) -> int:
        """The exit code."""
        with contextlib.suppress(ProcessLookupError):
            if self.code is None:
                os.kill(self.pid, number)
        until = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                until += 5
            time.sleep(0.02)
        self._told.close()
        assert self.code is not None
        return self.code


@contextlib.contextmanager
def daemon(directory: Path, *arguments: str, **more: Any) -> Iterator[Daemon]:
    """One that is ready, and ends with the body."""
    made = Daemon(directory, *arguments, **more)
    try:
        if not made.ready():
            raise AssertionError(f"exit {made.code}:\n{made.log}")
        yield made
    finally:
        made.stop()


def attempt(hearth: client.Client, prompt: str | list[int], tokens: int = 2) -> list[int] | str:
    """The greedy tokens, or the error's code and message."""
    try:
        given = {"tokens": prompt} if isinstance(prompt, list) else {"prompt": prompt}
        done = hearth.generate(**given, max_tokens=tokens, temperature=0).done  # type: ignore[arg-type]
    except client.RequestError as error:
        return f"{error.code}: {error.message}"
    except client.ClientError as error:
        return f"{type(error).__name__}: {error}"
    return list(done.tokens)


def events(status: protocol.StatusData) -> list[str]:
    return [f"{event.level} {event.code}: {event.message}" for event in status.events]
