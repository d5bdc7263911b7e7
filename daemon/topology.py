"""The machine as sysfs describes it: nodes, distances, physical cores, siblings, memory, and what of it is ours.

Pins nothing and places nothing. Every path is taken below a root, so that recorded machines can be read as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LOCAL, REMOTE = 10, 20  # ACPI SLIT's distances of a node to itself and, where nothing is said, to another


def cpu_list(text: str) -> list[int]:
    """`0-3,8` as the kernel writes lists of processors and nodes."""
    found: list[int] = []
    for part in text.replace("\0", "").strip().split(","):
        if part.strip():
            first, _, last = part.strip().partition("-")
            found += range(int(first), int(last or first) + 1)
    return found


@dataclass(frozen=True)
class Node:
    """One online NUMA node. cores: for each physical core the processors of it that we may use, in the order of their
    numbers; memory in bytes (0: a node without memory, or one whose memory is not ours)."""

    number: int
    cores: tuple[tuple[int, ...], ...] = ()
    memory: int = 0
    free: int = 0
    distances: dict[int, int] = field(default_factory=dict)
    barred: bool = False  # it has processors, but none that we may use
    memory_barred: bool = False  # it has memory, but none that we may use

    @property
    def processors(self) -> list[int]:
        """One processor of every core first, then their siblings."""
        deepest = max((len(core) for core in self.cores), default=0)
        return [core[depth] for depth in range(deepest) for core in self.cores if depth < len(core)]


@dataclass(frozen=True)
class Topology:
    """Online nodes by number, and what limits us. quota: processors' worth of time a cgroup grants (None: no limit)."""

    nodes: tuple[Node, ...]
    quota: float | None = None
    balancing: bool = False  # the kernel moves pages between nodes by itself (kernel.numa_balancing)

    @property
    def working(self) -> tuple[Node, ...]:
        """Nodes with processors that we may use: each gets a team."""
        return tuple(node for node in self.nodes if node.cores)

    @property
    def holding(self) -> tuple[Node, ...]:
        """Nodes that pages can lie on, ours or others': all where none says what memory it has."""
        return tuple(node for node in self.nodes if node.memory > 0 or node.memory_barred) or self.nodes

    @property
    def cores(self) -> int:
        """Physical cores that we may use."""
        return max(1, sum(len(node.cores) for node in self.nodes))

    @property
    def threads(self) -> int:
        """How many threads compute best: one a physical core, no more than the cgroup's quota runs without a pause: a
        thread too many stops all others at each barrier, for the rest of the period."""
        if self.quota is None:
            return self.cores
        return max(1, min(self.cores, int(self.quota)))

    def home(self, number: int) -> int:
        """The node whose memory a team of node `number` uses: its own, else the nearest that has some."""
        of = {node.number: node for node in self.nodes}
        if of[number].memory > 0:
            return number
        near = of[number].distances
        having = [node.number for node in self.nodes if node.memory > 0]
        return min(having, key=lambda other: (near.get(other, REMOTE), other), default=number)

    def teams(self, threads: int = 0) -> list[list[int]]:
        """Processors of one team per working node: physical cores in the order of their numbers, siblings only when
        more threads are asked for than there are cores. Threads are dealt out in proportion to the nodes' cores; a node
        that would get none gets no team. Threads beyond all processors are not pinned (-1)."""
        nodes = self.working
        threads = threads or self.threads
        if not nodes:
            return [[-1] * threads]
        share = deal(threads, [len(node.cores) for node in nodes])
        teams = []
        for node, n in zip(nodes, share, strict=True):
            there = node.processors
            if n:
                teams.append([there[at] if at < len(there) else -1 for at in range(n)])
        return teams

    def team_nodes(self, threads: int = 0) -> list[int]:
        """The node's number of each team of `teams`."""
        share = deal(threads or self.threads, [len(node.cores) for node in self.working])
        return [node.number for node, n in zip(self.working, share, strict=True) if n] or [0]

    def one_team(self, threads: int = 0) -> list[int]:
        """Processors of one team over all nodes, physical cores first."""
        threads = threads or self.threads
        cores = [core for node in self.working for core in node.cores]
        deepest = max((len(core) for core in cores), default=0)
        there = [core[depth] for depth in range(deepest) for core in cores if depth < len(core)]
        return [there[at] if at < len(there) else -1 for at in range(threads)]


