"""The demo: a daemon on the packaged model, cold where it may be, a story, and what warming did meanwhile.

Owns the daemon that it starts, and ends it. Every number it prints comes from that daemon or from the kernel.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from . import Add, CommandError, size

PROMPT = "Once upon a time, there was a little girl named Lily. She loved to play in the garden with her dog. One day,"
START_SECONDS = 30.0


def register(add: Add) -> None:
    demo = add("demo", "start a daemon on a small model and watch it tell a story while it warms", run_demo)
    demo.add_argument("--prompt", default=PROMPT, help="how the story begins")
    demo.add_argument("-n", "--max-tokens", type=int, default=200, metavar="N")
    demo.add_argument("--seed", type=int, default=7)
    demo.add_argument("--model", metavar="MODEL", default="", help="another model than the packaged one")
    demo.add_argument("--monitor", action="store_true", help="open hearthtop on it instead")


def evict(path: Path) -> None:
    """Ask for a file's pages to leave the page cache. What other processes have mapped stays.

    DONTNEED takes clean pages only (posix_fadvise(2)): a file written a moment ago has to be written out first.
    """
    with path.open("rb") as file:
        with suppress(OSError):
            os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def daemon(model: str, directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A hearthd of our own, until the end of the body; its log lies in the directory."""
    endpoint = f"ipc://{directory}/demo.control"
    arguments = [model] if model else ["--demo"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "hearthd.daemon.cli", *arguments, "--control", endpoint, "--context", "512",
             "--state-directory", str(directory / "state")],
            stderr=log, stdout=log, env={k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"},
        )  # fmt: skip
    try:
        yield process, endpoint
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> Any:
    """A client, as soon as the daemon answers."""
    from ..client import Client, Unreachable

    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise CommandError(f"the daemon ended with {process.returncode}:\n{log.read_text()}")
        try:
            return Client(endpoint, connect=1.0, timeout=60.0)
        except Unreachable:
            time.sleep(0.01)
    raise CommandError(f"the daemon did not answer within {START_SECONDS:.0f} s:\n{log.read_text()}")


class Watcher(threading.Thread):
    """Asks the daemon for its state, often, and keeps what changed: (seconds, state, warm %, what the answer does)."""

    def __init__(self, endpoint: str, begin: float) -> None:
        super().__init__(daemon=True)
        self._endpoint = endpoint
        self._begin = begin
        self.seen: list[tuple[float, str, float, str]] = []
        self.done = threading.Event()

    def run(self) -> None:
        from ..client import Client, ClientError

        with suppress(ClientError), Client(self._endpoint, timeout=10.0) as hearth:
            while not self.done.is_set():
                stats = hearth.status().stats
                row = stats.requests[0] if stats.requests else None
                doing = "nothing" if row is None else {
                    "queued": "waiting for the engine",
                    "prompt": f"reading the prompt ({row.prompt_done}/{row.prompt_tokens})",
                }.get(row.phase, f"answering ({row.generated} tokens)")  # fmt: skip
                entry = (time.monotonic() - self._begin, stats.state, stats.warm_percent, doing)
                if not self.seen or self.seen[-1][1:3] != entry[1:3] or (
                    self.seen[-1][3].split("(")[0] != doing.split("(")[0]
                ):  # fmt: skip
                    self.seen.append(entry)
                self.done.wait(0.01 if len(self.seen) < 50 else 0.1)


