"""A daemon to be put under strain: started on a model in a directory of its own, asked, measured, and watched by a
bystander. Shared by the harnesses of this folder, which run for long; each says in its head how.

    with Daemon() as daemon, Bystander(daemon) as bystander:
        ...                                     # the strain
        print(bystander.stop())                 # Seen(asked=…, failed=…, longest=…)

Owns processes and sockets only; what a harness strains, and what it calls a fault, is its own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import hearthd.daemon
import zmq

ROOT = Path(__file__).resolve().parents[2]
FAKE = ROOT / "tests" / "fake_hearth.py"
PACKAGED = Path(hearthd.daemon.__path__[0]) / "data" / "tinystories-moe-Q4_K_M.gguf"
READY_SECONDS = 60.0
QUESTION = {"op": "generate", "tokens": [5, 6, 7, 8], "max_tokens": 8, "ignore_eos": True,
            "sampling": {"temperature": 0}}  # fmt: skip

Answer = dict[str, Any]


def models() -> Path | None:
    """The directory of the shared test models, as tests/conftest.py finds it; None where there is none."""
    path = Path(os.environ.get("HEARTHD_TEST_MODELS") or ROOT.parent / "shared" / "models")
    return path if path.is_dir() else None


def small_model() -> Path:
    """A model of two layers where the shared ones are, else the packaged one."""
    found = models()
    tiny = found / "tiny" / "moe-q4_0.gguf" if found else PACKAGED
    return tiny if tiny.is_file() else PACKAGED


class NoAnswer(Exception):
    """The daemon is gone, or silent for longer than was waited."""


class Daemon:
    """A process of the installed hearthd that serves `model` (default: a small one) until the body ends.

    arguments: more flags. program: what Python runs instead of hearthd's command line, with the same arguments. fake:
    serve tests/fake_hearth.py, whose engine only counts. wrap: words before the command, such as `nice -n 10`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *arguments: str,
        program: Sequence[str] = ("-m", "hearthd.daemon.cli"),
        fake: bool = False,
        env: dict[str, str] | None = None,
        wrap: Sequence[str] = (),
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="hearthd-fuzz-")
        self.directory = Path(self._directory.name)
        self.endpoint = f"ipc://{self.directory}/d.control"
        self._log = self.directory / "log"
        program = [str(FAKE), "fake"] if fake else [*program, os.fspath(model or small_model())]
        surroundings = {"HEARTHD_STATE_DIRECTORY": str(self.directory / "state")}
        with self._log.open("w") as stderr:
            self.process = subprocess.Popen(
                [*wrap, sys.executable, *program, "--control", self.endpoint, *arguments],
                stderr=stderr,
                stdout=stderr,
                env=os.environ | surroundings | (env or {}),
            )

    def __enter__(self) -> Daemon:
        until = time.monotonic() + READY_SECONDS
        while "ready after" not in self.log:
            if self.process.poll() is not None or time.monotonic() > until:
                code, log = self.process.poll(), self.log
                self.close()
                raise NoAnswer(f"the daemon did not get ready (exit {code}):\n{log}")
            time.sleep(0.02)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._directory.cleanup()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def tracebacks(self) -> int:
        """How many the log has: every one is a fault."""
        return self.log.count("Traceback (most recent call last)")

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    # -- talking -----------------------------------------------------------------------------------------------------

    def ask(self, request: Answer | bytes, seconds: float = 20) -> Answer:
        """One request from a client of its own; the last reply (a stream's events are passed over)."""
        with Client(self.endpoint) as client:
            return client.ask(request, seconds)

    def ask_apart(self, request: Answer | bytes, seconds: float = 20) -> Answer:
        """As `ask`, from a process of its own: a daemon takes all connections of one process for one client."""
        forked = multiprocessing.get_context("fork")
        mine, other = forked.Pipe()
        process = forked.Process(target=_ask_apart, args=(self.endpoint, request, seconds, other), daemon=True)
        process.start()
        try:
            answer: Answer | None = mine.recv() if mine.poll(seconds + 10) else None
        finally:
            process.kill()
            process.join()
        if answer is None:
            raise NoAnswer(f"nothing came in {seconds:g} s")
        return answer

    # -- measuring ---------------------------------------------------------------------------------------------------

    def memory(self) -> int:
        """Bytes that the process holds for itself: anonymous and shared memory, without pages of the model's file; 0
        when it has ended."""
        return self._status("RssAnon") + self._status("RssShmem")

    def _status(self, field: str) -> int:
        with suppress(OSError):  # it may have ended
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith(field + ":"):
                    return int(line.split()[1]) << 10
        return 0

    def processor_seconds(self) -> float:
        """Of all its threads since it began."""
        with suppress(OSError):
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0


