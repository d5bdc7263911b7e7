"""What the service manager is told, through a socket that pretends to be one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hearthd.daemon import logs, notify

from .conftest import ROOT


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "notify"))
        server.settimeout(10)
        yield server


def states(server: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in server.recv(4096).decode().splitlines())


def test_a_daemon_tells_its_life(tmp_path: Path, manager: socket.socket) -> None:
    environment = os.environ | {
        "NOTIFY_SOCKET": manager.getsockname(),
        "WATCHDOG_USEC": "100000",
        "JOURNAL_STREAM": "8:1",
    }
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "fake_hearth.py"), "--control", f"ipc://{tmp_path}/n.control"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        told = [states(manager)]
        while not all(any(word in state for state in told) for word in ("READY", "WATCHDOG")):  # in either order
            told.append(states(manager))
        ready = next(state for state in told if "READY" in state)
        assert ready["READY"] == "1" and ready["MAINPID"] == str(process.pid) and ready["STATUS"]
        assert states(manager).get("WATCHDOG") == "1"
        process.terminate()
        while "STOPPING" not in told[-1]:
            told.append(states(manager))
        assert told[-1]["STATUS"] == "stopping"
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert all(line[0] == "<" and line[1] in "34567" and line[2] == ">" for line in process.stderr)
    finally:
        process.kill()
        process.wait()


def test_nobody_listens() -> None:
    silent = notify.Notifier({})
    silent.ready("x")
    assert silent.watchdog_seconds is None
    gone = notify.Notifier({"NOTIFY_SOCKET": "/nonexistent/notify", "WATCHDOG_USEC": "2000000"})
    gone.ready("x")
    assert gone.watchdog_seconds == 2.0
    gone.close()


def test_the_watchdog_of_another_process_is_not_ours(tmp_path: Path) -> None:
    given = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}
    watched = notify.Notifier(given)
    assert watched.watchdog_seconds is None
    watched.close()


def test_status_is_sent_when_it_changes(manager: socket.socket) -> None:
    told = notify.Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    for text in ("warming 1 %", "warming 1 %", "warming 2 %"):
        told.status(text)
    assert [states(manager)["STATUS"] for _ in range(2)] == ["warming 1 %", "warming 2 %"]
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(10)
    told.close()


def test_an_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(f"\0hearthd-test-{os.getpid()}")
        server.settimeout(5)
        told = notify.Notifier({"NOTIFY_SOCKET": f"@hearthd-test-{os.getpid()}"})
        told.alive()
        assert states(server) == {"WATCHDOG": "1"}
        told.close()


def test_every_line_for_the_journal_has_a_priority() -> None:
    import logging

    record = logging.LogRecord("hearthd", logging.WARNING, "", 0, "two\nlines", None, None)
    assert logs.JournalFormatter("%(message)s").format(record) == "<4>two\n<4>lines"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is absent")
@pytest.mark.parametrize(("unit", "scope"), [("hearthd@.service", "--system"), ("hearthd-user@.service", "--user")])
def test_units_are_sound(unit: str, scope: str, tmp_path: Path) -> None:
    checked = subprocess.run(
        ["systemd-analyze", "verify", scope, str(ROOT / "systemd" / unit)],
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
