"""Servers under test behind one face: start, wait until ready, stream one generation of given token ids, stop.

Owns how each server is started and spoken to; knows nothing of what is measured. Every server gets the same token
ids, end of text ignored, no cache of prompts, and samples alike.
"""

from __future__ import annotations

import abc
import argparse
import contextlib
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
from measures import disk_bytes


class ContestantFailed(RuntimeError):
    """A server died, gave an error or took longer than it was given."""


@dataclass
class Answer:
    """One generation. Times are of time.monotonic()."""

    sent: float
    token_times: list[float] = field(default_factory=list)
    disk_first: int = 0  # bytes that the process has had read from disk when the first token arrived
    disk_last: int = 0  # and when the last one did
    disk_skipped: int = 0  # and at the token with which `rate` and `disk_per_token` begin
    skip: int = 0  # that token's index
    tokens: list[int] = field(default_factory=list)  # the ids, where the server tells them
    # A server that holds incomplete characters back sends fewer events than tokens; then its own word counts.
    counted: int = 0
    prompt_seconds: float | None = None
    generate_seconds: float | None = None

    @property
    def whole(self) -> bool:
        return self.counted in (0, len(self.token_times))

    @property
    def ttft(self) -> float:
        """Seconds from sending the request to its first token."""
        if not self.whole and self.prompt_seconds is not None:
            return self.prompt_seconds
        return self.token_times[0] - self.sent

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first token (or after the first `skip` + 1); None for a single token."""
        if not self.whole and self.generate_seconds and not self.skip:
            return self.counted / self.generate_seconds
        if len(self.token_times) <= self.skip + 1:
            return None
        return (len(self.token_times) - 1 - self.skip) / (self.token_times[-1] - self.token_times[self.skip])

    @property
    def disk_per_token(self) -> float | None:
        """Bytes read from disk per token, over the tokens that `rate` covers."""
        count = len(self.token_times) - 1 - self.skip
        return (self.disk_last - self.disk_skipped) / count if count > 0 else None


@dataclass(frozen=True)
class Setting:
    """How a program is started on a model."""

    name: str
    binary: str
    model: str
    options: list[str]
    threads: int = 2
    context: int = 2048
    temperature: float = 0.0  # above 0: plain sampling, no filters, the same seed for all
    slots: int = 1  # answers at a time, each of `context` tokens


class Contestant(abc.ABC):
    """A server. One process at a time."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.name = setting.name
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.log = b""
        self._owner = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @abc.abstractmethod
    def command(self, folder: Path) -> list[str]:
        """The command line; what it needs of files lies in the folder."""

    def environment(self, folder: Path) -> dict[str, str]:
        return dict(os.environ)

    def prepare(self, folder: Path) -> None:  # noqa: B027 (most servers need nothing)
        """What must stand before the process starts."""

    @abc.abstractmethod
    def is_ready(self) -> bool:
        """Whether requests are taken; waits a few milliseconds at most when they are not."""

    @abc.abstractmethod
    def stream(self, tokens: list[int], answer: Answer, count: int, deadline: float) -> Iterator[int | None]:
        """The tokens as they come, None where only the time is known; ends early at the deadline."""

    def release(self) -> None:  # noqa: B027
        """Undo prepare()."""

    def start(self, cgroup: Path | None = None) -> None:
        """Start the process, in a cgroup when one is given (it joins before it becomes the server)."""
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        folder = Path(self._folder.name)
        self.prepare(folder)
        command = self.command(folder)
        command[0] = str(Path(shutil.which(command[0]) or command[0]).absolute())
        if cgroup is not None:
            command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(cgroup / "cgroup.procs"), *command]
        with open(folder / "log", "wb") as log:
            self.started, self._owner = time.monotonic(), os.getpid()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,  # some write a log of their own where they stand
                env=self.environment(folder),
            )

    @property
    def pid(self) -> int:
        if self.process is None:
            raise ContestantFailed(f"{self.name} is not running")
        return self.process.pid

    def _check(self) -> None:
        if self._owner != os.getpid():
            return  # a client forked from who started it: only that one is told of its end
        if self.process is None or self.process.poll() is not None:
            code = None if self.process is None else self.process.returncode
            raise ContestantFailed(f"{self.name} ended with {code}: {self.tail()}")

    def tail(self) -> str:
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self.log = (Path(self._folder.name) / "log").read_bytes()
        return self.log[-2000:].decode(errors="replace")

    def wait_ready(self, timeout: float = 300.0) -> float:
        """Seconds from the process' start until it takes requests. Raises ContestantFailed."""
        deadline = self.started + timeout
        while not self.is_ready():
            self._check()
            if time.monotonic() > deadline:
                raise ContestantFailed(f"{self.name} was not ready within {timeout:.0f} s: {self.tail()}")
        return time.monotonic() - self.started

    def generate(self, tokens: list[int], count: int, timeout: float = 600.0, skip: int = 0) -> Answer:
        """Stream `count` tokens after a prompt of token ids. A timeout ends the answer early, with what it has.

        The first `skip` tokens are left out of the answer's rate. Raises ContestantFailed when no token comes.
        """
        self._check()
        answer = Answer(sent=time.monotonic())
        for token in self.stream(tokens, answer, count, answer.sent + timeout):
            answer.token_times.append(time.monotonic())
            if token is not None:
                answer.tokens.append(token)
            seen = len(answer.token_times)
            if seen == 1:
                answer.disk_first = answer.disk_skipped = disk_bytes(self.pid)
            elif seen == skip + 1:
                answer.skip, answer.disk_skipped = skip, disk_bytes(self.pid)
            if time.monotonic() > answer.sent + timeout:
                break
        if not answer.token_times:
            self._check()
            raise ContestantFailed(f"{self.name} gave no token: {self.tail()}")
        answer.disk_last = disk_bytes(self.pid)
        return answer

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.release()
        if self._folder is not None:
            self.tail()
            self._folder.cleanup()
            self._folder = None


