"""Shared fixtures: where the test models lie, and daemons that live as long as a test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The directory of the shared test models (HEARTHD_TEST_MODELS, else ../shared/models)."""
    path = Path(os.environ.get("HEARTHD_TEST_MODELS") or ROOT.parent / "shared" / "models")
    if not path.is_dir():
        pytest.skip(f"test models absent: {path} (set HEARTHD_TEST_MODELS)")
    return path


class DaemonProcess:
    """A daemon in a process of its own, ready to answer."""

    def __init__(self, process: subprocess.Popen[str], endpoint: str, log: Path) -> None:
        self.process, self.endpoint, self._log = process, endpoint, log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


@contextmanager
def daemons(directory: Path) -> Iterator[Callable[..., DaemonProcess]]:
    """A function that starts daemons on endpoints in a directory; they end with the body.

    `start("MODEL", "--warm", "off")` runs hearthd until it says READY; with `fake=True` it serves
    tests/fake_hearth.py instead of a model; `wrap` is what the command is run by.
    """
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str, fake: bool = False, env: dict[str, str] | None = None,
              wrap: Sequence[str] = ()) -> DaemonProcess:  # fmt: skip
        number = len(running)
        endpoint = f"ipc://{directory}/d{number}.control"
        chosen: list[str] = ["--control", endpoint]
        if "--control" in arguments:
            endpoint, chosen = arguments[arguments.index("--control") + 1], []
        program = [str(ROOT / "tests" / "fake_hearth.py")] if fake else ["-m", "hearthd.daemon.cli"]
        log = directory / f"d{number}.log"
        notify_path = str(directory / f"n{number}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, log.open("w") as stderr:
            notify.bind(notify_path)
            notify.settimeout(0.05)
            surroundings = {"NOTIFY_SOCKET": notify_path, "HEARTHD_STATE_DIRECTORY": str(directory / "state")}
            process = subprocess.Popen(
                [*wrap, sys.executable, *program, *arguments, *chosen],
                stderr=stderr,
                text=True,
                env=os.environ | surroundings | (env or {}),
            )
            running.append(process)
            for _ in range(1200):
                try:
                    if b"READY=1" in notify.recv(4096):
                        return DaemonProcess(process, endpoint, log)
                except TimeoutError:
                    if process.poll() is not None:
                        break
        raise AssertionError(f"the daemon did not get ready (exit {process.poll()}):\n{log.read_text()}")

    try:
        yield start
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[..., DaemonProcess]]:
    """See `daemons`; on ipc endpoints in tmp_path."""
    with daemons(tmp_path) as start:
        yield start
