"""Which processors there are to compute on, from the kernel: cores and their siblings. Pins nothing itself."""

from __future__ import annotations

import os
from pathlib import Path

SYSTEM = Path("/sys/devices/system/cpu")
NODES = Path("/sys/devices/system/node")


def cpu_list(text: str) -> list[int]:
    """`0-3,8` as the kernel writes lists of processors."""
    found: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    return found


def processors(allowed: set[int] | None = None, system: Path = SYSTEM) -> list[int]:
    """The processors that this process may use, one of every physical core first, then their siblings."""
    allowed = set(os.sched_getaffinity(0)) if allowed is None else allowed
    first: list[int] = []
    siblings: list[int] = []
    seen: set[int] = set()
    for cpu in sorted(allowed):
        try:
            core = cpu_list((system / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text())
        except (OSError, ValueError):
            core = [cpu]
        (siblings if cpu in seen else first).append(cpu)
        seen.update(core)
    return first + siblings


def physical_cores(allowed: set[int] | None = None, system: Path = SYSTEM) -> int:
    """How many physical cores the allowed processors belong to."""
    allowed = set(os.sched_getaffinity(0)) if allowed is None else allowed
    cores: set[tuple[int, ...]] = set()
    for cpu in allowed:
        try:
            cores.add(tuple(cpu_list((system / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text())))
        except (OSError, ValueError):
            cores.add((cpu,))
    return max(1, len(cores))
