"""What a daemon does when sectors of its model cannot be read, case by case.

Decides nothing: tests/numa/test_trouble.py says what has to come of it.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path
from typing import Any

from cgroups import Cgroup, mount
from disks import Disk, forget_pages, sector_of
from forked import Daemon, attempt, daemon, events
from hearthd.daemon.model.gguf import open_model
from hearthd.daemon.model.spans import SpanTable

STARTED = time.monotonic()
SHORT, LONG = [338], [338, 427, 297, 260, 420]  # two prompts: the long one uses experts that the short one does not
AGAIN = 1.1  # seconds: a failed span is tried again after one
OPTIONS: dict[str, tuple[str, ...]] = {
    "warmer": (), "on demand": ("--warm", "off"), "eager": ("--experts", "eager"),
    "before ready": ("--warm", "before-ready"), "arena": ("--short-memory", "arena", "--memory-budget", "9M"),
}  # fmt: skip


class Case:
    """The model, and which of its bytes cannot be read now."""

    def __init__(self, source: Path, directory: Path) -> None:
        self.path = directory / "model.gguf"
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        subprocess.run(["umount", directory], check=True)
        self.disk = Disk(next(words[0] for words in mounts if words[1] == str(directory)), directory)
        self.path.write_bytes(source.read_bytes())
        forget_pages()
        self.model = open_model(self.path)
        self.table = SpanTable.build(self.model)

    def spoil(self, *offsets: int) -> None:
        self.disk.spoil([sector_of(self.path, offset) for offset in offsets])
        forget_pages()

    def middle(self, span: int) -> int:
        return int(self.table.offset[span] + self.table.nbytes[span] // 2)


def look(hearth: Any, planned: bool = True) -> dict[str, Any]:
    """What the daemon says of itself, once it has told of something unreadable. A new try of what is planned may be
    under way, and fails as well."""
    for _ in range(50):
        status = hearth.status()
        told = any(event.code == "unreadable" for event in status.events)
        if told and (not planned or (status.warm["failed_bytes"] and status.stats.state == "warm")):
            break
        time.sleep(0.2)
    return {"state": status.stats.state, "failed_bytes": status.warm["failed_bytes"], "events": events(status),
            "percent": status.stats.warm_percent, "arena": status.arena["in_use"]}  # fmt: skip


def main(source: Path, directory: Path) -> dict[str, Any]:
    runs = Path("/run/daemons")
    runs.mkdir()
    mount()
    case = Case(source, directory)
    model = str(case.path)
    found: dict[str, Any] = {"seconds": {}}

    def note(name: str) -> None:
        found["seconds"][name] = round(time.monotonic() - STARTED, 1)

    note("imports")
    with daemon(runs, model) as ours, ours.ask() as hearth:
        used = []
        found["sound"] = []
        for prompt in (SHORT, LONG):
            found["sound"].append(attempt(hearth, prompt))
            used.append([row["counts"] for row in hearth.experts()["layers"]][2])
    # The down matrix of an expert of a middle layer that only the long prompt uses: neighbours are read with it.
    expert = next(e for e, (short, long) in enumerate(zip(*used, strict=True)) if long and not short)
    span = int(case.table.expert_spans(2, expert)[2])
    byte = case.middle(span)
    found["expert"] = {"span": case.table.describe(span), "byte": byte // 4096 * 4096}
    note("sound")

    with contextlib.ExitStack() as running:
        case.spoil(byte)
        ours = {name: Daemon(runs, model, *options) for name, options in OPTIONS.items()}
        asks = {}
        for name, made in ours.items():
            running.callback(made.stop)
            assert made.ready(), made.log
            asks[name] = running.enter_context(made.ask())
        for name, hearth in asks.items():
            said = [attempt(hearth, prompt) for prompt in (SHORT, LONG, SHORT)]
            found[name] = {"said": said, **look(hearth, name not in ("on demand", "arena"))}
        case.disk.spoil()
        time.sleep(AGAIN)
        for name, hearth in asks.items():
            found[name]["afterwards"] = attempt(hearth, LONG)
        for name, made in ours.items():
            found[name]["code"] = made.stop()
    note("experts")

    # Populated, taken away by the kernel, and unreadable when a kernel of ours reads it next.
    forget_pages()
    group = Cgroup("taken")
    with daemon(runs, model, before=group.enter) as made, made.ask() as hearth:
        said = [attempt(hearth, LONG)]
        case.spoil(byte)
        group.reclaim(16 << 20)
        said += [attempt(hearth, LONG), attempt(hearth, SHORT)]
        case.disk.spoil()
        time.sleep(AGAIN)
        said.append(attempt(hearth, LONG))
        found["taken away"] = {"said": said, "code": made.stop(), "log": made.log}
    note("taken away")

    dense = case.table.dense("blk.3.attn_q.weight")
    case.spoil(case.middle(dense))
    with daemon(runs, model) as made, made.ask() as hearth:
        said = [attempt(hearth, prompt) for prompt in (SHORT, LONG)]
        now = look(hearth)
        case.disk.spoil()
        time.sleep(AGAIN)
        said.append(attempt(hearth, SHORT))
        found["dense"] = {"said": said, **now, "code": made.stop()}
    note("dense")

    first = int(case.table.offset.min())
    found["header"] = []
    for byte in (0, 65536, first - 8192, first + 65536):
        case.spoil(byte)
        made = Daemon(runs, model)
        ready = made.ready()
        found["header"].append({"byte": byte, "ready": ready, "code": made.stop(), "log": made.log})
    note("header")
    return found