class LlamaServer(Contestant):
    """llama-server of llama.cpp or of ik_llama.cpp: HTTP, /health and /completion with token ids."""

    port = 0

    def command(self, folder: Path) -> list[str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        use = self.setting
        own = ["-m", use.model, "--host", "127.0.0.1", "--port", str(self.port)]
        room = ["-c", str(use.context * use.slots), "-np", str(use.slots)]
        common = ["-t", str(use.threads), *room, "--cache-ram", "0"]
        return [use.binary, *own, *common, *use.options]

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            ready = connection.getresponse().status == 200
        except OSError:
            ready = False
        finally:
            connection.close()
        if not ready:
            time.sleep(0.005)
        return ready

    def stream(self, tokens: list[int], answer: Answer, count: int, deadline: float) -> Iterator[int | None]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=max(1.0, deadline - time.monotonic()))
        body = {
            "prompt": tokens,
            "n_predict": count,
            "temperature": self.setting.temperature,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "seed": 1,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
            "return_tokens": True,
        }
        try:
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise ContestantFailed(f"{self.name}: HTTP {response.status}: {response.read()[:500]!r}")
            while line := response.readline():
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                event: dict[str, Any] = json.loads(line[6:])
                if "error" in event:
                    raise ContestantFailed(f"{self.name}: {event['error']}")
                if event.get("stop"):
                    timings = event.get("timings", {})
                    answer.counted = event.get("tokens_predicted", 0)
                    answer.prompt_seconds = timings.get("prompt_ms", 0.0) / 1000
                    answer.generate_seconds = timings.get("predicted_ms", 0.0) / 1000
                    return
                ids = event.get("tokens") or [None]
                yield ids[0]
            raise ContestantFailed(f"{self.name} broke its answer off: {self.tail()}")
        except TimeoutError:
            return
        except (OSError, http.client.HTTPException) as error:
            # Killed in mid-answer: the other contestants' rounds go on.
            raise ContestantFailed(f"{self.name}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()


class Hearthd(Contestant):
    """hearthd: READY over a notify socket of our own, a DEALER socket on its control endpoint for each answer."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._notify: socket.socket | None = None
        self._endpoint = ""

    def prepare(self, folder: Path) -> None:
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(folder / "notify"))
        self._notify.settimeout(0.1)
        self._endpoint = f"ipc://{folder}/control"

    def command(self, folder: Path) -> list[str]:
        use = self.setting
        own = [use.model, "--control", self._endpoint, "--telemetry", f"ipc://{folder}/telemetry"]
        room = ["--context", str(use.context), *(["--sessions", str(use.slots)] if use.slots > 1 else [])]
        return [use.binary, *own, "--threads", str(use.threads), *room, *use.options]

    def environment(self, folder: Path) -> dict[str, str]:
        # A state directory of its own: heat of an earlier run must not order this one's sweep.
        state = str(folder)
        places = {"NOTIFY_SOCKET": f"{folder}/notify", "STATE_DIRECTORY": state, "XDG_STATE_HOME": state}
        return {**os.environ, **places}

    def is_ready(self) -> bool:
        if self._notify is None:
            return False
        try:
            return b"READY=1" in self._notify.recv(65536).splitlines()
        except TimeoutError:
            return False

    def stream(self, tokens: list[int], answer: Answer, count: int, deadline: float) -> Iterator[int | None]:
        request = {
            "op": "generate",
            "id": "bench",
            "tokens": tokens,
            "max_tokens": count,
            "sampling": {
                "temperature": self.setting.temperature,
                "top_k": 0,
                "top_p": 1.0,
                "min_p": 0.0,
                "seed": 1,
            },
            "ignore_eos": True,
            "stream": True,
        }
        with zmq.Context.instance().socket(zmq.DEALER) as control:  # of this process: clients may be forked ones
            control.linger = 500
            control.connect(self._endpoint)
            control.send_multipart([b"", json.dumps(request).encode()])
            while (left := deadline - time.monotonic()) > 0:
                if not control.poll(int(min(left, 1.0) * 1000)):
                    self._check()  # a socket does not tell that the other side is gone
                    continue
                reply = json.loads(control.recv_multipart()[-1])
                match reply.get("event"):
                    case "token":
                        yield reply["token"]
                    case "done":
                        return
                    case "error":
                        raise ContestantFailed(f"{self.name}: {reply}")

    def release(self) -> None:
        if self._notify is not None:
            self._notify.close()
            self._notify = None


def has_option(binary: str, option: str) -> bool:
    """Whether a program's help names an option."""
    done = subprocess.run([binary, "--help"], capture_output=True, text=True, errors="replace", check=False)
    return option in (done.stdout + done.stderr).replace(",", " ").split()


START_SETTINGS = {
    "llama.cpp": {
        "default": "",
        "no-warmup": "--no-warmup",
        "no-warmup no-repack": "--no-warmup --no-repack",
    },
    "ik": {
        "default": "",
        "no-warmup": "--no-warmup",
        "defer": "--defer-experts",
        "no-warmup prefetch": "--no-warmup --prefetch-experts",
        "defer prefetch": "--defer-experts --prefetch-experts",
    },
}


def add_arguments(parser: argparse.ArgumentParser, temperature: float = 0.0) -> None:
    """The options by which every script that starts servers is told of them."""
    parser.add_argument("model")
    parser.add_argument("--hearthd", help="its program (default: from PATH; none: leave out)")
    parser.add_argument(
        "--hearthd-options", action="append", default=[], help="one string of options per hearthd contestant; repeat"
    )
    parser.add_argument("--llama-server", help="llama.cpp's")
    parser.add_argument("--ik-server", help="ik_llama.cpp's")
    parser.add_argument("--only", help="contestants whose name contains one of these words (comma)")
    parser.add_argument("--vocabulary", type=int, default=151936, help="prompts' token ids are drawn below this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--temperature", type=float, default=temperature, help=f"(default {temperature:g})")
    parser.add_argument("--lock", help="hold this file's flock during each measurement")
    parser.add_argument("--json", help="write the results there")


def contestants_of(
    given: argparse.Namespace, settings: dict[str, dict[str, str]] | None = None, slots: int = 1
) -> dict[str, Contestant]:
    """All contestants whose programs were given and, with `only`, whose name contains one of its words.

    settings: options of the others' by family and name; None: those of a start. slots: answers at a time of each.
    """
    found: dict[str, Contestant] = {}

    def add(kind: type[LlamaServer] | type[Hearthd], name: str, binary: str, options: list[str]) -> None:
        wanted = any(word in name for word in (given.only or "").split(","))
        if wanted and all(has_option(binary, option) for option in options if option.startswith("--")):
            found[name] = kind(
                Setting(
                    name,
                    binary,
                    os.path.abspath(given.model),
                    options,
                    given.threads,
                    given.context,
                    given.temperature,
                    slots,
                )
            )

    hearthd = find_program(given.hearthd, "hearthd")
    if hearthd is not None:
        for text in given.hearthd_options or [""]:
            add(Hearthd, f"hearthd {text}".strip(), hearthd, shlex.split(text))
    for family, binary in (("llama.cpp", given.llama_server), ("ik", given.ik_server)):
        if binary is not None:
            for setting, text in (settings or START_SETTINGS)[family].items():
                add(LlamaServer, f"{family} {setting}", binary, shlex.split(text))
    return found


def find_program(given: str | None, name: str) -> str | None:
    """A program's path: as given ("none" leaves it out), else from PATH."""
    if given == "none":
        return None
    return given or shutil.which(name)
