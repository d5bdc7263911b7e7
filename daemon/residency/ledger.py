"""What lies where, from the kernel's own books: per span, and added up per node and role.

Owns the measuring and its cost. Where the kernel will not say, everything is unknown with a reason, never a guess.
"""

from __future__ import annotations

import errno
import itertools
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import protocol

if TYPE_CHECKING:
    from hearthd.cyext.mapping import Mapping

    from .parts import Table

PAGE = 4096
LEVELS = "0123456789"
Bytes = NDArray[np.uint64]  # of each span

LEAF = 32  # spans side by side that are asked about one by one where a run is neither empty nor full


def _outward(offset: NDArray[np.uint64], nbytes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bytes of the pages that each range touches."""
    page = np.uint64(PAGE)
    return ((offset + nbytes + page - np.uint64(1)) // page - offset // page) * page


def by_role(expert: NDArray[np.int32]) -> list[tuple[protocol.Role, NDArray[np.bool_]]]:
    """The two roles, and which spans have them; expert: as in the span table."""
    return [("dense", expert < 0), ("expert", expert >= 0)]


@dataclass(frozen=True)
class Picture:
    """What lay where at one moment, per span in table order; whoever draws several conclusions draws them from one.

    mapped, cached (in the page cache only), evicted_recently, arena (anonymous memory: the kernel takes nothing from
    there): uint64 [n] bytes. With an unknown_reason all of what the kernel tells is 0. Nothing of it changes any more
    but `locked`, which says what is locked now.
    """

    nbytes: NDArray[np.uint64]
    layer: NDArray[np.int32]
    expert: NDArray[np.int32]
    node: NDArray[np.int32]
    locked: NDArray[np.bool_]
    mapped: NDArray[np.uint64]
    cached: NDArray[np.uint64]
    evicted_recently: NDArray[np.uint64]
    arena: NDArray[np.uint64]
    unknown_reason: str = "not measured yet"
    measured_at: float = 0.0  # seconds since the epoch
    refresh_seconds: float = 0.0

    @property
    def resident(self) -> NDArray[np.uint64]:
        here: NDArray[np.uint64] = np.maximum(self.mapped + self.cached, self.arena)
        return here

    def rows(self) -> list[protocol.Bytes]:
        """One per node and role."""
        result = []
        for node in sorted(set(self.node.tolist())) or [0]:
            for role, chosen in by_role(self.expert):
                mask = chosen & (self.node == node)
                if mask.any() or role == "dense":
                    result.append(self.row(mask, node, role))
        return result

    def row(self, mask: NDArray[np.bool_], node: int, role: protocol.Role) -> protocol.Bytes:
        """Bytes by state of the spans in a mask; the states add up to the total."""
        total = int(self.nbytes[mask].sum())
        row = protocol.Bytes(node=node, role=role, total=total)
        if self.unknown_reason:
            row.unknown = total
            return row
        row.mapped, row.cached = int(self.mapped[mask].sum()), int(self.cached[mask].sum())
        held = self.arena[mask]
        row.arena = int((held - np.minimum(held, (self.mapped + self.cached)[mask])).sum())
        row.deferred = total - row.mapped - row.cached - row.arena
        row.locked = int(self.mapped[mask & self.locked].sum())
        row.evicted_recently = min(int(self.evicted_recently[mask].sum()), row.deferred)
        return row

    def expert_lines(self, layers: int, experts: int) -> list[str]:
        """Per layer a character per expert: tenths resident, # when whole, ? when unknown."""
        if experts == 0:
            return []
        if self.unknown_reason:
            return ["?" * experts] * layers
        total, here = np.zeros((2, layers, experts))
        chosen = (self.expert >= 0) & (self.layer >= 0)
        where = (self.layer[chosen], self.expert[chosen])
        np.add.at(total, where, self.nbytes[chosen].astype(np.float64))
        np.add.at(here, where, self.resident[chosen].astype(np.float64))
        tenths = np.minimum(np.divide(here * 10, total, out=np.zeros_like(here), where=total > 0), 9).astype(int)
        whole = (total > 0) & (here >= total)
        return ["".join("#" if w else LEVELS[t] for t, w in zip(*pair, strict=True))
                for pair in zip(tenths.tolist(), whole.tolist(), strict=True)]  # fmt: skip


class Ledger:
    """Measures; `now` is the last picture, made whole before it is shown: the loop looks while a thread measures.

    `refresh` asks: PAGEMAP_SCAN once per file for what is mapped; then cachestat over runs of spans that are not wholly
    mapped, halving a run only where it is neither empty nor full. So a model that is deferred or warm costs a few
    system calls, whatever its size; the dearest case is one where every other expert is cached by 4 KiB pages.
    """

    def __init__(self, mapping: Mapping, table: Table) -> None:
        self._mapping = mapping
        nbytes = np.asarray(table.nbytes, dtype=np.uint64)
        n = len(nbytes)
        self._order = np.lexsort((table.offset, table.file))
        self._file = np.asarray(table.file, dtype=np.int32)[self._order]
        self._offset = np.asarray(table.offset, dtype=np.uint64)[self._order]
        self._bytes = nbytes[self._order]
        self._runs = self._contiguous()
        self.locked = np.zeros(n, dtype=bool)  # set by whoever locks
        nothing = np.zeros(n, dtype=np.uint64)
        self.now = Picture(nbytes, np.asarray(table.layer), np.asarray(table.expert), np.zeros(n, dtype=np.int32),
                           self.locked, nothing, nothing, nothing, nothing)  # fmt: skip
        self._cachestat = True

    def _contiguous(self) -> list[tuple[int, int]]:
        """[begin, end) of stretches of sorted spans without a gap of a page or more."""
        if len(self._file) == 0:
            return []
        end = self._offset + self._bytes
        gap = (self._file[1:] != self._file[:-1]) | (self._offset[1:] > end[:-1] + np.uint64(PAGE))
        edges = [0, *(np.flatnonzero(gap) + 1).tolist(), len(self._file)]
        return list(itertools.pairwise(edges))

    def refresh(self, in_arena: NDArray[np.bool_] | None = None) -> None:
        """Measure everything again; in_arena: spans read from there. Blocks; releases the GIL in the kernel."""
        started = time.perf_counter()
        nothing = np.zeros(len(self._bytes), dtype=np.uint64)
        mapped = cached = evicted = arena = nothing
        unknown = ""
        if self._mapping.blind:
            unknown = "a model file is neither ours nor writable: mincore and cachestat tell only its owner"
        else:
            try:
                mapped, cached, evicted = self._measure()
            except OSError as error:
                unknown = f"{error.filename}: {error.strerror}"
        if in_arena is not None:
            arena = np.where(in_arena, self.now.nbytes, nothing)
            evicted = np.where(in_arena, nothing, evicted)
        self.now = replace(self.now, mapped=mapped, cached=cached, evicted_recently=evicted, arena=arena,
                           unknown_reason=unknown, measured_at=time.time(),
                           refresh_seconds=time.perf_counter() - started)  # fmt: skip

    def _measure(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
        """mapped, cached only, evicted recently, in table order."""
        mapped = self._mapping.mapped(self._file, self._offset, self._bytes)
        cached = np.zeros_like(mapped)
        evicted = np.zeros_like(mapped)
        holes = mapped < self._bytes
        for begin, end in self._runs:
            inside = np.flatnonzero(np.diff(np.concatenate(([0], holes[begin:end].view(np.int8), [0]))))
            for a, b in inside.reshape(-1, 2).tolist():
                self._count(begin + a, begin + b, mapped, cached, evicted)
        found = np.zeros((3, len(mapped)), dtype=np.uint64)
        found[:, self._order] = mapped, cached - np.minimum(mapped, cached), np.minimum(
            evicted, self._bytes - np.maximum(mapped, cached)
        )
        return found[0], found[1], found[2]

    def _count(self, begin: int, end: int, mapped: Bytes, cached: Bytes, evicted: Bytes) -> None:
        """Fill cached (including mapped) and evicted of sorted spans [begin, end), which lie side by side."""
        if not self._cachestat:
            cached[begin:end] = self._mapping.cached(
                self._file[begin:end], self._offset[begin:end], self._bytes[begin:end]
            )
            return
        stack = [(begin, end)]
        while stack:
            a, b = stack.pop()
            if b - a <= LEAF:
                file, offset, nbytes = self._file[a:b], self._offset[a:b], self._bytes[a:b]
            else:
                file, offset = self._file[a : a + 1], self._offset[a : a + 1]
                nbytes = self._offset[b - 1 : b] + self._bytes[b - 1 : b] - offset
            try:
                counts = self._mapping.cachestat(file, offset, nbytes)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EPERM):
                    raise
                self._cachestat = False
                self._count(begin, end, mapped, cached, evicted)
                return
            if b - a <= LEAF:
                whole = counts[:, 0] == _outward(offset, nbytes)
                cached[a:b] = np.where(whole, nbytes, counts[:, 0])
                evicted[a:b] = counts[:, 1]
                partial = a + np.flatnonzero(~whole & (counts[:, 0] > 0))
                if len(partial):
                    cached[partial] -= self._overhang(partial)
            elif counts[0, 0] == 0 and counts[0, 1] == 0:
                pass
            elif counts[0, 0] == _outward(offset, nbytes)[0]:
                cached[a:b] = self._bytes[a:b]
            else:
                step = max(LEAF, -(-(b - a) // 8))
                stack += [(k, min(k + step, b)) for k in range(a, b, step)]

    def _overhang(self, spans: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Bytes of the cached outer pages of (sorted) spans that belong to their neighbours."""
        page, one = np.uint64(PAGE), np.uint64(1)
        file, begin = self._file[spans], self._offset[spans]
        end = begin + self._bytes[spans]
        head, last = begin % page, (end - one) // page * page
        ones = np.ones(len(spans), dtype=np.uint64)
        first_in = self._mapping.cachestat(file, begin - head, ones)[:, 0] > 0
        last_in = self._mapping.cachestat(file, last, ones)[:, 0] > 0
        return np.where(first_in, head, np.uint64(0)) + np.where(last_in, last + page - end, np.uint64(0))
