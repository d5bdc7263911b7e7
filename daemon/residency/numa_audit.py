"""What works against placement on this machine, as warnings with reason codes. Looks once, at the start."""

from __future__ import annotations

from .. import protocol
from ..topology import Topology
from .placement import Choice
from .text import gib


def audit(asked: str, choice: Choice, machine: Topology, nbytes: int, experts: int) -> list[protocol.Warning_]:
    """asked: the setting; nbytes: of the model; experts: per layer. Nothing is said when the setting is off."""
    found: list[protocol.Warning_] = []

    def warn(code: str, message: str) -> None:
        found.append(protocol.Warning_(code=code, message=message))

    if asked == "off":
        return found
    if len(machine.nodes) < 2:
        warn("numa-one-node", f"the machine has one node: numa = {asked} has no effect")
        return found
    for node in machine.nodes:
        if node.barred:
            warn("numa-cpuset", f"node {node.number} has processors, but a cpuset or affinity leaves us none of them: "
                 "no thread of ours runs there")  # fmt: skip
        if node.memory_barred:
            warn("numa-memory-barred", f"the memory of node {node.number} is not ours: cpuset.mems excludes it")
    if choice.mode == "off":
        warn("numa-no-effect", f"numa = {asked} has no effect: {choice.reason}")
        return found
    without = [node.number for node in machine.working if node.number not in choice.nodes]
    if without:
        warn("numa-few-threads", f"fewer threads than nodes: {', '.join(map(str, without))} get none")
    if machine.balancing:
        warn("numa-balancing", "the kernel's automatic NUMA balancing is on and works against placement: "
             "sysctl kernel.numa_balancing=0 switches it off")  # fmt: skip
    if choice.exact:
        free = {node.number: node.free for node in machine.nodes}
        total = sum(len(team) for team in choice.teams)
        for number in sorted(set(choice.memory)):
            threads = sum(len(t) for t, m in zip(choice.teams, choice.memory, strict=True) if m == number)
            share = nbytes * threads // total
            if free[number] < share:
                warn("numa-node-small", f"node {number} has {gib(free[number])} free for a share of {gib(share)}: the "
                     "rest will lie on other nodes")  # fmt: skip
    if choice.mode == "experts" and not experts:
        warn("numa-no-experts", "the model has no experts: numa = experts divides its matrices by rows, as distribute")
    return found
