"""What an operator orders by name: warm, defer and pin a selection of spans, whatever the plan says.

Owns the bookkeeping of such orders against plan and budget. Reads and evicts nothing itself: queue and keeper do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import trio
from hearthd.cyext.populate_queue import SWEEP
from hearthd.cyext.spans import EVICTING, FAILED, LOADING, READY
from numpy.typing import NDArray

from .. import protocol
from .audit import LOCK_SHARE
from .keeper import Keeper
from .warmer import Warmer

if TYPE_CHECKING:
    from hearthd.cyext.populate_queue import PopulateQueue
    from hearthd.cyext.spans import Spans

POLL_SECONDS = 0.1
DRAIN_SECONDS = 1.0  # a piece of 4 MiB that is on its way takes less


class Orders:
    """select: ids that a selection means; budget: its bytes now; changed: called when an order is."""

    def __init__(self, spans: Spans, queue: PopulateQueue, warmer: Warmer, keeper: Keeper,
                 select: Callable[[protocol.Selection], NDArray[np.int32]], budget: Callable[[], int],
                 changed: Callable[[], None]) -> None:  # fmt: skip
        self._spans, self._queue, self._warmer, self._keeper = spans, queue, warmer, keeper
        self._select, self._budget, self._changed = select, budget, changed

    async def warm(self, select: protocol.Selection, *, wait: bool = False,
                   progress: Callable[[int, int, str], None] | None = None) -> dict[str, Any]:  # fmt: skip
        """Populate a selection in the background, hottest first. `wait` until each of its spans is there, or could not
        be read, or is not to come any more: deferred by an order, or given back for what is needed more. Progress in
        bytes. ready, failed and deferred count what was queued, when the answer is made."""
        ids = self._select(select)
        self._warmer.left_alone[ids] = False
        order = self._warmer.by_heat()
        order = np.concatenate((ids[self._warmer.expert[ids] < 0], order[np.isin(order, ids)])).astype(np.int32)
        room = max(self._budget() - int(self._keeper.nbytes[self._spans.state == READY].sum()), 0)
        missing = order[self._spans.state[order] != READY]
        admitted = missing[np.cumsum(self._keeper.nbytes[missing]) <= room]
        if len(admitted):
            self._warmer.restart_clock()
        self._warmer.asked[admitted] = True
        self._warmer.planned[admitted] = True
        self._queue.retry(admitted)
        left = self._keeper.left[admitted]
        self._queue.submit(SWEEP, admitted)
        self._changed()
        total = int(self._keeper.nbytes[admitted].sum())
        started = trio.current_time()
        if wait:
            await self._arrived(admitted, left, progress)
            self._changed()
        state = self._spans.state[admitted]
        ready, failed = int((state == READY).sum()), int((state == FAILED).sum())
        return {
            "spans": len(ids), "bytes": int(self._keeper.nbytes[ids].sum()), "queued": len(admitted),
            "queued_bytes": total, "over_budget": len(missing) - len(admitted), "ready": ready, "failed": failed,
            "deferred": len(admitted) - ready - failed, "seconds": trio.current_time() - started,
        }  # fmt: skip

    async def _arrived(self, ids: NDArray[np.int32], left: NDArray[np.int64],
                       progress: Callable[[int, int, str], None] | None) -> None:  # fmt: skip
        """Until nothing of this is on its way. left: how often each had been given back when it was asked for."""
        nbytes = self._keeper.nbytes[ids]
        waited_for = np.ones(len(ids), dtype=bool)
        while True:
            nothing_moves = not any(row["waiting"] or row["in_flight"] for row in self._queue.stats().values())
            state = self._spans.state[ids]  # after the look at the queue: what left it is READY, FAILED or ABSENT here
            waited_for &= (state != READY) & (state != FAILED)
            waited_for &= ~self._warmer.left_alone[ids] & (self._keeper.left[ids] == left)
            if nothing_moves:  # whoever dropped the rest did not tell
                waited_for &= (state == LOADING) | (state == EVICTING)
            if progress is not None:
                progress(int(nbytes[~waited_for].sum()), int(nbytes.sum()), "bytes")
            if not waited_for.any():
                return
            await trio.sleep(POLL_SECONDS)

    async def defer(self, select: protocol.Selection) -> dict[str, Any]:
        """Give a selection back and do not warm it again until it is asked for or warmed by name. Measured bytes."""
        ids = self._select(select)
        ids = ids[~self._keeper.pinned[ids]]
        dense = ids[self._warmer.expert[ids] < 0]
        self._warmer.leave_alone(ids)
        with trio.CancelScope(shield=True):  # once begun, the plan has to follow
            await trio.to_thread.run_sync(self._keeper.unlock, dense)
            await trio.to_thread.run_sync(self._queue.drain, SWEEP, DRAIN_SECONDS)
            freed = await trio.to_thread.run_sync(self._keeper.clear, ids)
        self._warmer.plan(self._budget())
        self._changed()
        return {"spans": len(ids), "bytes": int(self._keeper.nbytes[ids].sum()), "freed_bytes": freed}

    async def pin(self, select: protocol.Selection, *, release: bool = False) -> dict[str, Any]:
        """Pinned spans are warmed and never given back for others; up to the budget."""
        ids = self._select(select)
        if release:
            self._keeper.pinned[ids] = False
            return {"spans": len(ids), "pinned": int(self._keeper.pinned.sum())}
        room = int(self._budget() * LOCK_SHARE) - int(self._keeper.nbytes[self._keeper.pinned].sum())
        fresh = ids[~self._keeper.pinned[ids]]
        fresh = fresh[np.cumsum(self._keeper.nbytes[fresh]) <= room]
        self._keeper.pinned[fresh] = True
        result = await self.warm(select)
        return result | {"pinned": int(self._keeper.pinned.sum()), "pinned_bytes":
                         int(self._keeper.nbytes[self._keeper.pinned].sum())}  # fmt: skip
