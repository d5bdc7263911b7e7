"""How many threads compute, and where: as the affinity and the cgroup's quota allow, followed while they change.

Owns the number and what is said of it. Threads are the engine's; which node a team belongs to never changes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from . import protocol, topology
from .topology import Topology

if TYPE_CHECKING:
    from .parts import Threads
    from .tending import Say

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0


class Processors:
    """asked: threads that the operator wants (0: as many as compute best). teams: threads of each team at the start;
    nodes: its NUMA node, where there are several."""

    def __init__(self, asked: int, machine: Topology) -> None:
        self._asked = asked
        self._seen = (frozenset(cpu for node in machine.nodes for core in node.cores for cpu in core), machine.quota)
        self.machine = machine
        self.threads = asked or machine.threads
        self._teams: list[int] = [self.threads]
        self._nodes: list[int] = [0]

    def divide(self, teams: Sequence[Sequence[int]], nodes: Sequence[int]) -> None:
        """The teams that --numa has made of the threads: they stay, with the nodes that they belong to."""
        self._teams, self._nodes = [len(team) for team in teams], list(nodes)

    @property
    def reason(self) -> str:
        """Why there are fewer threads than cores, or ''."""
        quota = self.machine.quota
        if quota is None or self._asked or quota >= self.machine.cores:
            return ""
        return f"a quota of {quota:g} processors"

    @property
    def warnings(self) -> list[protocol.Warning_]:
        machine, found = self.machine, ""
        usable = sum(len(core) for node in machine.nodes for core in node.cores)
        if self.threads > usable > 0:
            found = f"{self.threads} threads on {usable} processors take turns and get slower"
        elif machine.quota is not None and self.threads > max(int(machine.quota), 1):
            found = (f"{self.threads} threads under a quota of {machine.quota:g} processors are stopped in turn and "
                     "get slower")  # fmt: skip
        return [protocol.Warning_(code="threads-over", message=found)] if found else []

    def fit(self) -> list[list[int]]:
        """Processors of each team as they are now: at least one thread a team, -1 where its node has none for us."""
        if len(self._teams) < 2:
            return [self.machine.one_team(self.threads)]
        of = {node.number: node.processors for node in self.machine.nodes}
        found = []
        for node, count in zip(self._nodes, topology.deal(self.threads, self._teams, least=1), strict=True):
            there = of.get(node, [])
            found.append([there[at] if at < len(there) else -1 for at in range(count)])
        return found

    def look(self) -> bool:
        """Have processors or the quota changed? Then they are read anew. Blocks for a moment."""
        seen = topology.glance()
        if seen == self._seen:
            return False
        self._seen, self.machine = seen, topology.read()
        self.threads = self._asked or self.machine.threads
        return True

    async def follow(self, engine: Threads, say: Say) -> None:
        """Until cancelled: the engine's threads move and change their number with what we may use."""
        teams = self.fit()
        told = self.warnings
        while True:
            await trio.sleep(LOOK_SECONDS)
            if not await trio.to_thread.run_sync(self.look):
                continue
            if (now := self.fit()) != teams:
                before, teams = sum(map(len, teams)), now
                await trio.to_thread.run_sync(engine.use_processors, now)
                count = sum(map(len, now))
                many = f"{count} thread" + "s" * (count > 1)
                text = f"{many} from now on" if count != before else f"{many}, on other processors"
                quota = self.machine.quota
                grant = "no quota" if quota is None else f"a quota of {quota:g} processors"
                say("threads", f"{text}: {self.machine.cores} cores may be used, {grant}", "info")
            for warning in self.warnings:
                if warning not in told:
                    say(warning.code, warning.message, "warning")
            told = self.warnings
