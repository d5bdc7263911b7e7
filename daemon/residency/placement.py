"""Which node every byte of the model belongs to, and whether it lies there: --numa, carried out and measured.

Owns the mode, the owners of pages and the arenas. How pages move is cyext's business; arithmetic stands in numa_plan.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from hearthd.cyext.placement import Arena, page_counts, slot_bytes
from hearthd.cyext.populate_queue import SWEEP
from hearthd.cyext.spans import READY
from numpy.typing import NDArray

from .. import protocol
from ..config import parse_budget
from ..topology import Topology
from . import numa_plan
from .ledger import Picture, by_role
from .node_rows import node_rows
from .numa_plan import Segments
from .text import gib

if TYPE_CHECKING:
    from hearthd.cyext.mapping import Mapping
    from hearthd.cyext.populate_queue import PopulateQueue
    from hearthd.cyext.spans import Spans

    from .parts import Engine, Table

EXACT = ("distribute", "mirror", "experts")  # modes in which every page has an owner
UNEVEN = 1.15  # max/mean of what the teams compute: above, experts are dealt out anew
FEW_PAGES = 16  # of an expert's matrix per node: fewer, and pages that two nodes share cost more than distribute gains
MEASURE_SHARE = 0.03  # of a core at most for measuring again and again
EVERY_SECONDS = 2.0
TRIES = 3


@dataclass(frozen=True)
class Choice:
    """What --numa means on this machine: mode in effect, why, teams (processors each) and the kernel's node of each."""

    mode: str
    reason: str
    teams: list[list[int]]
    nodes: list[int]
    memory: list[int]  # the node whose memory each team uses: its own, or the nearest that has some

    @property
    def exact(self) -> bool:
        return self.mode in EXACT

    def queue_options(self, machine: Topology) -> dict[str, Any]:
        """What the populate queue is to know: processors and memory of each team's node."""
        if self.mode == "interleave":
            return {"interleave": self.memory}
        if not self.exact:
            return {}
        of = {node.number: node for node in machine.nodes}
        return {"cpus": [of[node].processors for node in self.nodes], "memory": self.memory}


def choose(asked: str, machine: Topology, threads: int = 0, *, nbytes: int = 0, expert_bytes: int = 0) -> Choice:
    """asked: a mode or `auto`; nbytes: of the model; expert_bytes: of an expert's smallest matrix (0: no experts)."""
    off = Choice("off", "", [machine.one_team(threads)], [0], [0])
    if asked == "off":
        return off
    teams, nodes = machine.teams(threads), machine.team_nodes(threads)
    memory = [machine.home(node) for node in nodes]
    if len(machine.nodes) < 2:
        return Choice("off", "the machine has one node", off.teams, off.nodes, off.memory)
    if len(nodes) < 2:
        return Choice("off", "only one node has processors and threads of ours", off.teams, off.nodes, off.memory)
    if len(nodes) > 64 or max(memory) >= 64:
        return Choice("off", "more nodes than 64", off.teams, off.nodes, off.memory)
    mode, reason = asked, "asked for"
    if asked == "auto":
        free = {node.number: node.free for node in machine.nodes}
        short = [node for node in set(memory) if free[node] * memory.count(node) ** -1 < nbytes / len(nodes)]
        slice_pages = expert_bytes / len(nodes) / numa_plan.PAGE
        if short:
            mode = "interleave"
            reason = (f"node {min(short)} has {gib(free[min(short)])} free, less than its share of the model: pages go "
                      "wherever there is room")  # fmt: skip
        elif expert_bytes and slice_pages < FEW_PAGES:
            mode = "experts"
            reason = (f"an expert's matrix divided over {len(nodes)} nodes is {slice_pages:.1f} pages each: whole "
                      "experts waste fewer")  # fmt: skip
        else:
            mode, reason = "distribute", "one copy, and every node reads its own rows"
    return Choice(mode, reason, teams, nodes, memory)


