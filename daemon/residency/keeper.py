"""The steady state: what was warm stays mapped, what is cold goes first, dense spans are locked; faults are counted.

Owns remapping, giving back and locking. The order in which experts are cold comes from heat and from recent use.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from hearthd.cyext.populate_queue import SWEEP
from hearthd.cyext.spans import ABSENT, FAILED, READY
from numpy.typing import NDArray

from .text import gib

if TYPE_CHECKING:
    from hearthd.cyext.mapping import Mapping
    from hearthd.cyext.populate_queue import PopulateQueue
    from hearthd.cyext.spans import Spans

    from .ledger import Ledger
    from .parts import Table

SLACK = 0.02  # of the budget: how far below it giving back goes, so that it is not called for every span
RECENT_HALF_LIFE = 64.0  # tokens: what has just been used is likely to be used again


class Keeper:
    def __init__(
        self, mapping: Mapping, spans: Spans, queue: PopulateQueue, table: Table, ledger: Ledger
    ) -> None:
        self._mapping, self._spans, self._queue, self._ledger = mapping, spans, queue, ledger
        self.nbytes = np.asarray(table.nbytes, dtype=np.int64)
        self.file = np.asarray(table.file)
        self.offset = np.asarray(table.offset, dtype=np.int64)
        self.layer = np.asarray(table.layer)
        self.expert = np.asarray(table.expert)
        self._place = np.lexsort((table.offset, table.file)).argsort()
        self.pinned = np.zeros(len(self.nbytes), dtype=bool)
        self.left = np.zeros(len(self.nbytes), dtype=np.int64)  # how often each has been READY and was given back
        self.recent: NDArray[np.float64] | None = None
        self.by_queue = False  # only the populate workers know on which node a page belongs
        self.remapped_bytes = 0
        self.given_back_bytes = 0
        self.lock_short = ""
        self.minor_per_token = self.major_per_token = 0.0
        self._faults: tuple[int, int] | None = None
        self._tokens = 0.0
        self._ready = np.zeros(len(self.nbytes), dtype=bool)

    # -- dense spans -------------------------------------------------------------------------------------------------

    def lock_dense(self, ids: NDArray[np.int32], room: int) -> int:
        """mlock dense spans that are ready, while `room` bytes last; the bytes locked. Blocks.

        Falling short of RLIMIT_MEMLOCK or of the room is said in `lock_short`.
        """
        locked = int(self.nbytes[self._ledger.locked].sum())
        wanted = ids[(self._spans.state[ids] == READY) & ~self._ledger.locked[ids]]
        for begin, end, members in self._runs(wanted):
            size = int(end - begin)
            if locked + size > room:
                self.lock_short = f"{gib(locked)} of the dense spans are locked: more would leave experts no room"
                break
            try:
                self._mapping.lock(int(self.file[members[0]]), begin, size)
            except OSError as error:
                full = error.errno in (errno.ENOMEM, errno.EPERM, errno.EAGAIN)
                self.lock_short = (f"{gib(locked)} of {gib(int(self.nbytes[ids].sum()))} dense spans are locked: "
                                   + ("RLIMIT_MEMLOCK allows no more" if full else str(error.strerror)))  # fmt: skip
                break
            self._ledger.locked[members] = True
            locked += size
        return locked

    def _runs(self, ids: NDArray[np.int32]) -> list[tuple[int, int, NDArray[np.int32]]]:
        """[begin, end) in the file and members of stretches of spans that lie side by side."""
        if not len(ids):
            return []
        ids = ids[np.argsort(self._place[ids])]
        end = self.offset[ids] + self.nbytes[ids]
        gap = (self.file[ids[1:]] != self.file[ids[:-1]]) | (self.offset[ids[1:]] - end[:-1] >= 4096)
        groups = np.split(ids, np.flatnonzero(gap) + 1)
        return [(int(self.offset[g[0]]), int(self.offset[g[-1]] + self.nbytes[g[-1]]), g) for g in groups]

    def in_file_order(self, ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """Positions that sort ids by file and offset."""
        return np.argsort(self._place[ids])

    def populate(self, ids: NDArray[np.int32]) -> int:
        """Map these spans now, 2 MiB blocks at a time; the bytes. Blocks. Raises OSError for what cannot be read."""
        total = 0
        for begin, end, members in self._runs(ids):
            self._mapping.populate(int(self.file[members[0]]), begin, end - begin, 0.0)
            total += end - begin
        return total

    def unlock(self, ids: NDArray[np.int32]) -> None:
        """Undo lock_dense for these spans. Blocks. Raises OSError."""
        for begin, end, members in self._runs(ids[self._ledger.locked[ids]]):
            self._mapping.unlock(int(self.file[members[0]]), begin, end - begin)
            self._ledger.locked[members] = False

    # -- decay -------------------------------------------------------------------------------------------------------

    def about_to_look(self) -> None:
        """Before the ledger measures: what is populated only afterwards has not decayed."""
        self._ready = self._spans.state == READY

    def decayed(self) -> NDArray[np.int32]:
        """Spans that were populated and are no longer wholly mapped, by the ledger's last look."""
        seen = self._ledger.now
        if seen.unknown_reason:
            return np.zeros(0, dtype=np.int32)
        lost = self._ready & (self._spans.state == READY) & (seen.mapped < seen.nbytes)
        lost &= seen.arena == 0
        return np.flatnonzero(lost).astype(np.int32)

    def restore(self, ids: NDArray[np.int32], room: int) -> tuple[int, int]:
        """Map decayed spans again: those still cached always, those lost while `room` bytes last; the rest becomes
        absent, so that the next to need it waits for a populate instead of faulting. (bytes mapped, spans forgotten).

        Blocks: for a worker thread between requests.
        """
        mapped = 0
        seen = self._ledger.now
        keep = seen.resident[ids] + np.uint64(4096) >= seen.nbytes[ids]
        lost = ids[~keep]
        lost = lost[np.argsort(self.expert[lost] >= 0, kind="stable")]  # dense first
        back = lost[np.cumsum(self.nbytes[lost]) <= room]
        gone = np.setdiff1d(lost, back)
        if self.by_queue:
            again = np.concatenate((ids[keep], back)).astype(np.int32)
            self.remapped_bytes += int(self.nbytes[again].sum())
            forgotten = self._queue.forget(np.concatenate((again, gone)).astype(np.int32))
            self._queue.submit(SWEEP, again)
            return int(self.nbytes[again].sum()), max(0, forgotten - len(again))
        failed: list[int] = []
        for begin, end, members in self._runs(np.concatenate((ids[keep], back))):
            try:
                self._mapping.populate(int(self.file[members[0]]), begin, end - begin, 0.75)
                mapped += end - begin
            except OSError:
                failed += [span for span in members.tolist() if not self._readable(span)]
        self.remapped_bytes += mapped
        gone = np.concatenate((gone, failed)).astype(np.int32)
        forgotten = self._queue.forget(gone) if len(gone) else 0
        self._note_left(gone)
        self._queue.submit(SWEEP, failed)  # fails as well: then it is known, with its error and byte
        return mapped, forgotten

    def _readable(self, span: int) -> bool:
        try:
            self._mapping.populate(int(self.file[span]), int(self.offset[span]), int(self.nbytes[span]), 0.75)
        except OSError:
            return False
        return True

    # -- giving back -------------------------------------------------------------------------------------------------

    def note_use(self, routed: NDArray[np.float64], tokens: float) -> None:
        """Fresh counts [layers, experts] of experts used since the last time."""
        before = np.zeros(routed.shape) if self.recent is None or self.recent.shape != routed.shape else self.recent
        self.recent = before * 0.5 ** (tokens / RECENT_HALF_LIFE) + routed  # anew: threads look at the old one

    def coldest(self, heat: NDArray[np.float64]) -> NDArray[np.int32]:
        """Populated experts that may go, coldest first: long-term share plus recent share of their layer."""
        ids = np.flatnonzero((self.expert >= 0) & (self._spans.state == READY) & ~self.pinned).astype(np.int32)
        score = _share(heat)[self.layer[ids], self.expert[ids]]
        if (recent := self.recent) is not None:
            score = score + _share(recent)[self.layer[ids], self.expert[ids]]
        return ids[np.argsort(score, kind="stable")]

    def over(self, budget: int) -> int:
        """Bytes that what is populated exceeds the budget by; from the queue's states, cheap enough for 10 Hz."""
        return int(self.nbytes[self._spans.state == READY].sum()) - budget

    def trim(self, budget: int, heat: NDArray[np.float64]) -> int:
        """Give the coldest experts back until what is populated fits; the bytes that left, measured. Blocks."""
        excess = self.over(budget)
        if excess <= 0:
            return 0
        ids = self.coldest(heat)
        count = int(np.searchsorted(np.cumsum(self.nbytes[ids]), excess + int(budget * SLACK))) + 1
        return self.give_back(ids[:count])

    def give_back(self, ids: NDArray[np.int32]) -> int:
        """Evict these spans; the bytes that left the cache."""
        there = ids[self._spans.state[ids] == READY]
        _, freed = self._queue.evict(ids[np.argsort(self._place[ids])])
        self._note_left(there)
        self.given_back_bytes += freed
        return int(freed)

    def _note_left(self, ids: NDArray[np.int32]) -> None:
        """Of these, which were READY, those that are no longer."""
        self.left[ids[self._spans.state[ids] != READY]] += 1

    def clear(self, ids: NDArray[np.int32]) -> int:
        """Evict what of these is resident, whoever read it. Blocks."""
        chosen = ids[np.isin(self._spans.state[ids], (READY, ABSENT, FAILED))]
        return self.give_back(chosen)

    # -- faults ------------------------------------------------------------------------------------------------------

    def count_faults(self, tokens: float) -> None:
        """Faults of all threads but the populate workers, per token; called with the tokens since the last time."""
        now = thread_faults()
        self._tokens += tokens
        if self._faults is None:
            self._faults = now
            self._tokens = 0.0
        elif self._tokens >= 1.0:
            self.minor_per_token = max(now[0] - self._faults[0], 0) / self._tokens
            self.major_per_token = max(now[1] - self._faults[1], 0) / self._tokens
            self._faults, self._tokens = now, 0.0


def _share(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    total = counts.sum(axis=1, keepdims=True)
    shares = np.zeros_like(counts, dtype=np.float64)
    np.divide(counts, total, out=shares, where=total > 0)
    return shares


def thread_faults(tasks: Path = Path("/proc/self/task")) -> tuple[int, int]:
    """(minor, major) faults of this process's threads except populate workers, whose faults are the plan."""
    minor = major = 0
    for name in os.listdir(tasks):
        try:
            text = (tasks / name / "stat").read_text()
        except OSError:
            continue
        comm, _, rest = text.partition("(")[2].rpartition(")")
        if comm != "hd-populate":
            words = rest.split()
            minor += int(words[7])
            major += int(words[9])
    return minor, major
