"""What somebody else may have made is not used; and names that are not UTF-8 are shown."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hearthd.daemon import cli, ctl, endpoints, exit_codes, notify, security, utf8
from hearthd.daemon.client import Client
from hearthd.daemon.residency.heat import Heat
from hearthd.daemon.residency.kept_heat import KeptHeat
from hearthd.daemon.trust import distrust

from .fake_hearth import Hearth


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory such as /tmp."""
    path = tmp_path / "tmp"
    path.mkdir()
    path.chmod(0o1777)
    return path


def test_below_a_shared_directory_only_our_own_is_trusted(shared: Path, tmp_path: Path) -> None:
    ours = shared / "hearthd-1"
    ours.mkdir(mode=0o700)
    assert distrust(ours / "a.control") == "" and distrust(shared / "not-there" / "a.control") == ""
    assert "belongs to user" in distrust(ours / "a.control", user=os.geteuid() + 1) or os.geteuid() == 0
    for mode in (0o770, 0o707, 0o777):
        ours.chmod(mode)
        assert "may be changed by others" in distrust(ours / "a.control")
    ours.chmod(0o750)
    (shared / "link").symlink_to(ours)
    assert "symbolic link" in distrust(shared / "link" / "a.control")
    # A link that only we could have laid is followed to where it leads.
    (tmp_path / "own").symlink_to(shared / "link")
    assert "symbolic link" in distrust(tmp_path / "own" / "a.control")
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide").chmod(0o770)
    assert distrust(tmp_path / "wide" / "a.control") == ""  # nobody else could have made it
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert distrust(tmp_path / "circle" / "a.control")


def test_a_daemon_does_not_use_what_others_may_have_made(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shared / "real").mkdir(mode=0o700)
    (shared / "link").symlink_to(shared / "real")
    (shared / "wide").mkdir()
    (shared / "wide").chmod(0o777)
    (shared / "c.control.lock").symlink_to(shared / "victim")
    cases = {"link/a.control": "symbolic link", "wide/a.control": "changed by others", "c.control": "symbolic link"}
    if os.geteuid() == 0:
        (shared / "foreign").mkdir(mode=0o700)
        os.chown(shared / "foreign", 12345, 12345)
        cases["foreign/a.control"] = "belongs to user 12345"
    for name, says in cases.items():
        assert cli.main(["fake", "--control", str(shared / name)], open_hearth=Hearth) == exit_codes.CONFIG
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"hearthd: ipc://{shared / name}: ") and says in line
    assert not (shared / "victim").exists()


def test_a_client_does_not_talk_to_what_others_may_have_made(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = shared / "hearthd-1"
    place.mkdir(mode=0o700)
    (place / "default.control").touch()
    if os.geteuid() == 0:
        os.chown(place, 12345, 12345)
        assert endpoints.control_to_connect(str(place / "default.control"))  # root may look at everybody's
    # Seen by a user whose directory it is not.
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(place))
    for given in ([], ["--control", "default"], ["--control", str(place / "default.control")]):
        if place.stat().st_uid in (0, 54321):
            pytest.skip("needs root to make another user's directory")
        assert ctl.main(["status", *given]) == exit_codes.CONFIG
        (line,) = capsys.readouterr().err.splitlines()
        assert "belongs to user 12345: not connecting" in line


def test_a_directory_that_a_daemon_makes_is_its_own(shared: Path, start_daemon: Callable[..., Any]) -> None:
    before = os.umask(0)
    try:
        daemon = start_daemon("--control", f"ipc://{shared}/a/b/x.control", fake=True)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((shared / name).stat().st_mode) & 0o022 for name in ("a", "a/b")] == [0, 0]
    with Client(daemon.endpoint) as hearth:
        assert hearth.status().pid == daemon.process.pid


def test_secrets_that_others_can_read_are_refused(tmp_path: Path) -> None:
    _, secret = security.write_pair(tmp_path, "server")
    security.write_pair(tmp_path / "clients", "client")
    wanted = ["tcp://127.0.0.1:7575"]
    assert security.Keys.for_daemon(str(tmp_path), wanted)
    for mode, path in ((0o644, secret), (0o660, secret), (0o777, tmp_path / "clients")):
        before = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode)
        with pytest.raises(security.KeyTrouble, match="chmod"):
            security.Keys.for_daemon(str(tmp_path), wanted)
        path.chmod(before)


def test_heat_is_neither_read_nor_written_through_what_others_laid(shared: Path, tmp_path: Path) -> None:
    def kept(directory: Path) -> tuple[Heat, KeptHeat]:
        heat = Heat(1, 4, 2)
        heat.update(np.full((1, 4), 100, dtype=np.uint64))
        return heat, KeptHeat(heat, str(directory), "feed", told.append)

    told: list[str] = []
    (tmp_path / "mine").mkdir()
    _, keeper = kept(tmp_path / "mine")
    keeper.load()
    keeper.save()
    assert (tmp_path / "mine" / "heat-feed").is_file() and told == []
    (shared / "state").symlink_to(tmp_path / "mine")
    _, keeper = kept(shared / "state")
    before = (tmp_path / "mine" / "heat-feed").read_bytes()
    keeper.load()
    keeper.save()
    assert "symbolic link" in keeper.source and len(told) == 1 and "symbolic link" in told[0]
    assert (tmp_path / "mine" / "heat-feed").read_bytes() == before
    # Laid where the file is written before it takes its name.
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "mine" / f".heat-feed.{os.getpid()}").symlink_to(victim)
    heat, _ = kept(tmp_path / "mine")
    heat.save(tmp_path / "mine" / "heat-feed", "feed")
    assert victim.read_text() == "precious"


def test_a_name_that_is_not_utf8_is_shown_with_its_byte(
    tmp_path: Path, start_daemon: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = os.fsdecode(bytes(tmp_path) + b"/mod\xff.gguf")
    os.symlink(cli.demo_model(), path)
    daemon = start_daemon(path, "--trace", os.fsdecode(bytes(tmp_path) + b"/\xfe/absent.npz"))
    with Client(daemon.endpoint) as hearth:
        assert "".join(event.text for event in hearth.generate("Once", max_tokens=2, temperature=0))
        assert hearth.status().model.path == f"{tmp_path}/mod\\xff.gguf"
        assert hearth.plan()["model"]["files"] == [f"{tmp_path}/mod\\xff.gguf"]
        assert any("\\xfe" in warning.message for warning in hearth.status().warnings)
        assert any("\\xfe" in event.message for event in hearth.status().events)
    for command in (["status", "--control", daemon.endpoint], ["plan", path], ["plan", path, "--json"]):
        assert ctl.main(command) == 0
    assert daemon.stop() == 0
    assert json.loads(utf8.json({"a\udcff": ["\ud800é\udc80"]})) == {"a\\xff": ["\\ud800é\\x80"]}


def test_the_service_manager_hears_one_state_a_line(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        told = notify.Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        told.status("warming m\udcff\nMAINPID=1")
        assert manager.recv(4096) == b"STATUS=warming m\\xff MAINPID=1"
        told.close()
