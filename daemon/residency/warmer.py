"""What is populated in the background, in which order: dense first, then experts as --experts and --warm say.

Owns the plan and its progress. Reads nothing itself (the populate queue does) and measures nothing (the ledger does).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from hearthd.cyext.populate_queue import CURSOR, DEMAND, LOOKAHEAD, ROUTED, SWEEP
from hearthd.cyext.spans import FAILED, READY
from numpy.typing import NDArray

from .arena import SINGLE
from .heat import Heat

if TYPE_CHECKING:
    from hearthd.cyext.populate_queue import PopulateQueue
    from hearthd.cyext.spans import Spans

    from .parts import Table

WINDOW_LAYERS = 2  # how far the cursor runs ahead of a step with rows of prompts
LIKELY = 0.5  # chance of being used in this step from which on the cursor takes an expert along
FILL = 0.97  # of the budget: what the sweep fills, so that a demand does not evict at once
GENERATING_RATE = 0.35  # share of the best disk rate seen that the sweep may use beside running answers
TIGHT_RATE = 1.0e6  # bytes per second
FIRST_RATE = 1.0e9  # before a rate has been seen
NEARLY_ALL = 0.9  # of the experts likely: then reading whole blocks wastes nothing
EXACT, ASKED, MOST, WHOLE = 2.0, 1.0, 0.75, 0.0  # see hd_populate's cover

Ids = NDArray[np.int32]


class Warmer:
    """experts: defer or eager; warm: auto, background, before-ready or off.

    eager: experts belong to the first load like dense spans, in file order, and --warm says only who waits for it.
    defer: they come when asked for, or by the sweep; `auto` sweeps all when all fits the budget, the hottest part when
    it does not; `background` sweeps as much as fits, hot or not; `off` sweeps nothing.
    unreadable: bool [n], what is known not to be readable; kept up by its owner. There is nothing to wait for.
    """

    def __init__(self, table: Table, spans: Spans, queue: PopulateQueue, heat: Heat, experts: str, warm: str,
                 unreadable: NDArray[np.bool_]) -> None:  # fmt: skip
        self._queue = queue
        self._spans = spans
        self._heat = heat
        self.experts, self.warm = experts, warm
        self._unreadable = unreadable
        self.nbytes = np.asarray(table.nbytes, dtype=np.int64)
        self.layer = np.asarray(table.layer)
        self.expert = np.asarray(table.expert)
        ids = np.arange(len(self.nbytes), dtype=np.int32)
        self._place = np.lexsort((table.offset, table.file)).astype(np.int32).argsort()
        dense = self._in_layer_order(ids[self.expert < 0])
        # What no layer owns (output, embedding: often half of all dense bytes) is wanted last; the rows of a table of
        # which steps read only some (see SpanTable.rows_only) wait until the disk is idle.
        self.dense: Ids = np.concatenate((dense[self.layer[dense] >= 0], dense[self.layer[dense] < 0]))
        self._rows_only: Ids = table.rows_only
        self._whole: Ids = self.dense[~np.isin(self.dense, self._rows_only)]
        self.expert_ids: Ids = self._in_layer_order(ids[self.expert >= 0])
        self._last_layer = int(np.max(self.layer[self.expert_ids], initial=-1))
        self.planned = np.zeros(len(ids), dtype=bool)
        self.asked = np.zeros(len(ids), dtype=bool)  # by an operator's `warm`, whatever the plan says
        self.left_alone = np.zeros(len(ids), dtype=bool)  # by an operator's `defer`
        self._left_out = np.zeros(len(ids), dtype=bool)  # of these, what would be planned but for that
        self.scope = "nothing"
        self.started = time.monotonic()
        self.dense_seconds = 0.0
        self.finished_seconds = 0.0
        self.best_rate = 0.0
        self._reading = False  # the step has rows of prompts
        self._roomy = True
        self._as_asked = False  # no expert is planned
        self._admitted = 0
        self._before = 0  # bytes that were there when the clock started
        self.apart = False  # there is an arena for reads of single experts

    def _in_layer_order(self, ids: Ids) -> Ids:
        """What belongs to no layer first, then layer by layer, in a layer as it lies in the file."""
        return ids[np.lexsort((self._place[ids], self.layer[ids]))]

    # -- deciding ----------------------------------------------------------------------------------------------------

    def fits(self, budget: int) -> bool:
        return int(self.nbytes[self.dense].sum() + self.nbytes[self.expert_ids].sum()) <= budget

    def by_heat(self) -> Ids:
        """Experts, hottest first; layer order for equals, and throughout where heat stands aside."""
        ids = self.expert_ids
        if not len(ids) or not self._heat.verdict()[0]:
            return ids
        # Shares: of a prompt, the last layer's experts see only the tokens that want logits (lowering.select_early).
        heat = self._heat.shares()[self.layer[ids], self.expert[ids]]
        return ids[np.argsort(-heat, kind="stable")]

    def begin(self, budget: int) -> None:
        """Dense spans now, at once. Cheap: called before anything else is ready."""
        self.started = time.monotonic()
        self.dense_seconds = self.finished_seconds = 0.0  # whoever looked before saw nothing planned, and that done
        self._set_cover(budget)
        self._queue.submit(CURSOR, self._whole)
        self.planned[self.dense] = True
        self.plan(budget)

    def warms_all(self, budget: int) -> bool:
        """Everything is wanted in the end."""
        return self.fits(budget) and (self.warm != "off" or self.experts == "eager")

    def _set_cover(self, budget: int) -> None:
        """Whole blocks where everything is wanted in the end; exact ranges where single experts must be given back."""
        self._roomy = self.warms_all(budget)
        if not self._reading:
            self._set_usual_cover()

    def _set_usual_cover(self) -> None:
        for cls in (DEMAND, ROUTED, LOOKAHEAD):
            self._queue.set_cover(cls, MOST if self._roomy else EXACT)
        self._queue.set_cover(CURSOR, WHOLE if self._roomy else EXACT)
        self._queue.set_cover(SWEEP, WHOLE if self._roomy else EXACT)
        self._read_apart(SINGLE if self._roomy else ())

    def _read_apart(self, classes: tuple[int, ...]) -> None:
        """What these classes ask for comes past the page cache, see arena.ColdReads."""
        if self.apart:
            self._queue.direct(classes)

    def plan(self, budget: int) -> None:
        """Decide which experts are warmed, and hand them to the queue. Called again when heat or budget have moved."""
        self._set_cover(budget)
        fits = self.fits(budget)
        room = int(budget * FILL) - int(self.nbytes[self.dense].sum())
        if self.experts == "eager":
            order, self.scope = self.expert_ids, "all experts" if fits else "the experts that fit, in file order"
        elif self.warm == "off":
            order, self.scope = self.expert_ids[:0], "nothing"
        elif fits:
            order, self.scope = self.by_heat(), "all experts"
        elif self._heat.verdict()[0]:
            order, self.scope = self.by_heat(), "the hottest experts that fit"
        elif self.warm == "auto":
            # Which part is hot is not known yet: what is asked for fills the memory better than a guess.
            order, self.scope = self.expert_ids[:0], "experts as they are asked for (routing is not known yet)"
        else:
            order, self.scope = self.expert_ids, "the experts that fit, in layer order"
        wanted, order = order, order[~self.left_alone[order]]
        if not fits:
            wanted, order, rest = self._first(wanted, room), self._first(order, room), order
            if len(order) < len(rest):  # others have taken the place of what is left alone
                wanted = order
        self._left_out[:] = False
        self._left_out[wanted] = self._left_out[self.dense] = True
        self._left_out &= self.left_alone
        self._as_asked = self.scope.startswith(("nothing", "experts as"))
        self._admitted = int(budget * FILL)
        self._queue.cancel(SWEEP)
        self.planned[:] = self.asked
        self.planned[self._not_left(self.dense)] = True
        self.planned[order] = True
        self._queue.sweep(self._not_left(self._rows_only))
        if self.experts == "eager":
            self._queue.submit(CURSOR, order)
        elif len(order):
            self._queue.sweep(order)
        again = np.flatnonzero(self.asked).astype(np.int32)
        if len(again):
            self._queue.sweep(again)
        if not self.done():
            self.finished_seconds = 0.0

    def _first(self, ids: Ids, room: int) -> Ids:
        """As many of these, in their order, as have room."""
        return ids[: int(np.searchsorted(np.cumsum(self.nbytes[ids]), max(room, 0), side="right"))]

    def _not_left(self, ids: Ids) -> Ids:
        return ids[~self.left_alone[ids]]

    def leave_alone(self, ids: Ids) -> None:
        """An operator's `defer`: none of these is on its way any more. `plan` has to follow."""
        self.left_alone[ids] = True
        self._left_out[ids] |= self.planned[ids]
        self.asked[ids] = self.planned[ids] = False
        self._queue.cancel(SWEEP)
        if not self._reading:  # a prompt that is being read asks for what it needs
            self._queue.cancel(CURSOR)
            self._queue.submit(CURSOR, self._not_left(self._whole))

    def restart_clock(self) -> None:
        """More is asked for after all was done: seconds and rate are of that."""
        if self.done() or self.finished_seconds:
            self.started, self.finished_seconds = time.monotonic(), 0.0
            self._before = int(self.nbytes[self._spans.state == READY].sum())

    def settle(self, state: NDArray[np.uint8]) -> None:
        """What is there, by these states, is the plan: memory is full, and what was asked for since has taken the place
        of the rest."""
        self.planned = self._settled(state)
        self.planned[self._not_left(self.dense)] = True
        self.finished_seconds = self.finished_seconds or time.monotonic() - self.started

    def look(self) -> NDArray[np.uint8]:
        """The spans' states at one moment: workers change them all the time."""
        return np.array(self._spans.state)

    def step_begins(self, prompts: int, answers: int) -> None:
        """While a step has rows of prompts, the cursor's window goes with it and the sweep waits."""
        before, self._reading = self._reading, prompts > 0
        asked_only = self.warm == "off" or self.experts == "eager"
        if not prompts or asked_only or bool(self._settled()[self.expert_ids].all()):
            if before:
                self._stay_behind()
            return
        chance = self._heat.chance(prompts + answers)
        # In the last layer only the rows that want logits choose (lowering.select_early).
        chance[self._last_layer] = self._heat.chance(1)[self._last_layer]
        ids = self._not_left(self.expert_ids)
        likely = ids[chance[self.layer[ids], self.expert[ids]] >= LIKELY]
        if self._roomy:
            # A long prompt uses nearly all: whole blocks, which reach the page cache at the disk's full rate. A short
            # one is answered soonest by reading no byte too many; yet exact ranges come as single pages, of which a few
            # fill the disk's queue before everybody else, so what is asked for as a whole block is read as one.
            nearly_all = len(likely) >= NEARLY_ALL * np.count_nonzero(self.layer[ids] != self._last_layer)
            for cls in (DEMAND, ROUTED, CURSOR):
                self._queue.set_cover(cls, WHOLE if nearly_all else ASKED)
            self._read_apart(() if nearly_all else (*SINGLE, CURSOR))
        self._queue.set_plan(likely, WINDOW_LAYERS)
        self._queue.pause((SWEEP,))

    def _stay_behind(self) -> None:
        """No step is to be run ahead of."""
        if self.experts != "eager" and self._settled()[self._not_left(self._whole)].all():
            self._queue.cancel(CURSOR)
        if self._roomy:
            self._set_usual_cover()
        self._queue.resume()

    def brake(self, generating: bool) -> None:
        """Beside running answers the sweep takes only a share of the disk, and hardly any where memory is short: what
        answers ask for is what should fill it."""
        if not generating or self.warm == "before-ready":
            self._queue.set_rate(0.0)
        elif not self._roomy and self.warm == "auto" and self.experts == "defer":
            self._queue.set_rate(TIGHT_RATE)
        else:
            self._queue.set_rate((self.best_rate or FIRST_RATE) * GENERATING_RATE)

    # -- progress ----------------------------------------------------------------------------------------------------

    def _settled(self, state: NDArray[np.uint8] | None = None) -> NDArray[np.bool_]:
        state = self._spans.state if state is None else state
        return np.asarray((state == READY) | (state == FAILED) | self._unreadable)

    def dense_done(self) -> bool:
        return bool(self._settled()[self._not_left(self.dense)].all())

    def done(self) -> bool:
        return bool(self._settled()[self.planned].all())

    def complete(self, state: NDArray[np.uint8]) -> bool:
        """By these states there is nothing that could still be populated, planned or not."""
        return bool(self._settled(state).all())

    def progress(self, state: NDArray[np.uint8] | None = None, full: bool = False) -> dict[str, Any]:
        """Bytes planned, populated, failed and deferred by order, seconds, rate over all of it; percent of what is
        planned and deferred by order, or, where experts come as they are asked for and memory is not full, of what the
        budget admits. What failed is missing."""
        state = self.look() if state is None else state
        here_now = state == READY
        unreadable = self._settled(state) & ~here_now
        left_out = self._left_out & self.left_alone
        plan = self.planned | (left_out & (here_now | unreadable))  # a request has asked for it since
        planned = int(self.nbytes[plan].sum())
        ready = int(self.nbytes[plan & here_now].sum())
        failed = int(self.nbytes[plan & unreadable].sum())
        deferred = int(self.nbytes[left_out & ~plan].sum())
        if self.dense_seconds == 0.0 and self.dense_done():
            self.dense_seconds = time.monotonic() - self.started
        if self.finished_seconds == 0.0 and ready + failed >= planned and not self._as_asked:
            self.finished_seconds = time.monotonic() - self.started
        here, whole = ready, planned + deferred
        if self._as_asked and not full:
            here, whole = int(self.nbytes[here_now].sum()), min(self._admitted, int(self.nbytes.sum()))
        seconds = self.finished_seconds or time.monotonic() - self.started
        populated = max(ready - self._before, 0)
        return {
            "scope": self.scope, "planned_bytes": planned, "ready_bytes": ready, "failed_bytes": failed,
            "deferred_bytes": deferred, "percent": min(100.0 * here / whole, 100.0) if whole > 0 else 100.0,
            "populated_bytes": populated, "seconds": seconds, "rate": populated / seconds if seconds else 0.0,
            "dense_seconds": self.dense_seconds,
            "done": ready + failed >= planned,
        }  # fmt: skip