def deal(threads: int, cores: Sequence[int], least: int = 0) -> list[int]:
    """Threads per node in proportion to its cores: largest remainders first, lower nodes first among equals; `least` of
    them on each, if that is more threads than there are to deal."""
    total = sum(cores)
    if not total:
        return []
    share = [threads * n // total for n in cores]
    rest = [(-(threads * n % total), k) for k, n in enumerate(cores)]
    for _, k in sorted(rest)[: threads - sum(share)]:
        share[k] += 1
    while min(share) < least:
        most = max(share)
        if most > least:
            share[share.index(most)] -= 1
        share[share.index(min(share))] += 1
    return share


def read(root: Path | str = "/", allowed: Iterable[int] | None = None) -> Topology:
    """The topology below `root`. allowed: processors that we may use; by default those of this process (its affinity,
    which a cpuset bounds) for the real root, and those of the recorded /proc/self/status for another.

    A machine without /sys/devices/system/node (no NUMA in its kernel) is one node.
    """
    root = Path(root)
    status = _text(root / "proc/self/status")
    if allowed is None:
        allowed = usable() if root == Path("/") else _listed(status, "Cpus_allowed_list")
    system = root / "sys/devices/system"
    online = cpu_list(_text(system / "cpu/online")) or sorted(allowed or [0])
    ours = set(online) if allowed is None else set(allowed) & set(online)
    mems = _listed(status, "Mems_allowed_list")
    numbers = cpu_list(_text(system / "node/online"))
    nodes = [_node(system, number, set(online), ours, mems) for number in numbers]
    if not nodes:
        memory, free = _memory(_text(root / "proc/meminfo"))
        nodes = [Node(0, _cores(system, sorted(ours), ours), memory, free, {0: LOCAL})]
    balancing = _text(root / "proc/sys/kernel/numa_balancing").strip() not in ("", "0")
    return Topology(tuple(nodes), _quota(root), balancing)


def glance() -> tuple[frozenset[int], float | None]:
    """What may change while we run, cheaply: the processors that we may use, and the cgroup's quota."""
    return frozenset(usable() or ()), _quota(Path("/"))


def usable() -> set[int] | None:
    """Processors that this process's main thread may run on now; None where the system does not tell (a sandbox)."""
    try:
        return os.sched_getaffinity(os.getpid())
    except OSError:
        return None


def _node(system: Path, number: int, online: set[int], ours: set[int], mems: set[int] | None) -> Node:
    folder = system / f"node/node{number}"
    here = [cpu for cpu in cpu_list(_text(folder / "cpulist")) if cpu in online]
    memory, free = _memory(_text(folder / "meminfo"))
    forbidden = memory > 0 and mems is not None and number not in mems
    row = [int(word) for word in _text(folder / "distance").split()]
    # The row has a column for each online node, in the order of their numbers.
    columns = cpu_list(_text(system / "node/online"))
    distances = dict(zip(columns, row, strict=False)) or {number: LOCAL}
    cores = _cores(system, here, ours)
    return Node(number, cores, 0 if forbidden else memory, 0 if forbidden else free, distances,
                barred=bool(here) and not cores, memory_barred=forbidden)  # fmt: skip


def _cores(system: Path, here: list[int], ours: set[int]) -> tuple[tuple[int, ...], ...]:
    """Physical cores among `here`, each with its processors that are ours; the cores in the order of their first."""
    found: dict[tuple[int, ...], None] = {}
    for cpu in sorted(here):
        core = cpu_list(_text(system / f"cpu/cpu{cpu}/topology/thread_siblings_list")) or [cpu]
        if mine := tuple(c for c in sorted({*core, cpu}) if c in ours):
            found[mine] = None
    return tuple(found)


def _memory(text: str) -> tuple[int, int]:
    """MemTotal and MemFree of a meminfo file, in bytes; page cache that could be dropped counts as free."""
    of = {name: int(value) << 10 for name, value in re.findall(r"(\w+):\s+(\d+) kB", text)}
    return of.get("MemTotal", 0), of.get("MemFree", 0) + of.get("FilePages", 0) - of.get("Shmem", 0)


def _quota(root: Path) -> float | None:
    """The smallest cpu.max (cgroup v2) or cpu.cfs_quota_us (v1) from our cgroup up to the root."""
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        mount = root / "sys/fs/cgroup"
        if controllers:
            if "cpu" not in controllers.split(","):
                continue
            mount = mount / controllers if (mount / controllers).is_dir() else mount / "cpu"
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts) + 1):
            folder = mount.joinpath(*parts[:depth])
            words = _text(folder / "cpu.max").split()
            if not words:
                words = [_text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()]
            if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
                limits.append(int(words[0]) / int(words[1]))
    return min(limits, default=None)


def _listed(status: str, key: str) -> set[int] | None:
    found = re.search(rf"^{key}:\s*(\S*)$", status, re.MULTILINE)
    return set(cpu_list(found[1])) if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