def _faults(pid: int) -> tuple[int, int]:
    """Minor and major faults of a process so far (proc(5), fields 10 and 12 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[7]), int(fields[9])


def run_demo(given: argparse.Namespace) -> int:
    from ..cli import demo_model

    path = Path(given.model or demo_model())
    with tempfile.TemporaryDirectory(prefix="hearthd-demo-") as name:
        directory = Path(name)
        if path.exists():
            evict(path)
        begin = time.monotonic()
        log = directory / "log"
        with daemon(given.model, directory) as (process, endpoint), wait_for(process, endpoint, log) as hearth:
            if given.monitor:
                return _monitor(endpoint, given)
            return _story(hearth, process, endpoint, begin, given)


def _story(
    hearth: Any, process: subprocess.Popen[bytes], endpoint: str, begin: float, given: argparse.Namespace
) -> int:
    watcher = Watcher(endpoint, begin)
    watcher.start()
    before = hearth.status()
    print(f"hearthd {before.version} on {before.model.name or Path(before.model.path).name}: ready after "
          f"{before.ready_seconds:.2f} s, answering from then on\n", file=sys.stderr)  # fmt: skip
    sys.stdout.write(given.prompt)
    sys.stdout.flush()
    stream = hearth.generate(given.prompt, max_tokens=given.max_tokens, seed=given.seed)
    for event in stream:
        sys.stdout.write(event.text)
        sys.stdout.flush()
    print("\n")
    done = stream.done
    end = time.monotonic() + 10
    after = hearth.status()
    while after.stats.state in ("warming", "serving-cold") and time.monotonic() < end:
        time.sleep(0.02)
        after = hearth.status()
    watcher.done.set()
    watcher.join(5)
    _report(after, watcher, done, _faults(process.pid))
    return 0


def _report(after: Any, watcher: Watcher, done: Any, faults: tuple[int, int]) -> None:
    say = lambda text: print(text, file=sys.stderr)  # noqa: E731
    say("Warming beside the first answer:")
    for seconds, state, percent, doing in watcher.seen[:12]:
        say(f"  {seconds:6.2f} s  {state:<13} {percent:3.0f} % warm, {doing}")
    timings = done.timings
    say("")
    if after.start_line:
        say(f"start     {after.start_line}")
    warm = after.warm
    if (bytes_done := warm.get("done_bytes")) is not None:
        seconds = warm.get("seconds") or 0
        speed = f" in {seconds:.3f} s, {size(bytes_done / seconds)}/s" if seconds else ""
        say(f"warmed    {size(bytes_done)}{speed}; read from disk {size(after.stats.disk_read_bytes)} in all")
    else:
        say(f"read      {size(after.stats.disk_read_bytes)} from disk")
    deferred = sum(row.deferred for row in after.residency.rows)
    mapped = sum(row.mapped for row in after.residency.rows)
    unknown = sum(row.unknown for row in after.residency.rows)
    rest = f", unknown {size(unknown)} ({after.residency.unknown_reason})" if unknown else ""
    say(f"now       mapped {size(mapped)}, deferred {size(deferred)}{rest}")
    say(f"faulted   {faults[0]} minor and {faults[1]} major page faults of the whole process; per generated token "
        f"{after.stats.faults_minor_per_token:.1f} and {after.stats.faults_major_per_token:.2f}")  # fmt: skip
    if timings.prompt_seconds > 0:
        rate = (timings.generated - 1) / timings.generate_seconds if timings.generate_seconds else 0.0
        say(f"speed     first token {timings.ttft_seconds:.3f} s after the question ({timings.prompt_tokens} tokens), "
            f"then {rate:.0f} tokens/s ({timings.generated} tokens, {done.reason})")  # fmt: skip


def _monitor(endpoint: str, given: argparse.Namespace) -> int:
    """hearthtop in the foreground, stories in the background so that it has something to show."""
    from ..client import Client, ClientError

    over = threading.Event()

    def tell() -> None:
        seed = given.seed
        with suppress(ClientError), Client(endpoint, timeout=60.0) as own:
            while not over.is_set():
                stream = own.generate(given.prompt, max_tokens=given.max_tokens, seed=seed)
                for _ in stream:
                    if over.is_set():
                        break
                seed += 1
                over.wait(1.0)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        return subprocess.run([sys.executable, "-m", "hearthd.tui.app", "--control", endpoint], check=False).returncode
    finally:
        over.set()
        thread.join(5)
