"""Settings that cannot be: every refusal is one line that names where the value came from, with an exit code."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hearthd.daemon import cli, config, ctl, exit_codes, security
from hearthd.daemon.client import Client

from .fake_hearth import Hearth


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("threads", "-1", "-1 is not between 0 and 4096"),
        ("threads", "100000", "100000 is not between"),
        ("threads", "many", "'many' is not a whole number"),
        ("batch", "0", "0 is not between 1 and"),
        ("queue", "0", "0 is not between 1 and"),
        ("sessions", "1000000", "is not between 1 and"),
        ("drain_seconds", "nan", "nan is not between 0 and 3600"),
        ("drain_seconds", "soon", "'soon' is not a number"),
        ("warm", "sometimes", "'sometimes' is not one of auto, background, before-ready, off"),
        ("memory_budget", "5", "5 has no unit: 5G"),
        ("mirror_budget", "5000000000", "has no unit: 5000000000B"),
        ("mirror_budget", "auto", "neither a size"),
        ("memory_budget", "0%", "not between 0 and 100 %"),
        ("name", "a/b", "cannot be part of a socket's path"),
        ("control", "tcp://127.0.0.1:99999", "port from 1 to 65535"),
        ("telemetry", "http://x", "expected ipc://PATH or tcp://HOST:PORT"),
        ("control", "/tmp/m\udcff.control", "not UTF-8"),
    ],
)
def test_an_impossible_value_is_refused_where_it_came_from(key: str, value: str, says: str) -> None:
    places: list[tuple[str, dict[str, str], dict[str, str]]] = [
        ("--" + key.replace("_", "-"), {key: value}, {}),
        ("HEARTHD_" + key.upper(), {}, {"HEARTHD_" + key.upper(): value}),
    ]
    for place, flags, environ in places:
        with pytest.raises(config.ConfigError) as refused:
            config.load(flags, environ=environ)
        assert str(refused.value).startswith(place + ": ") and says in str(refused.value)


def test_a_file_is_named_with_its_key(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    for text, says in [
        ("drain-seconds = nan", f"{file}: drain-seconds: nan is not between"),
        ("threads = true", f"{file}: threads: True is not a whole number"),
        ("memory-budget = 5000000000", f"{file}: memory-budget: 5000000000 has no unit"),
        ("warm = ['off']", f"{file}: warm: ['off'] is not one of"),
        ("thread = 1", f"{file}: unknown key 'thread' (meant: threads?)"),
        ("state-directory = 'x'\nstate_directory = 'y'", f"{file}: state-directory is there twice"),
    ]:
        file.write_text(text)
        with pytest.raises(config.ConfigError) as refused:
            config.load({}, file=str(file), environ={})
        assert str(refused.value).startswith(says)


def test_the_daemons_plan_takes_no_settings(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value in (("--sessions", "8"), ("--context", "64"), ("--memory-budget", "5G"), ("--type", "Q8_0")):
        assert ctl.main(["plan", flag, value]) == exit_codes.USAGE
        assert f"{flag}: needs a MODEL" in capsys.readouterr().err


def test_every_command_wants_a_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["m", "--memory-budget", "5"]) == exit_codes.CONFIG
    assert ctl.main(["plan", "m", "--memory-budget", "5"]) == exit_codes.CONFIG
    assert ctl.main(["synth", str(tmp_path / "o.gguf"), "--size", "5"]) == exit_codes.USAGE
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1:] for line in lines] == [
        ["--memory-budget", "5 has no unit", "5G, for instance"],
        ["--memory-budget", "5 has no unit", "5G, for instance"],
        ["--size", "5 has no unit", "5G, for instance"],
    ]


def test_a_variable_that_nothing_reads_is_told(start_daemon: Callable[..., Any]) -> None:
    daemon = start_daemon("--demo", "--warm", "off", env={"HEARTHD_MEMORY_BUGDET": "1G"})
    with Client(daemon.endpoint) as hearth:
        (warning,) = [w for w in hearth.status().warnings if w.code == "unknown-variable"]
    assert "HEARTHD_MEMORY_BUGDET (meant: HEARTHD_MEMORY_BUDGET?)" in warning.message
    assert config.strange_variables({"HEARTHD_CONTROL": "x", "HEARTHD_ISA": "c", "HEARTHD_CONFIG": "f"}) == []


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    directory = tmp_path / "keys"
    security.write_pair(directory, "server")
    security.write_pair(directory / "clients", "client")
    return directory


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str]]]:
    """Exit code and stderr's lines of a daemon that does not get far."""

    def run(*arguments: str) -> tuple[int, list[str]]:
        capsys.readouterr()
        return cli.main(["fake", *arguments], open_hearth=Hearth), capsys.readouterr().err.splitlines()

    return run


def test_a_tcp_endpoint_that_cannot_be_had_is_one_line(keys: Path, ended: Any) -> None:
    with socket.socket() as other, socket.socket() as free:
        other.bind(("127.0.0.1", 0))
        other.listen()
        free.bind(("127.0.0.1", 0))
        taken, port = other.getsockname()[1], free.getsockname()[1]
        free.close()
        own = f"tcp://127.0.0.1:{port}"
        for control, telemetry, code, says in [
            (f"tcp://127.0.0.1:{taken}", own, exit_codes.UNAVAILABLE, "in use by another program"),
            (own, f"tcp://127.0.0.1:{taken}", exit_codes.UNAVAILABLE, "in use by another program"),
            ("tcp://no-such-host.invalid:7575", own, exit_codes.CONFIG, "no such host"),
            ("tcp://192.0.2.1:7575", own, exit_codes.CONFIG, "not an address of this machine"),
        ]:
            found, lines = ended("--keys", str(keys), "--control", control, "--telemetry", telemetry)
            assert found == code and len(lines) == 1 and says in lines[0] and lines[0].startswith("hearthd: tcp://")
    found, lines = ended("--keys", str(keys), "--control", "tcp://127.0.0.1:65535")
    assert found == exit_codes.CONFIG and "--telemetry" in lines[0] and len(lines) == 1


def test_what_lies_at_an_ipc_path_is_not_removed(tmp_path: Path, ended: Any) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    found, lines = ended("--control", str(tmp_path / "notes.txt"))
    assert found == exit_codes.CONFIG and len(lines) == 1 and "no socket" in lines[0]
    assert (tmp_path / "notes.txt").read_text() == "precious"
    for path in ("/proc/x.control", os.fsdecode(bytes(tmp_path) + b"/\xff.control")):
        found, lines = ended("--control", path)
        assert found == exit_codes.CONFIG and len(lines) == 1
