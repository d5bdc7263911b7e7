"""The command lines: settings and where they come from, exit codes, output for programs and for people."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from hearthd.daemon import cli, config, ctl, endpoints, exit_codes, protocol, security

from .conftest import ROOT, daemons


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with daemons(tmp_path_factory.mktemp("cli")) as start:
        yield start(fake=True)


@pytest.fixture
def hearthctl(daemon: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> str:
        code = ctl.main([arguments[0], "--control", daemon.endpoint, *arguments[1:]])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run


def test_generate_for_programs(hearthctl: Any) -> None:
    out = hearthctl("generate", "--tokens", "1,2,3", "-n", "16", "--temperature", "0", "--ignore-eos", "--json")
    data = json.loads(out)
    assert data["tokens"] == list(range(4, 20)) and data["text"]
    assert set(data["timings"]) >= {"prompt_tokens", "ttft_seconds", "prompt_seconds", "generated", "generate_seconds"}
    assert data["timings"]["prompt_tokens"] == 3 and data["timings"]["generated"] == 16


def test_generate_and_chat_for_people(hearthctl: Any) -> None:
    assert hearthctl("generate", "abc", "-n", "4") == "defg\n"
    assert hearthctl("chat", "abc", "-n", "2") == "de\n"


def test_score_saves_logits(hearthctl: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    data = json.loads(hearthctl("score", "--tokens", "1,2,3", "--logits", str(out), "--json"))
    logits = np.load(out)
    assert logits.shape == tuple(data["shape"]) == (3, 256) and logits.dtype == np.float32
    assert logits.argmax(axis=1).tolist() == [2, 3, 4]


def test_tokens_and_text(hearthctl: Any) -> None:
    assert json.loads(hearthctl("tokenize", "hi", "--json"))["tokens"] == [104, 105]
    assert hearthctl("detokenize", "104,105") == "hi\n"


@pytest.mark.parametrize("command", ["status", "residency", "experts"])
def test_reading_commands(hearthctl: Any, command: str) -> None:
    assert isinstance(json.loads(hearthctl(command, "--json")), dict)
    assert hearthctl(command)


def test_acting_commands(hearthctl: Any) -> None:
    for command in (["warm", "--layers", "0-1"], ["defer", "--experts", "0,2"], ["pin", "--hottest", "1"]):
        assert isinstance(json.loads(hearthctl(*command, "--json")), dict)


def test_exit_codes(daemon: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(["status", "--control", f"ipc://{tmp_path}/nobody"]) == exit_codes.UNAVAILABLE
    assert ctl.main(["status", "--control", "http://example.org"]) == exit_codes.CONFIG
    assert ctl.main(["cancel", "nobody", "--control", daemon.endpoint]) == exit_codes.FAILURE
    with pytest.raises(SystemExit) as usage:
        ctl.main(["dance"])
    assert usage.value.code == exit_codes.USAGE
    assert cli.main([str(tmp_path / "absent.gguf"), "--control", f"ipc://{tmp_path}/x"]) == exit_codes.DATA
    (tmp_path / "foreign.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    assert cli.main([str(tmp_path / "foreign.gguf"), "--control", f"ipc://{tmp_path}/x"]) == exit_codes.DATA
    assert cli.main(["m", "--control", "tcp://127.0.0.1:7575"]) == exit_codes.CONFIG
    assert cli.main(["m", "--memory-budget", "lots"]) == exit_codes.CONFIG
    (tmp_path / "c.toml").write_text("modle = 'x'\n")
    assert cli.main(["--config", str(tmp_path / "c.toml")]) == exit_codes.CONFIG
    assert "unknown key 'modle'" in capsys.readouterr().err


def test_settings_come_in_order(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("model = 'file'\nthreads = 3\nmemory-budget = '1G'\nwarm = 'off'\n")
    made = config.load({"warm": "auto"}, file=str(file), environ={"HEARTHD_THREADS": "2", "HEARTHD_CONTROL": "x"})
    assert (made.model, made.threads, made.memory_budget, made.warm) == ("file", 2, "1G", "auto")
    assert made.control == "x" and made.experts == "defer"
    for bad in ({"threads": "many"}, {"experts": "never"}, {"context": "-1"}, {"name": "a/b"}):
        with pytest.raises(config.ConfigError):
            config.load(bad, environ={})
    file.write_text("threads = 'two'\n")
    with pytest.raises(config.ConfigError, match="threads"):
        config.load({}, file=str(file), environ={})


def test_help_and_example_name_every_setting() -> None:
    example = (ROOT / "systemd" / "example.toml").read_text()
    shown = tomllib.loads(re.sub(r"(?m)^# (?=[a-z-]+ = )", "", example))
    assert {key.replace("-", "_") for key in shown} == set(config.FIELDS)
    flags = cli.parser().format_help()
    assert all(f"--{name.replace('_', '-')} " in flags for name in set(config.FIELDS) - {"model"})


def test_budgets() -> None:
    assert config.parse_budget("auto", 100) is None
    assert config.parse_budget("80%", 1000) == 800
    assert config.parse_budget("1.5G", 0) == 3 << 29
    assert config.parse_budget("4GiB", 0) == 4 << 30
    for bad in ("", "0%", "101%", "12Q", "-1"):
        with pytest.raises(config.ConfigError):
            config.parse_budget(bad, 100)


def test_endpoints(tmp_path: Path) -> None:
    assert endpoints.control_to_bind("", "a", {"RUNTIME_DIRECTORY": "/run/h"}) == "ipc:///run/h/a.control"
    assert endpoints.control_to_bind("", "a", {"XDG_RUNTIME_DIR": "/run/1"}) == "ipc:///run/1/hearthd/a.control"
    assert endpoints.telemetry_to_bind("", "tcp://h:7000") == "tcp://h:7001"
    environment = {"RUNTIME_DIRECTORY": str(tmp_path)}
    (tmp_path / "only.control").touch()
    assert endpoints.control_to_connect("", environment) == f"ipc://{tmp_path}/only.control"
    (tmp_path / "second.control").touch()
    with pytest.raises(endpoints.EndpointError, match="only, second"):
        endpoints.control_to_connect("", environment)
    assert endpoints.control_to_connect("second", environment) == f"ipc://{tmp_path}/second.control"
    assert endpoints.control_to_connect("third", environment) == f"ipc://{tmp_path}/third.control"
    with pytest.raises(endpoints.EndpointError, match="share"):
        endpoints.telemetry_to_bind("/tmp/a.control", "ipc:///tmp/a.control")
    with pytest.raises(endpoints.EndpointError, match="107"):
        endpoints.check("ipc:///" + "a" * 120)


def test_tcp_needs_keys_and_checks_them(tmp_path: Path) -> None:
    assert ctl.main(["keys", str(tmp_path / "keys")]) == 0
    (tmp_path / "stranger").mkdir()
    security.write_pair(tmp_path / "stranger", "stranger")
    (tmp_path / "stranger" / "server.key").write_bytes((tmp_path / "keys" / "server.key").read_bytes())
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
    endpoint = f"tcp://127.0.0.1:{port}"
    known = str(tmp_path / "keys" / "client" / "client.key_secret")
    with daemons(tmp_path) as start:
        start("--control", endpoint, "--telemetry", f"ipc://{tmp_path}/t", "--keys", str(tmp_path / "keys"), fake=True)
        assert ctl.main(["status", "--control", endpoint, "--keys", known]) == 0
        assert ctl.main(["status", "--control", endpoint]) == exit_codes.CONFIG
        from hearthd.daemon.client import Client, Unreachable

        with pytest.raises(Unreachable):
            Client(endpoint, keys=str(tmp_path / "stranger" / "stranger.key_secret"), connect=0.3)


def test_the_start_imports_nothing_heavy() -> None:
    """What a daemon imports until READY decides how soon that is with a cold cache."""
    script = (
        "import sys, hearthd.daemon.cli, hearthd.daemon.service, hearthd.daemon.hearth\n"
        "heavy = {'gguf', 'jinja2', 'textual', 'psutil', 'shtab', 'asyncio', 'regex'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ)


def test_a_flag_that_is_not_known_is_told_its_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--demo", "--memroy-budget=10G"])
    assert ended.value.code == exit_codes.USAGE
    assert "--memroy-budget=10G (meant: --memory-budget?)" in capsys.readouterr().err


def test_versions_and_completion(capsys: pytest.CaptureFixture[str]) -> None:
    for main in (cli.main, ctl.main):
        with pytest.raises(SystemExit) as ended:
            main(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.split()[1][0].isdigit()
        with pytest.raises(SystemExit) as ended:
            main(["--print-completion", "bash"])
        assert ended.value.code == 0
        assert "complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, stdin, code, says",
    [
        (["generate", "-"], b"ab\xff", exit_codes.USAGE, "byte 2 is 0xff"),
        (["generate", b"a\xff"], b"", exit_codes.USAGE, "not UTF-8"),
        (["generate", "hello", "--tokens", "1,2"], b"", exit_codes.USAGE, "exclude each other"),
        (["generate", "hello", "--logprobs", "3"], b"", exit_codes.USAGE, "without --json"),
        (["generate", "hello", "--temperature", "nan"], b"", exit_codes.USAGE, "--temperature"),
        (["score", "hello", "--logits", "/nowhere/x.npy"], b"", exit_codes.FAILURE, "/nowhere/x.npy: No such file"),
        (["synth", "x.gguf", "--size", "10%"], b"", exit_codes.USAGE, "--size"),
        (["synth", "x.gguf", "--size", "lots"], b"", exit_codes.USAGE, "--size"),
        (["generate", "hello", "--logit-bias", "5:1"], b"", exit_codes.USAGE, "'5:1' is not a list of ID=BIAS"),
        (["generate", "hello", "--temprature", "1"], b"", exit_codes.USAGE, "--temprature (meant: --temperature?)"),
        (["warm", "--wiat"], b"", exit_codes.USAGE, "--wiat (meant: --wait?)"),
        (["warm", "--layers", "0,3-1"], b"", exit_codes.USAGE, "'3-1' counts down: 1-3"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    daemon: Any, arguments: list[str | bytes], stdin: bytes, code: int, says: str
) -> None:
    command: list[str | bytes] = [sys.executable, "-m", "hearthd.daemon.ctl", *arguments, "--control", daemon.endpoint]
    ran = subprocess.run(command, input=stdin, capture_output=True, check=False, env=os.environ)
    error = ran.stderr.decode()
    assert ran.returncode == code and says in error and "Traceback" not in error, error


@pytest.mark.parametrize("command", ["generate", "tokenize", "score", "chat"])
def test_one_newline_of_a_pipe_is_not_the_prompts(daemon: Any, command: str) -> None:
    program = [sys.executable, "-m", "hearthd.daemon.ctl", command, "-", "--json", "--control", daemon.endpoint]
    program += ["-n", "2"] if command in ("generate", "chat") else []
    answers = []
    for stdin in (b"ab", b"ab\n", b"ab\n\n"):
        ran = subprocess.run(program, input=stdin, capture_output=True, check=True, env=os.environ)
        answers.append(json.loads(ran.stdout)["tokens"])
    assert answers[0] == answers[1] != answers[2]


def test_protocol_prints_a_schema(hearthctl: Any) -> None:
    assert json.loads(hearthctl("protocol"))["$defs"]["request"]["anyOf"]


def test_a_request_that_no_daemon_takes_is_not_sent(
    daemon: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(protocol, "MESSAGE_LIMIT", 1000)
    assert ctl.main(["generate", "a" * 1000, "--control", daemon.endpoint]) == exit_codes.FAILURE
    assert "a daemon takes 1000" in capsys.readouterr().err


def test_an_impossible_instruction_set_is_a_wrong_setting(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hearthd.daemon.cli", "--demo", "--control", f"ipc://{tmp_path}/x"]
    environ = {**os.environ, "HEARTHD_ISA": "abacus"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert ran.returncode == exit_codes.CONFIG and "abacus" in ran.stderr and "ready" not in ran.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-m", "hearthd.daemon.ctl", "--print-completion", "bash"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ) as ran:
        assert ran.stdout is not None and ran.stderr is not None
        ran.stdout.close()
        assert not ran.stderr.read()
