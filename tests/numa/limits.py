"""A daemon whose cgroup's limits move while it answers, case by case.

Decides nothing: tests/numa/test_trouble.py says what has to come of it.
"""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from cgroups import Cgroup
from disks import forget_pages
from forked import Daemon, attempt, daemon, events

STARTED = time.monotonic()
MIB = 1 << 20
FALLING = (200, 165, 135, 110)  # MiB
SETTLED = 20.0  # seconds within which a new limit is to be seen
PROMPT = list(range(3, 19))


class Talker(threading.Thread):
    """Asks without a pause until told to stop; what the answers were."""

    def __init__(self, made: Daemon) -> None:
        super().__init__(daemon=True)  # where a case fails before it says stop, the guest must end
        self._made, self._over = made, False
        self.said: list[Any] = []
        self.start()

    def run(self) -> None:
        with self._made.ask() as hearth:
            while not self._over:
                self.said.append(attempt(hearth, PROMPT, 8))

    def stop(self) -> list[Any]:
        self._over = True
        self.join()
        return self.said


def budget_after(hearth: Any, group: Cgroup, known: int) -> dict[str, Any]:
    """Until the budget is another than `known`, and a second longer: it, and what the kernel says of the group."""
    until = time.monotonic() + SETTLED
    pressure = 0.0
    while True:
        budget = hearth.status().budget
        if abs(budget["bytes"] - known) > MIB or time.monotonic() > until:
            break
        time.sleep(0.1)
    for _ in range(5):
        time.sleep(0.2)
        budget = hearth.status().budget
        pressure = max(pressure, budget["pressure"])
    return {"bytes": budget["bytes"], "reason": budget["reason"], "pressure": pressure, "used": group.get("current")}


def falling(runs: Path, model: str, *options: str) -> dict[str, Any]:
    """Limits fall step by step on the daemon's own cgroup while it generates."""
    forget_pages()
    name = "-".join(("falling", *(option.strip("-") for option in options)))
    group = Cgroup(name)
    group.set(max=FALLING[0] * MIB)
    with daemon(runs, model, "--batch", "64", *options, before=group.enter) as made, made.ask() as hearth:
        first = attempt(hearth, PROMPT, 8)
        talker = Talker(made)
        steps, known = [], 0
        for limit in FALLING:
            group.set(max=limit * MIB)
            steps.append({"limit": limit * MIB, **budget_after(hearth, group, known)})
            known = steps[-1]["bytes"]
        said = talker.stop()
        status = hearth.status()
        file = (group.path / "memory.pressure").read_text()
        return {"steps": steps, "first": first, "said": said, "events": events(status), "arena": status.arena,
                "kernel": group.table("events"), "psi": file, "code": made.stop()}  # fmt: skip


def nested(runs: Path, model: str) -> dict[str, Any]:
    """Limits come and go on the parent and on the daemon's own cgroup."""
    forget_pages()
    outer = Cgroup("outer")
    inner = Cgroup("inner", outer)
    found = {}
    with daemon(runs, model, "--batch", "64", before=inner.enter) as made, made.ask() as hearth:
        known = 0
        for name, group, limits in (
            ("none", inner, {}), ("parent's max", outer, {"max": 180 * MIB}), ("own max", inner, {"max": 140 * MIB}),
            ("own gone", inner, {"max": "max"}), ("parent's high", outer, {"max": "max", "high": 160 * MIB}),
            ("all gone", outer, {"high": "max"}),
        ):  # fmt: skip
            group.set(**limits)  # type: ignore[arg-type]
            found[name] = budget_after(hearth, outer, known)
            known = found[name]["bytes"]
        found["said"] = attempt(hearth, PROMPT, 8)
        found["kernel"] = outer.table("events")
        found["code"] = made.stop()
    return found


def squeezed(runs: Path, model: str) -> dict[str, Any]:
    """Somebody else in the cgroup reads more than its limit, again and again."""
    group = Cgroup("squeezed")
    group.set(max=96 * MIB)
    with daemon(runs, model, "--batch", "64", before=group.enter) as made, made.ask() as hearth:
        other = os.fork()
        if other == 0:
            try:
                group.enter()
                with open(model, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
                    while True:
                        for at in range(0, len(memory), 4096):
                            memory[at]
            finally:
                os._exit(1)
        shown, until = 0.0, time.monotonic() + SETTLED
        while not shown and time.monotonic() < until:
            shown = hearth.status().budget["pressure"]
            time.sleep(0.2)
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
        some = (group.path / "memory.pressure").read_text().split("avg10=")[1].split()[0]
        return {"shown": shown, "kernel": float(some), "code": made.stop()}


def main(source: Path, directory: Path) -> dict[str, Any]:
    runs = Path("/run/limited")
    runs.mkdir()
    path = directory / "limited.gguf"
    path.write_bytes(source.read_bytes())
    found: dict[str, Any] = {"bytes": path.stat().st_size, "seconds": {}}
    for name, case in (
        ("nested", lambda: nested(runs, str(path))),
        ("mapping", lambda: falling(runs, str(path), "--warm", "background")),
        ("squeezed", lambda: squeezed(runs, str(path))),
        ("arena", lambda: falling(runs, str(path), "--short-memory", "arena")),
    ):
        found[name] = case()
        found["seconds"][name] = round(time.monotonic() - STARTED, 1)
    return found
