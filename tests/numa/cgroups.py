"""Version 2 cgroups of a guest with their memory controller. Owns their files."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def mount() -> None:
    subprocess.run(["mount", "-t", "cgroup2", "cgroup", ROOT], check=True)
    (ROOT / "cgroup.subtree_control").write_text("+memory")


class Cgroup:
    """A cgroup below the root, or below another one."""

    def __init__(self, name: str, within: Cgroup | None = None) -> None:
        self.path = (within.path if within else ROOT) / name
        if within:
            (within.path / "cgroup.subtree_control").write_text("+memory")
        self.path.mkdir()

    def enter(self) -> None:
        """This process, and what it starts from now on."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def set(self, **limits: int | str) -> None:
        """max, high: bytes, or "max"."""
        for name, value in limits.items():
            (self.path / f"memory.{name}").write_text(str(value))

    def get(self, name: str) -> int:
        return int((self.path / f"memory.{name}").read_text())

    def table(self, name: str) -> dict[str, int]:
        """memory.stat or memory.events."""
        pairs = [line.split() for line in (self.path / f"memory.{name}").read_text().splitlines()]
        return {key: int(value) for key, value in pairs}

    def reclaim(self, nbytes: int) -> None:
        """Have the kernel take so many bytes away, or as many as it can."""
        with contextlib.suppress(OSError):
            (self.path / "memory.reclaim").write_text(str(nbytes))