@dataclass(frozen=True)
class Look:
    """Where pages lay at one moment, as the kernel told; nothing of it changes any more."""

    segments: Segments
    counts: NDArray[np.int64]  # [segments, nodes + 1] pages; the last column: nowhere
    cached: NDArray[np.int64]  # [segments] bytes that are not mapped
    read: NDArray[np.float64]  # [segments, nodes + 1] bytes of segments, by the node that they lie on
    copies: dict[int, tuple[NDArray[np.int32], NDArray[np.int64]]]  # per team: spans, pages [spans, nodes + 1]


class Placement:
    """Carries out a choice for an opened model.

    Made with the queue; `attach` once the engine is there (only its program knows who reads which rows); `follow` now
    and then. With mode off, or one team, it does nothing at all.
    """

    def __init__(self, choice: Choice, table: Table, mapping: Mapping, spans: Spans, queue: PopulateQueue,
                 mirror_budget: str = "100%", free: dict[int, int] | None = None,
                 nodes: Sequence[int] = (0,)) -> None:  # fmt: skip
        """nodes: of the machine, those that have memory; free: bytes of each."""
        self.choice = choice
        self._nodes = nodes
        self._table, self._mapping, self._spans, self._queue = table, mapping, spans, queue
        self._budget_text = mirror_budget
        self._free = free or {}
        self._engine: Engine | None = None
        self.segments: Segments | None = None
        self._rows: Segments | None = None
        self.owner: NDArray[np.int32] | None = None
        self.arenas: list[Arena] = []
        self.mirrored = np.zeros(0, np.int32)
        self._home = np.zeros(0, np.int32)
        self._copied = np.zeros(len(table.nbytes), bool)
        self._tried = np.zeros(len(table.nbytes), np.int8)
        self.warnings: list[protocol.Warning_] = []
        self._lock = threading.Lock()
        self._next_look = 0.0
        self._seen: Look | None = None  # whoever draws several conclusions draws them from one
        self._read_before: NDArray[np.uint64] | None = None
        self.measure_seconds = 0.0
        self.last_rows: list[protocol.Bytes] = []
        self.last_shares: list[float] = []
        self.active = choice.exact and len(choice.teams) > 1
        if self.active:
            mapping.small_pages()

    # -- making it so ------------------------------------------------------------------------------------------------

    def attach(self, engine: Engine, heat: NDArray[np.float64]) -> None:
        """Divide the model between the engine's teams. Before anything is populated: what is mapped already stays."""
        self._engine = engine
        if len(self.choice.teams) < 2:
            return
        self._rows = self.segments = numa_plan.row_segments(self._table, engine.program)
        if self.active:
            self._divide(heat)

    @property
    def _attached(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def _divide(self, heat: NDArray[np.float64]) -> None:
        assert self._rows is not None
        segments = self._rows
        teams = [len(team) for team in self.choice.teams]
        table = self._table
        if self.choice.mode == "experts" and table.n_expert:
            self.owner = numa_plan.balance(self._padded(heat), teams)
            ids = np.flatnonzero(np.asarray(table.expert) >= 0).astype(np.int32)
            team = self.owner[np.asarray(table.layer)[ids], np.asarray(table.expert)[ids]]
            segments = numa_plan.whole(table, segments, ids, team)
            self._attached.own_experts(self.owner)
        elif self.choice.mode == "mirror":
            self._choose_mirrored(heat)
            segments = numa_plan.whole(table, segments, self.mirrored, self._home)
        self.segments = segments
        self._queue.place(*numa_plan.owners_of_pages(segments, len(self._mapping.paths)))

    def _padded(self, heat: NDArray[np.float64]) -> NDArray[np.float64]:
        """Heat [layers, experts] of all layers in the file, those that no step runs included; zeros where unknown."""
        counts = np.zeros((max(self._attached.hyper.n_layer, int(self._table.n_layer)), int(self._table.n_expert)))
        if heat.size:
            counts[: len(heat)] = heat[: len(counts)]
        return counts

    def _choose_mirrored(self, heat: NDArray[np.float64]) -> None:
        nbytes = np.asarray(self._table.nbytes, np.int64)
        budget = parse_budget(self._budget_text, int(nbytes.sum()))
        budget = int(nbytes.sum()) if budget is None else budget
        room = min((self._free[node] for node in set(self.choice.memory) if node in self._free), default=budget)
        # A node holds its part of the file's own pages as well.
        room -= int(nbytes.sum()) // len(self.choice.teams)
        if budget > max(room, 0) and self._free:
            self._warn("numa-mirror-cut", f"a node has room for {gib(max(room, 0))} of copies, not for {gib(budget)}: "
                       "the hottest are mirrored, the others distributed")  # fmt: skip
            budget = max(room, 0)
        ids = numa_plan.mirrored(self._table, self._padded(heat), budget)
        # One of the copies is the page cache. Each node holds a stretch of the file, so that few pages are shared.
        order = np.lexsort((self._table.offset[ids], self._table.file[ids]))
        before = np.cumsum(nbytes[ids[order]]) - nbytes[ids[order]]
        self.mirrored, self._home = ids, np.zeros(len(ids), np.int32)
        self._home[order] = before * len(self.choice.teams) // max(int(nbytes[ids].sum()), 1)

    def copy_ready(self, seconds: float = 0.25) -> int:
        """Copy what is populated and not yet on every node, for about so long; how many spans are left. Blocks."""
        if not self.active or self.choice.mode != "mirror":
            return 0
        table, teams = self._table, len(self.choice.teams)
        with self._lock:
            if not self.arenas and len(self.mirrored):
                nbytes = slot_bytes(np.asarray(table.nbytes)[self.mirrored])
                for team in range(teams):
                    self.arenas.append(Arena(int(nbytes[self._home != team].sum()), self.choice.memory[team]))
            until = time.monotonic() + seconds
            todo = np.flatnonzero(~self._copied[self.mirrored] & (self._spans.state[self.mirrored] == READY))
            for k in todo.tolist():
                if time.monotonic() > until:
                    break
                span = int(self.mirrored[k])
                for team in range(teams):
                    if team == self._home[k]:
                        continue
                    at = self.arenas[team].copy(
                        self._mapping, int(table.file[span]), int(table.offset[span]), int(table.nbytes[span])
                    )
                    if at is not None:
                        self._spans.set_at(team, [span], [at])
                self._copied[span] = True
            return int((~self._copied[self.mirrored]).sum())

    def follow(self, heat: NDArray[np.float64], even: bool) -> str:
        """Now and then, in a worker thread: experts that have become uneven are dealt out anew. What was done.

        Pages move by being evicted and read again by their new owner, between steps.
        """
        if not self.active or self.choice.mode != "experts" or self.owner is None or even or not heat.size:
            return ""
        teams = [len(team) for team in self.choice.teams]
        counts = self._padded(heat)
        before = numa_plan.load(self.owner, counts, teams)
        if before <= UNEVEN:
            return ""
        with self._lock:
            old = self.owner
            self._divide(counts)
            if (reads := self._attached.program.reads) is not None:
                self._read_before = reads.copy()
            assert self.owner is not None
            moved = old != self.owner
            layer, expert = np.asarray(self._table.layer), np.asarray(self._table.expert)
            ids = np.flatnonzero(expert >= 0).astype(np.int32)
            ids = ids[moved[layer[ids], expert[ids]]]
            ready = ids[self._spans.state[ids] == READY]
            ready = ready[np.lexsort((self._table.offset[ready], self._table.file[ready]))]
            self._queue.forget(ready)
            self._queue.submit(SWEEP, ready)
        after = numa_plan.load(self.owner, counts, teams)
        return f"{int(moved.sum())} experts change nodes: max/mean of their load is {after:.2f}, was {before:.2f}"

    def repair(self) -> int:
        """Spans with pages on a wrong node by the last look are read again by the right one; how many.

        Pages come to lie wrong when the kernel reclaims them and another node's thread faults them in.
        """
        if self._seen is None or not self.active:
            return 0
        with self._lock:
            segments, counts, memory = self._seen.segments, self._seen.counts, np.array(self.choice.memory)
            if segments is not self.segments:
                return 0
            there = counts[:, :-1].sum(axis=1) - counts[np.arange(len(segments)), memory[segments.team]]
            wrong = np.bincount(segments.span, there, len(self._table.nbytes)) * numa_plan.PAGE
            # What could not be brought home once (another process has it mapped) is not tried for ever.
            ids = np.flatnonzero((wrong > 0) & (self._tried < TRIES) & (self._spans.state == READY)).astype(np.int32)
            self._tried[ids] += 1
            self._queue.forget(ids)
            self._queue.submit(SWEEP, ids)
            return len(ids)

    def _warn(self, code: str, message: str) -> None:
        self.warnings.append(protocol.Warning_(code=code, message=message))

    # -- measuring it ------------------------------------------------------------------------------------------------

    def look(self, force: bool = False) -> bool:
        """Ask the kernel where the pages lie, unless that was done lately. Blocks; costs about 0.2 us a mapped page."""
        if self.segments is None or (not force and time.monotonic() < self._next_look):
            return False
        started = time.monotonic()
        with self._lock:
            segments = self.segments
            begin, nbytes = numa_plan.pages_of(segments)
            bases = np.array([self._mapping.address(k) for k in range(len(self._mapping.paths))], np.uint64)
            kinds = max(self.choice.memory) + 2
            counts = page_counts(bases[segments.file] + begin, nbytes, kinds - 1)
            # What a team reads may begin in a page that another owns.
            heads = np.flatnonzero(begin > segments.begin)
            at = segments.begin[heads] // np.uint64(numa_plan.PAGE) * np.uint64(numa_plan.PAGE)
            head_counts = np.zeros_like(counts)
            head_counts[heads] = page_counts(bases[segments.file[heads]] + at, np.ones(len(heads)), kinds - 1)
            head_bytes = np.zeros(len(segments))
            head_bytes[heads] = np.minimum(begin[heads], segments.end[heads]) - segments.begin[heads]
            body = np.divide(segments.nbytes - head_bytes, nbytes / numa_plan.PAGE,
                             out=np.zeros(len(segments)), where=nbytes > 0)  # fmt: skip
            read = counts * body[:, None] + head_counts * head_bytes[:, None]
            gaps = np.flatnonzero((counts[:, -1] > 0) & (nbytes > 0))
            cached = np.zeros(len(segments), np.int64)
            if len(gaps) and not self._mapping.blind:
                found = self._mapping.cached(segments.file[gaps], begin[gaps], nbytes[gaps]).astype(np.int64)
                cached[gaps] = np.maximum(found - counts[gaps, :-1].sum(axis=1) * numa_plan.PAGE, 0)
            copies = {}
            for team in range(len(self.arenas)):
                ids = self.mirrored[self._copied[self.mirrored] & (self._home != team)]
                nbytes = np.asarray(self._table.nbytes)[ids]
                copies[team] = (ids, page_counts(self._spans.at[team][ids], nbytes, kinds - 1))
            seen = self._seen = Look(segments, counts, cached, read, copies)
        self.last_rows, self.last_shares = self._bytes(seen), self._shares(seen)
        self.measure_seconds = time.monotonic() - started
        self._next_look = time.monotonic() + max(EVERY_SECONDS, self.measure_seconds / MEASURE_SHARE)
        return True

    def wrong_bytes(self) -> int:
        """Mapped bytes on another node than their reader's, by the last look."""
        return sum(row.wrong_node or 0 for row in self.rows())

    def rows(self) -> list[protocol.Bytes]:
        """One per node and role, of the pages that the node's team owns: total and mapped bytes, and of those mapped
        the ones on another node. Copies count for the node that has them."""
        seen = self._seen
        return [] if seen is None else self._bytes(seen)

    def _bytes(self, seen: Look) -> list[protocol.Bytes]:
        segments, found = seen.segments, []
        roles = by_role(np.asarray(self._table.expert)[segments.span])
        _, nbytes = numa_plan.pages_of(segments)
        memory = np.array(self.choice.memory)
        for node in sorted(set(self.choice.memory)):
            for role, chosen in roles:
                mask = chosen & (memory[segments.team] == node)
                counts = seen.counts[mask].sum(axis=0)
                here, there = int(counts[node]), int(counts[:-1].sum() - counts[node])
                row = protocol.Bytes(node=node, role=role, total=int(nbytes[mask].sum()))
                row.mapped = (here + there) * numa_plan.PAGE
                row.wrong_node = there * numa_plan.PAGE if self.active else None
                row.cached = int(seen.cached[mask].sum())
                rest = row.total - row.mapped - row.cached
                row.unknown, row.deferred = (rest, 0) if self._mapping.blind else (0, rest)
                for team, (ids, copies) in seen.copies.items():
                    if self.choice.memory[team] != node:
                        continue
                    pages = copies[(np.asarray(self._table.expert)[ids] >= 0) == (role == "expert")].sum(axis=0)
                    row.total += int(pages.sum()) * numa_plan.PAGE
                    row.mapped += int(pages[:-1].sum()) * numa_plan.PAGE
                    row.wrong_node = (row.wrong_node or 0) + int(pages[:-1].sum() - pages[node]) * numa_plan.PAGE
                found.append(row)
        return found

    def by_node(self, measured: Picture) -> tuple[list[dict[str, Any]], str]:
        """Rows as people read them, measured now, and why bytes are unknown: what each node's team reads and how much
        of it is near; without teams, see node_rows. Blocks."""
        if self.look(force=True) and (seen := self._seen) is not None:
            shares = self._shares(seen)
            found: list[dict[str, Any]] = []
            for row in self._bytes(seen):
                near = [share for share, node in zip(shares, self.choice.memory, strict=True) if node == row.node]
                found.append({"node": row.node, "role": row.role, "wrong_node": row.wrong_node,
                              "local_share": round(sum(near) / len(near), 4), "total": row.total, "mapped": row.mapped,
                              "cached": row.cached, "deferred": row.deferred, "unknown": row.unknown})  # fmt: skip
            return found, measured.unknown_reason
        return node_rows(self._nodes, measured, self._spans)

    def local_share(self) -> list[float]:
        """Per team: the share of the weight bytes it has read that came from its node's memory, pages
        that it shares with other teams included.

        Bytes read are counted by the program per team and span, since experts were last dealt out; where they lie is
        the last look's. Before the first step every mapped byte counts once.
        """
        seen = self._seen
        return [] if seen is None else self._shares(seen)

    def _shares(self, seen: Look) -> list[float]:
        segments, teams = seen.segments, len(self.choice.teams)
        spans = len(self._table.nbytes)
        reads = self._reads()
        shares = []
        for team in range(teams):
            node = self.choice.memory[team]
            mine = segments.team == team
            near = np.bincount(segments.span[mine], seen.read[mine, node], spans)
            there = np.bincount(segments.span[mine], seen.read[mine, :-1].sum(axis=1), spans)
            if team in seen.copies:
                ids, copies = seen.copies[team]
                near[ids], there[ids] = copies[:, node], copies[:, :-1].sum(axis=1)
            weight = np.bincount(segments.span[mine], segments.nbytes[mine], spans)
            weight[there == 0] = 0
            if reads is not None and reads[team].any():
                weight = reads[team].astype(np.float64)
            # What a team reads of a span of which it owns nothing comes from another node.
            part = np.divide(near, there, out=np.zeros(spans), where=there > 0)
            total = float(weight.sum())
            shares.append(float((weight * part).sum() / total) if total else 0.0)
        return shares

    def _reads(self) -> NDArray[np.uint64] | None:
        """Weight bytes read per team and span since experts were last dealt out."""
        reads = None if self._engine is None else self._engine.program.reads
        return reads if reads is None or self._read_before is None else reads - self._read_before

    def load(self) -> float | None:
        """max/mean over teams of the weight bytes of experts that each has read, per thread; None: no step yet."""
        reads = self._reads()
        if reads is None:
            return None
        done = reads[:, np.asarray(self._table.expert) >= 0].sum(axis=1) / np.array([len(t) for t in self.choice.teams])
        return float(done.max() / done.mean()) if done.sum() else None

    def close(self) -> None:
        """Free the arenas. After the engine."""
        for arena in self.arenas:
            arena.close()
