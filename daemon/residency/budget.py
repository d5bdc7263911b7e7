"""How many bytes of the model may be resident: what RAM, cgroups and the operator leave, less what sessions are to have
and brakes hold back.

Owns the reading of /proc and cgroup files. Evicts nothing itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config import parse_budget

DEFAULT_SHARE = 0.8  # of RAM, when the operator says nothing
RESERVE_SHARE, RESERVE_LEAST, RESERVE_MOST = 0.04, 64 << 20, 2 << 30  # kept free below every limit
STEP = 1 / 16  # of the limit: what one sign of pressure takes away, and one quiet period gives back
PRESSURE_PERCENT = 10.0  # of the last ten seconds in which somebody waited for memory
MOST_HELD_BACK = 0.5  # of the limit
QUIET_SECONDS = 15.0
UNLIMITED = 1 << 60  # version 1 writes "no limit" as a number near 2^63
ASIDE_SHARE = 0.25  # of a limit: most that is kept free for sessions to come; what they take beyond it, experts give
MOST_SHARE = 0.5  # of what the operator asks for: most that sessions take of it (of a machine's limit: what they take)


@dataclass(frozen=True)
class Budget:
    """bytes: of the model, may be resident. reason: which limit is the narrowest. limit: before the brakes. sessions:
    bytes of the same memory that sessions have or are to find free."""

    bytes: int
    limit: int
    reason: str
    pressure: float  # PSI "some avg10", percent; 0 where the kernel does not tell
    held_back: int
    sessions: int = 0


@dataclass(frozen=True)
class Sessions:
    """Bytes of sessions and steps, which are no part of the model: what they may take, and have taken."""

    may_take: int = 0
    taken: int = 0

    def aside(self, limit: float) -> float:
        """Of a limit, what the model leaves to them."""
        return max(self.taken, min(self.may_take, limit * ASIDE_SHARE))


class Budgeter:
    """Reads the limits again at every call. `proc` and `cgroup` are where the kernel's files lie."""

    def __init__(
        self, setting: str = "auto", proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
    ) -> None:
        self._proc = proc
        self._cgroup = cgroup
        # Until it can be read, and where it cannot be (a sandbox without /proc): all of it, of which a share is taken.
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._memory = {"MemTotal": whole, "MemAvailable": whole}
        total = self._meminfo().get("MemTotal", 0)
        self._asked = parse_budget(setting, total)
        self._held_back = 0.0
        self._last_pressure = float("-inf")
        self._evicted = 0

    def read(self, locked: int = 0, sessions: Sessions = Sessions()) -> Budget:
        """locked: our mlocked bytes, which MemAvailable leaves out though they are part of the model."""
        ours = locked + sessions.taken
        memory = self._meminfo()
        total, available = memory.get("MemTotal", 0), memory.get("MemAvailable", memory.get("MemFree", 0))
        asked = total * DEFAULT_SHARE if self._asked is None else float(self._asked)
        least = asked - min(sessions.aside(asked), asked * MOST_SHARE)
        limits = [(least, f"{DEFAULT_SHARE:.0%} of RAM" if self._asked is None else "as asked", asked)]
        machine = [(available + ours - _reserve(total), "MemAvailable")]
        machine += [(room - _reserve(limit), name) for limit, room, name in self._cgroups(ours)]
        limits += [(limit - sessions.aside(limit), name, limit) for limit, name in machine]
        limit, reason, whole = min(limits)
        limit, whole = max(limit, 0.0), max(whole, 0.0)
        allowed = max(limit * (1 - self._held_back), 0.0)
        return Budget(int(allowed), int(limit), reason, self.pressure(), int(limit - allowed), int(whole - limit))

    def brake(self, now: float, evicted_recently: int, resident: int) -> bool:
        """Take a step back when memory is short or the kernel evicts what we want, forward when it has been quiet.

        evicted_recently: bytes of ours that cachestat says were evicted and would have been used; what counts is by how
        much they have grown since the last time, as they stay in the kernel's books. True: it moved.
        """
        fresh, self._evicted = evicted_recently - self._evicted, evicted_recently
        short = self.pressure() > PRESSURE_PERCENT or fresh > max(resident * 0.02, 32 << 20)
        if short and now - self._last_pressure >= 1.0:
            self._last_pressure = now
            self._held_back = min(self._held_back + STEP, MOST_HELD_BACK)
            return True
        if not short and self._held_back and now - self._last_pressure >= QUIET_SECONDS:
            self._last_pressure = now
            self._held_back = max(self._held_back - STEP, 0.0)
            return True
        return False

    def pressure(self) -> float:
        """PSI of our cgroup if it has one, of the machine otherwise (Documentation/accounting/psi.rst)."""
        for path in (*(directory / "memory.pressure" for directory in self._v2()), self._proc / "pressure" / "memory"):
            for line in _lines(path):
                if line.startswith("some "):
                    return float(line.split("avg10=")[1].split()[0])
        return 0.0

    def _meminfo(self) -> dict[str, int]:
        found = {}
        for line in _lines(self._proc / "meminfo"):
            name, _, rest = line.partition(":")
            words = rest.split()
            if words and words[0].isdigit():
                found[name] = int(words[0]) << 10
        if found.get("MemTotal"):
            self._memory = found  # else what was read last: nothing readable is no reason to give everything back
        return self._memory

    def _own(self, controller: str) -> str | None:
        """Our path in a hierarchy: `0::/path` in version 2, `N:memory:/path` in version 1."""
        for line in _lines(self._proc / "self" / "cgroup"):
            _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
            if controller in controllers.split(","):
                return path
        return None

    def _upwards(self, root: Path, path: str | None) -> Iterator[Path]:
        """Our directory and its parents up to the root; in a container only the root may be visible."""
        if path is None:
            return
        directory = root / path.lstrip("/")
        while directory != root and root in directory.parents:
            if directory.is_dir():
                yield directory
            directory = directory.parent
        yield root

    def _v2(self) -> list[Path]:
        roots = [self._cgroup, self._cgroup / "unified"]
        own = self._own("")
        return [d for root in roots if (root / "cgroup.controllers").exists() for d in self._upwards(root, own)]

    def _cgroups(self, locked: int) -> Iterator[tuple[int, int, str]]:
        """(limit, room for file pages under it, name) of every cgroup above us that has a limit."""
        for directory in self._v2():
            for name in ("memory.max", "memory.high"):
                text = next(iter(_lines(directory / name)), "max").strip()
                if text.isdigit() and int(text) < UNLIMITED:
                    yield int(text), int(text) - _not_file(directory, "memory.current", "") + locked, name
        root = self._cgroup / "memory"
        for directory in self._upwards(root, self._own("memory")):
            text = next(iter(_lines(directory / "memory.limit_in_bytes")), "").strip()
            if text.isdigit() and int(text) < UNLIMITED:
                used = _not_file(directory, "memory.usage_in_bytes", "total_")
                yield int(text), int(text) - used + locked, "memory.limit_in_bytes"


def _not_file(directory: Path, current: str, prefix: str) -> int:
    """Bytes charged to a cgroup that are no reclaimable file pages."""
    usage = next(iter(_lines(directory / current)), "0").strip()
    file = 0
    for line in _lines(directory / "memory.stat"):
        name, _, value = line.partition(" ")
        if name in (prefix + "inactive_file", prefix + "active_file"):
            file += int(value)
    return max((int(usage) if usage.isdigit() else 0) - file, 0)


def _reserve(limit: int) -> int:
    return int(min(max(limit * RESERVE_SHARE, RESERVE_LEAST), RESERVE_MOST))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
