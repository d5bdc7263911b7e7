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
from typing import TYPE_CHECKING

from . import Add, CommandError, size

if TYPE_CHECKING:
    from ..client import Client
    from ..protocol import Done, StatusData

PROMPT = "Once upon a time, there was a little girl named Lily. She loved to play in the garden with her dog. One day,"
START_SECONDS = 30.0
SETTLE_SECONDS = 5.0


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


def wait_for(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> Client:
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
        begin = time.time()
        log = directory / "log"
        with daemon(given.model, directory) as (process, endpoint), wait_for(process, endpoint, log) as hearth:
            if given.monitor:
                return _monitor(endpoint, given)
            return _story(hearth, process, endpoint, begin, given)


def _story(
    hearth: Client, process: subprocess.Popen[bytes], endpoint: str, begin: float, given: argparse.Namespace
) -> int:
    before = hearth.status()
    moments: list[tuple[float, str]] = []
    print(f"hearthd {before.version} on {before.model.name or Path(before.model.path).name}: ready after "
          f"{before.ready_seconds:.2f} s, answering from then on\n", file=sys.stderr)  # fmt: skip
    sys.stdout.write(given.prompt)
    sys.stdout.flush()
    moments.append((time.time(), "the story is asked for"))
    stream = hearth.generate(given.prompt, max_tokens=given.max_tokens, seed=given.seed)
    for event in stream:
        if len(moments) == 1:
            moments.append((time.time(), "its first token is here"))
        sys.stdout.write(event.text)
        sys.stdout.flush()
    print("\n")
    moments.append((time.time(), "the story ends"))
    after = _settled(hearth)
    moments += [(event.time, event.message) for event in after.events if event.code != "stopping"]
    warm = next((event.time for event in after.events if event.state == "warm"), None)
    if len(moments) > 1 and moments[1][1].startswith("its first token") and warm is not None:
        beside = "while the model warmed" if warm > moments[0][0] else "with the model warm already"
        moments[1] = (moments[1][0], f"its first token is here: the prompt was read {beside}")
    _report(after, sorted(moments), begin, stream.done, _faults(process.pid))
    return 0


def _settled(hearth: Client) -> StatusData:
    """The state when warming is over and residency has been measured since, or after some seconds."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        status = hearth.status()
        warm = status.stats.state == "warm" and status.residency.time > status.events[-1].time
        if warm or time.monotonic() > end:
            return status
        time.sleep(0.05)


def _report(
    after: StatusData, moments: list[tuple[float, str]], begin: float, done: Done, faults: tuple[int, int]
) -> None:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    say("What happened, in seconds since the daemon was started on a cold cache:")
    for moment, text in moments:
        say(f"  {moment - begin:7.3f}  {text}")
    timings, warm = done.timings, after.warm
    say("")
    rows = after.residency.rows
    experts = sum(row.total for row in rows if row.role == "expert")
    say(f"deferred  {size(experts)} of experts were left for later at the start; "
        f"{size(sum(row.deferred for row in rows))} are deferred now")  # fmt: skip
    seconds, ready = warm.get("seconds") or 0.0, warm.get("ready_bytes", 0)
    speed = f" in {seconds:.3f} s, {size(ready / seconds)}/s" if seconds else ""
    say(f"warmed    {size(ready)}{speed}; {size(after.stats.populated_bytes)} of that came from disk")
    mapped, unknown = (sum(getattr(row, state) for row in rows) for state in ("mapped", "unknown"))
    rest = f", unknown {size(unknown)}: {after.residency.unknown_reason}" if unknown else ""
    say(f"mapped    {size(mapped)}{rest}")
    say(f"faulted   {faults[0]} minor and {faults[1]} major page faults of the whole process since its start")
    rate = (timings.generated - 1) / timings.generate_seconds if timings.generate_seconds else 0.0
    say(f"speed     first token after {timings.ttft_seconds:.3f} s ({timings.prompt_tokens} tokens of prompt), "
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