class Client:
    """A DEALER of its own, with a context of its own: nothing of it outlives it, and it may live in any process."""

    def __init__(self, endpoint: str, **options: int) -> None:
        self.endpoint = endpoint
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        for name, value in options.items():  # such as rcvhwm=1: a client that takes little
            setattr(self.socket, name, value)
        self.socket.connect(endpoint)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close(0)
        self._context.term()

    def send(self, request: Answer | bytes) -> None:
        """As it is: a dictionary as JSON, bytes as bytes."""
        self.socket.send_multipart([b"", request if isinstance(request, bytes) else json.dumps(request).encode()])

    def take(self, seconds: float = 20) -> Answer:
        """The next reply or event. Raises NoAnswer."""
        if not self.socket.poll(int(seconds * 1000)):
            raise NoAnswer(f"nothing came in {seconds:g} s")
        frames = self.socket.recv_multipart()
        found: Answer = json.loads(frames[1] if not frames[0] else frames[0])
        return found

    def ask(self, request: Answer | bytes, seconds: float = 20) -> Answer:
        """The last reply. Raises NoAnswer."""
        self.send(request)
        while (reply := self.take(seconds))["event"] in ("token", "progress"):
            pass
        return reply


class Seen(NamedTuple):
    """What a bystander saw: requests asked; those that failed or were answered otherwise than alone; the longest wait
    in seconds; the first wrong answers, as they came."""

    asked: int
    failed: int
    longest: float
    wrong: list[Answer]


class Bystander:
    """A client in a process of its own that asks the same again and again, as long as the body lasts.

    It first asks while nobody else does: every later answer has to be the same. question: a request with one right
    answer (greedy by default); pause: seconds between two.
    """

    def __init__(self, daemon: Daemon, question: Answer | None = None, *, pause: float = 0.0, seconds: float = 60):
        self._question = question or QUESTION
        self._alone = essence(daemon.ask(self._question, seconds))
        if "error" in self._alone:
            raise NoAnswer(f"the bystander's question is refused: {self._alone}")
        forked = multiprocessing.get_context("fork")
        self._pipe, other = forked.Pipe()
        self._process = forked.Process(target=self._live, args=(daemon.endpoint, other, pause, seconds), daemon=True)

    def __enter__(self) -> Bystander:
        self._process.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def stop(self, seconds: float = 90) -> Seen:
        """Wait for the answer in progress; what was seen. Raises NoAnswer when the process itself is gone."""
        self._pipe.send(None)
        if not self._pipe.poll(seconds):
            raise NoAnswer("the bystander does not answer")
        seen: Seen = self._pipe.recv()
        self._process.join()
        return seen

    def _live(self, endpoint: str, pipe: Any, pause: float, seconds: float) -> None:
        asked = failed = 0
        longest = 0.0
        wrong: list[Answer] = []
        with Client(endpoint) as client:
            while not pipe.poll(pause):
                began = time.monotonic()
                try:
                    answer = client.ask(self._question, seconds)
                except NoAnswer as error:
                    answer = {"event": "silence", "message": str(error)}
                longest = max(longest, time.monotonic() - began)
                asked += 1
                if essence(answer) != self._alone:
                    failed += 1
                    wrong += [answer] if len(wrong) < 5 else []
                if answer["event"] == "silence":  # a late answer must not be taken for the next one's
                    client.close()
                    client.__init__(endpoint)  # type: ignore[misc]
        pipe.send(Seen(asked, failed, longest, wrong))


def _ask_apart(endpoint: str, request: Answer | bytes, seconds: float, pipe: Any) -> None:
    try:
        with Client(endpoint) as client:
            pipe.send(client.ask(request, seconds))
    except NoAnswer:
        pipe.send(None)


def essence(answer: Answer) -> Answer:
    """What has to be the same whenever it is asked: no times, no ids."""
    if answer["event"] == "done":
        return {name: answer.get(name) for name in ("reason", "text", "tokens")}
    if answer["event"] == "result":
        return {"data": {name: value for name, value in answer["data"].items() if name != "seconds"}}
    return {"error": {name: answer.get(name) for name in ("event", "code", "message")}}
