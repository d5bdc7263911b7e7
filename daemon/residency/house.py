"""Residency as a whole: ledger, budget, heat, warmer and keeper on one clock, and what the service asks of them.

Owns the states mapped → serving-cold → warming → warm and when to do what. Whatever blocks runs in a worker thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import trio
from numpy.typing import NDArray

from .. import protocol
from ..tending import Tending
from . import tables
from .allowance import Allowance
from .arena import Arena, choose_arena
from .audit import LOCK_SHARE, audit, census
from .budget import Budget, Budgeter
from .heat import Heat
from .keeper import Keeper
from .kept_heat import SAVE_SECONDS, KeptHeat
from .ledger import Ledger
from .lookahead import EVERY, Lookahead
from .orders import Orders
from .placement import Placement
from .selection import select_spans
from .start_line import said_at_start
from .text import gib
from .unreadable import Unreadable
from .warmer import Warmer

if TYPE_CHECKING:
    from hearthd.cyext.mapping import Mapping
    from hearthd.cyext.populate_queue import PopulateQueue
    from hearthd.cyext.spans import Spans

    from .parts import Engine, Model, Options, Table
    from .recorder import Recorder

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1  # brakes, trimming, progress
REFRESH_SECONDS = 1.0  # the ledger
REFRESH_SHARE = 0.05  # of a core at most: a ledger that costs more is refreshed less often
IDLE_TICK_SECONDS = 1.0  # while nothing runs, warms or is over the budget
IDLE_REFRESH_SECONDS = 5.0
IDLE_REFRESH_SHARE = 0.003
LONGEST_REFRESH_SECONDS = 15.0
QUIET_TICKS = 20  # without movement, after which an unfinished plan counts as idle too
WATCHED_SECONDS = 3.0  # so long after somebody has looked at the ledger it is kept fresh
URGENT_SECONDS = 5.0  # at most between two tries of what keeps us within memory
REFRESH_AGAIN_SECONDS = 15.0
REPLAN_TOKENS = 256.0  # after so many tokens the order by heat is made anew


class Residency:
    """How it is used stands in the package's docstring. `engine` may come later, by `attach`."""

    def __init__(self, model: Model, table: Table, mapping: Mapping, spans: Spans, queue: PopulateQueue,
                 engine: Engine | None, options: Options, budgeter: Budgeter | None = None,
                 placement: Placement | None = None, sessions_bytes: int = 0) -> None:  # fmt: skip
        self.placement = placement
        self._model, self._table, self._spans, self._queue = model, table, spans, queue
        self._engine: Engine | None = None
        self._options = options
        layers = int(np.max(table.layer, initial=-1)) + 1
        experts = int(table.n_expert)
        chosen = np.asarray(table.expert) >= 0
        pairs = np.asarray(table.layer)[chosen] * max(experts, 1) + np.asarray(table.expert)[chosen]
        self._pairs = len(set(pairs.tolist()))  # of layer and expert; numpy's own way imports 70 ms before READY
        self.heat = Heat(layers if experts else 0, experts, int(model.hyper("expert_used_count") or 1))
        self._kept = KeptHeat(self.heat, getattr(options, "state_directory", ""), model.identity,
                               lambda message: trio.from_thread.run_sync(self._warn, "heat", message))  # fmt: skip
        self.ledger = Ledger(mapping, table)
        wanted = int(np.asarray(table.nbytes, dtype=np.int64).sum())
        self._allowance = Allowance(budgeter or Budgeter(options.memory_budget), self.ledger, wanted, self._say_soon,
                                    sessions_bytes)  # fmt: skip
        self.unreadable = Unreadable(table, queue, getattr(model, "paths", []))
        self.warmer = Warmer(table, spans, queue, self.heat, options.experts, options.warm, self.unreadable.known)
        self.keeper = Keeper(mapping, spans, queue, table, self.ledger)
        self.keeper.by_queue = placement is not None and placement.active
        self.warnings = audit(model, table, mapping, options, self.budget, sessions_bytes)
        if self.keeper.by_queue:  # blocks of 2 MiB are left out on purpose: they would lie on one node as a whole
            self.warnings = [warning for warning in self.warnings if warning.code != "no-huge-blocks"]
        self.census = census(table)
        self.state = "mapped"
        self._progress = self.warmer.progress() | {"percent": 0.0}  # of when the state was decided: told together
        self.on_event: Callable[[protocol.EventNow], None] | None = None
        self.tending = Tending(self._say)
        self._begun = False
        self._reading = False  # the step has rows of prompts
        self._at_rest = False  # what is to be there is there
        self._tokens_since_plan = 0.0
        self._tokens = 0.0
        self._generating = False
        self._rates: list[tuple[float, int]] = []
        self._warm_rate = 0.0
        self._start_line = ""
        self._lock_said = False
        self._asleep = trio.Lock()
        self.arena = Arena(queue, spans)
        used = self.heat.per_token / max(experts, 1)
        self.lookahead = Lookahead(used * float(self.keeper.nbytes[self.warmer.expert_ids].sum()))
        self._all_tokens = 0.0
        self._said_lookahead = "off"
        self._recorder: Recorder | None = None
        self._wake = trio.Event()
        self._watched = 0.0
        self._quiet = 0
        self._resting = False  # at the last tick nothing moved
        self.orders = Orders(
            spans, queue, self.warmer, self.keeper, lambda select: select_spans(select, table, self.heat.counts),
            lambda: self.budget.bytes, self._ordered,
        )  # fmt: skip
        if engine is not None:
            self.attach(engine)

    @property
    def budget(self) -> Budget:
        """What may be resident now."""
        return self._allowance.now

    @property
    def all_warnings(self) -> list[protocol.Warning_]:
        """What is so from the start, and what has failed and not recovered."""
        return self.warnings + self.tending.warnings

    def place(self, engine: Engine) -> None:
        """Divide the model between the engine's teams, by earlier runs' heat. Blocks; before anything is populated."""
        if self.placement is not None:
            self._kept.load()
            self.placement.attach(engine, self.heat.counts)
            self.warnings += self.placement.warnings

    def attach(self, engine: Engine) -> None:
        """The engine whose routing is counted from now on, and recorded when --trace names a file."""
        self._engine = self._allowance.engine = engine
        if path := getattr(self._options, "trace", ""):
            from .recorder import Recorder

            try:
                self._recorder = Recorder(path, engine, self._table)
            except OSError as error:
                self._warn("trace", f"{path}: {error.strerror}")

    def begin(self) -> None:
        """Queue the dense spans (and what --experts eager adds) at once. Cheap; `run` calls it if nobody has."""
        if not self._begun:
            self._begun = True
            try:
                self.arena = choose_arena(
                    self._queue, self._spans, getattr(self._options, "short_memory", "auto"), self.warmer.expert_ids,
                    all_warmed=self.warmer.warms_all(self.budget.bytes) and self.warmer.experts == "defer",
                    budget=self.budget.bytes,
                    dense=int(self.keeper.nbytes[self.warmer.dense].sum()),
                )  # fmt: skip
            except (OSError, MemoryError) as error:  # there is none, then
                self.tending.failed("the arena", error)
            if self.arena.in_use and not self.arena.passing:
                self._say("arena", self.arena.line())
            self.warmer.apart = self.arena.passing
            self.warmer.begin(self.budget.bytes)
            self._enter("serving-cold")

    # -- the clock ---------------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; saves heat on the way out. A part that fails is told and begins again: the others, and the
        answers, go on without it."""
        await trio.to_thread.run_sync(self._kept.load)
        if self._begun:
            self.warmer.plan(self.budget.bytes)
        self.begin()
        task_status.started()
        keep = self.tending.keep
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep, "the clock of warming", self._tick, URGENT_SECONDS)
                nursery.start_soon(keep, "following the budget", self._hold_budget, URGENT_SECONDS)
                nursery.start_soon(keep, "measuring what is resident", self._refresh, REFRESH_AGAIN_SECONDS)
                nursery.start_soon(keep, "saving heat", self._save_heat)
                if self.arena.passing:
                    nursery.start_soon(keep, "moving the arena into the mapping", self._bring_home)
                if self.placement is not None and len(self.placement.choice.teams) > 1:
                    nursery.start_soon(keep, "following placement", self._follow_placement)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self.save_at_the_end)

    async def _tick(self) -> None:
        while True:
            self.tending.look()
            self._count()
            warmed = self.warmed()
            self._update_state()
            unfinished = not self.warmer.done() or not self.warmer.fits(self.budget.bytes)
            if self._tokens_since_plan >= REPLAN_TOKENS and unfinished and not self._reading:
                self._tokens_since_plan = 0.0
                self.warmer.plan(self.budget.bytes)
            self._resting = self._idle(warmed)
            await self._pause(IDLE_TICK_SECONDS if self._resting else TICK_SECONDS, TICK_SECONDS)

    async def _hold_budget(self) -> None:
        """However long the ledger takes, and whatever else fails: a limit falls without a warning."""
        while True:
            pause = REFRESH_SECONDS if self._quiet == 0 or self._looked_at() else IDLE_REFRESH_SECONDS
            if self._allowance.age() >= pause:
                await trio.to_thread.run_sync(self._allowance.read, self.arena.taken())
            if self.keeper.over(self.budget.bytes) > 0 or self.arena.taken() > 0:
                await trio.to_thread.run_sync(self._make_room)
            await self._pause(IDLE_TICK_SECONDS if self._resting else TICK_SECONDS, TICK_SECONDS)

    def _idle(self, warmed: bool) -> bool:
        """Nothing runs, and nothing is on its way into memory (or has been for a while, where not all can be).

        warmed: when the state was decided; what has become warm since is to be told at the next tick.
        """
        moving = self._reading or self._generating or self._warm_rate > 0
        moving = moving or any(row["waiting"] for row in self._queue.stats().values()) or self.arena.taken() > 0
        self._quiet = 0 if moving else self._quiet + 1
        return self._quiet > (0 if warmed else QUIET_TICKS)

    async def _pause(self, seconds: float, least: float) -> None:
        """Cut short, though not below `least`, when a request comes or somebody looks."""
        await trio.sleep(least)
        with trio.move_on_after(seconds - least):
            await self._wake.wait()

    def _wake_up(self) -> None:
        self._wake.set()
        self._wake = trio.Event()

    def _ordered(self) -> None:
        """An operator's order counts: who asks for the state next is told what is."""
        if self._begun:
            self._update_state()
        self._wake_up()

    def _looked_at(self) -> bool:
        return time.monotonic() - self._watched < WATCHED_SECONDS

    def _make_room(self) -> None:
        """Down to the budget, the coldest first; what the arena frees goes back; who goes next. Blocks."""
        if self.arena.taken() > 0:
            # The kernel cannot take these pages back, so a limit that falls must be followed at once.
            self._allowance.follow(self.arena.taken())
        self.keeper.trim(self.budget.bytes, self.heat.counts)
        self.arena.follow(self.expert_room(), self.budget.bytes, self.keeper, self.heat.counts)

    async def _bring_home(self) -> None:
        """What was read apart while the model was cold moves into the mapping, when nothing else wants the disk."""
        while True:
            quiet = self._at_rest and not self._reading
            started = trio.current_time()
            moved = await trio.to_thread.run_sync(self.arena.bring_home, self.keeper) if quiet else 0
            spent = trio.current_time() - started
            # Beside running answers it takes half of the time at most.
            await trio.sleep(TICK_SECONDS if not moved else spent if self._generating else 0.0)

    def _look_ahead(self) -> None:
        engine = self._engine
        if engine is None or not hasattr(engine, "set_lookahead") or not self.heat.counts.size:
            return
        queue = self._queue.stats()
        missed = sum(queue[name]["read"] for name in ("demand", "routed", "lookahead"))
        fits, now = self.warmer.fits(self.budget.bytes), time.monotonic()
        if self.lookahead.decide(engine.lookahead, missed, self._all_tokens, fits, now):
            engine.set_lookahead(self.lookahead.reading, EVERY)
        state = self.lookahead.reason.partition(":")[0]
        if state != self._said_lookahead:  # not every turn of a trial
            self._said_lookahead = state
            self._say("lookahead", f"lookahead {self.lookahead.reason}")

    def _count(self) -> None:
        """Tokens, rates, and what they say about the brake."""
        tokens = 0.0
        if self._engine is not None and self.heat.counts.size:
            before = self.heat.counts_seen()
            tokens = self.heat.update(self._engine.expert_counts)
            if tokens:
                self.keeper.note_use((self.heat.counts_seen() - before).astype(np.float64), tokens)
        if self._recorder is not None:
            self._recorder.note(self.populated_bytes(), self.expert_room())
        self._tokens += tokens
        if tokens and not self._reading:
            self._all_tokens += tokens
            self._look_ahead()
        self._tokens_since_plan += tokens
        self._generating = (tokens > 0 or self._running()) and not self._reading
        now, read = time.monotonic(), self.populated_bytes()
        self._rates = [(t, b) for t, b in self._rates if now - t < 1.0] + [(now, read)]
        span = now - self._rates[0][0]
        self._warm_rate = (read - self._rates[0][1]) / span if span > 0 else 0.0
        self.warmer.best_rate = max(self.warmer.best_rate, self._warm_rate if span > 0.5 else 0.0)
        self.warmer.brake(self._generating)

    def _note_unreadable(self, look: NDArray[np.uint8]) -> None:
        """A span that cannot be read is told once, whoever wanted it; what is planned is tried anew now and then."""
        now = time.monotonic()
        news = self.unreadable.look(look, now)
        for code, message in news:
            self._say(code, message, "warning" if code == "unreadable" else "info")
        if news:
            self.warnings = [warning for warning in self.warnings if warning.code != "unreadable"]
            if self.unreadable.text:
                self.warnings.append(protocol.Warning_(code="unreadable", message=self.unreadable.text))
        again = self.unreadable.due(self.warmer.planned, now)
        if len(again):
            self._queue.retry(again)
            self._queue.sweep(again)

    def _update_state(self) -> None:
        dense_done = self.warmer.dense_done()  # before the look, which then has them
        look = self.warmer.look()
        self._note_unreadable(look)
        progress = self.warmer.progress(look)
        if not self._start_line and progress["dense_seconds"] and self.ledger.now.measured_at:
            self._start_line = self.start_line()
            self._say("dense", self._start_line)
        scope = self.warmer.scope
        if not dense_done:
            state = "serving-cold"
        elif not progress["done"] and not self._full(look):
            state = "warming"
        elif self.warmer.complete(look) or (scope.startswith(("all", "the ")) and not progress["deferred_bytes"]):
            state = "warm"
        else:
            state = "warm" if scope != "nothing" and self._full(look) else "serving-cold"
        self._at_rest = dense_done and state != "warming"
        self._progress = self.warmer.progress(look, full=state == "warm")
        self._enter(state)

    def _full(self, look: NDArray[np.uint8]) -> bool:
        """Memory holds as much as the budget admits and nothing is being swept: what is missing of the plan has
        made room for what was asked for since, and the plan is what is there."""
        if self.warmer.fits(self.budget.bytes) or self._queue.stats()["sweep"]["waiting"]:
            return False
        if self.keeper.over(self.budget.bytes) < -int(self.budget.bytes * 0.1):
            return False
        self.warmer.settle(look)
        return True

    def _enter(self, state: str) -> None:
        if state == self.state:
            return
        self.state = state
        progress = self._progress
        text = state
        if state == "warm":
            scope = "what was asked for" if self.warmer.scope == "nothing" else self.warmer.scope
            text = (f"warm: {scope}, {gib(progress['populated_bytes'])} in {progress['seconds']:.2f} s, "
                    f"{gib(progress['rate'])}/s")  # fmt: skip
            if progress["failed_bytes"]:
                text += f"; {gib(progress['failed_bytes'])} could not be read"
        elif state == "warming":
            text = f"warming {self.warmer.scope}: {gib(progress['planned_bytes'])}"
        elif note := self._note():
            text = f"{state}: {note}"
        self._say("state", text, state=state)

    def _say(self, code: str, message: str, level: protocol.Level = "info", state: str | None = None) -> None:
        log.log({"info": logging.INFO, "warning": logging.WARNING}.get(level, logging.ERROR), "%s", message)
        if self.on_event is not None:
            event = protocol.EventNow(time=time.time(), level=level, code=code, message=message)
            if state is not None:
                event.state = state
            self.on_event(event)

    def _note(self) -> str:
        """What the state alone does not tell."""
        deferred = self._progress["deferred_bytes"]
        return ", ".join([f"{gib(deferred)} deferred by order"] * bool(deferred)
                         + [self.unreadable.text] * bool(self.unreadable.text))  # fmt: skip

    async def _refresh(self) -> None:
        while True:
            started = trio.current_time()
            async with self._asleep:
                self.keeper.about_to_look()
                await trio.to_thread.run_sync(self._measure)
                await trio.to_thread.run_sync(self._keep)
            tokens, self._tokens = self._tokens, 0.0
            await trio.to_thread.run_sync(self.keeper.count_faults, tokens)
            self._say_lock()
            took = self.ledger.now.refresh_seconds
            least = max(REFRESH_SECONDS, took / REFRESH_SHARE)
            pause = max(least, min(took / IDLE_REFRESH_SHARE, LONGEST_REFRESH_SECONDS))
            pause = max(pause, IDLE_REFRESH_SECONDS)
            if self._quiet == 0 or tokens or self._looked_at():
                pause = least
            spent = trio.current_time() - started
            await self._pause(max(0.05, pause - spent), max(0.05, least - spent))

    def _measure(self) -> None:
        self.ledger.refresh(self.arena.mask())

    def _keep(self) -> None:
        """Once per refresh, in a worker thread: lock, map again what has decayed."""
        keeper = self.keeper
        resident = int(self.ledger.now.resident.sum())
        if self.warmer.dense_done():
            keeper.lock_dense(self.warmer.dense, int(self.budget.bytes * LOCK_SHARE))
        if not self._reading and not self._running():
            lost = keeper.decayed()
            if len(lost) and (self._options.warm != "off" or (self.warmer.expert[lost] < 0).any()):
                if self._options.warm == "off":
                    lost = lost[self.warmer.expert[lost] < 0]
                keeper.restore(lost, self.budget.bytes - resident)

    def _running(self) -> bool:
        return self._engine is not None and self._engine.layer >= 0

    def _warn(self, code: str, message: str) -> None:
        """Told now, and as long as the daemon lives."""
        self.warnings.append(protocol.Warning_(code=code, message=message))
        self._say(code, message, "warning")

    def _say_soon(self, code: str, message: str, level: protocol.Level) -> None:
        trio.from_thread.run_sync(self._say, code, message, level)

    def _say_lock(self) -> None:
        if self.keeper.lock_short and not self._lock_said:
            self._lock_said = True
            self._warn("mlock-limit", self.keeper.lock_short)

    async def _follow_placement(self) -> None:
        """Copies, a look at where pages lie, and what follows from it."""
        placement = self.placement
        assert placement is not None
        while True:
            left = await trio.to_thread.run_sync(placement.copy_ready)
            if not self._reading and await trio.to_thread.run_sync(placement.look):
                await trio.to_thread.run_sync(placement.repair)
                even = not self.heat.verdict()[0]
                done = await trio.to_thread.run_sync(placement.follow, self.heat.counts, even)
                if done:
                    self._say("numa", done)
            await trio.sleep(TICK_SECONDS if left else 1.0)

    # -- heat --------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Heat, and the trace if there is one. Blocks; raises what is no want of a place to write."""
        try:
            if self._recorder is not None:
                self._recorder.save()
        finally:
            self._kept.save()

    def save_at_the_end(self) -> None:
        """The same, where nobody can try again: a failure is in the log."""
        try:
            self.save()
        except Exception:
            log.exception("heat or the trace could not be saved")

    async def _save_heat(self) -> None:
        while True:
            await trio.sleep(SAVE_SECONDS)
            await trio.to_thread.run_sync(self.save)

    # -- what the service tells and asks -----------------------------------------------------------------------------

    def step_begins(self, prompts: int, answers: int) -> None:
        """So many rows of prompts and of answers; none at all: nothing is to be done for now."""
        self._reading = prompts > 0
        self.warmer.step_begins(prompts, answers)
        if prompts:
            self._wake_up()

    def warmed(self) -> bool:
        """Nothing of the plan is missing any more."""
        return self._begun and self.warmer.done()

    def expert_room(self) -> int:
        """Bytes of the budget that dense spans leave to experts."""
        return max(self.budget.bytes - int(self.keeper.nbytes[self.warmer.dense].sum()), 0)

    def populated_bytes(self) -> int:
        """Read from disk by the populate workers since the start."""
        return int(sum(row["read"] for row in self._queue.stats().values()))

    def snapshot(self) -> protocol.ResidencyNow:
        """As last measured; whoever looks again finds it fresh."""
        if time.monotonic() - self._watched >= WATCHED_SECONDS:
            self._wake_up()
        self._watched = time.monotonic()
        seen = self.ledger.now
        return protocol.ResidencyNow(
            time=seen.measured_at, rows=(self.placement and self.placement.last_rows) or seen.rows(),
            experts=seen.expert_lines(*self.heat.counts.shape), budget_bytes=self.budget.bytes,
            unknown_reason=seen.unknown_reason, refresh_seconds=seen.refresh_seconds,
        )  # fmt: skip

    def stats(self) -> dict[str, Any]:
        """Fields of protocol.Stats that are residency's."""
        progress = self._progress
        queue = self._queue.stats()
        return {
            "state": self.state, "warm_percent": progress["percent"], "warm_bytes": progress["ready_bytes"],
            "state_note": self._note(), "warm_rate": self._warm_rate,
            "queue_depths": [int(row["waiting"]) for row in queue.values()],
            "populated_bytes": int(sum(row["read"] for row in queue.values())), "populate_rate": self._warm_rate,
            "lookahead_reading": self.lookahead.reading, "lookahead_reason": self.lookahead.reason,
            "experts_used": int(np.count_nonzero(self.heat.counts_seen())), "experts_total": self._pairs,
            "faults_minor_per_token": self.keeper.minor_per_token,
            "faults_major_per_token": self.keeper.major_per_token,
            "local_share": self.placement.last_shares if self.placement is not None else [],
        }  # fmt: skip

    def status(self) -> dict[str, Any]:
        used, reason = self.heat.verdict()
        return {
            "start_line": self.start_line(),
            "warm": self._progress | {
                "state": self.state, "remapped_bytes": self.keeper.remapped_bytes,
                "given_back_bytes": self.keeper.given_back_bytes,
            },
            "heat": {
                "used": used, "reason": reason, "source": self._kept.source, "tokens": self.heat.tokens(),
                "effective_experts": [round(value, 2) for value in self.heat.effective().tolist()],
            },
            "budget": {
                "bytes": self.budget.bytes, "reason": self.budget.reason, "held_back": self.budget.held_back,
                "pressure": self.budget.pressure, "sessions": self.budget.sessions,
                "sessions_may_take": self._allowance.sessions.may_take,
                "sessions_taken": self._allowance.sessions.taken,
            },
            "arena": self.arena.status(),
            "lookahead": self.lookahead.status(getattr(self._engine, "lookahead", {})),
            "queue": self._queue.stats(),
        }  # fmt: skip

    def start_line(self) -> str:
        """`dense 7.90 GiB populated in 4.02 s, experts deferred 115 GiB, warming in background (budget 51.2 GiB)`, as
        measured when the dense spans had come; until then, of now."""
        if self._start_line:
            return self._start_line
        return said_at_start(self.census, self.ledger.now, self.warmer, self._options, self.budget.bytes)

    async def residency_by(self, by: str) -> dict[str, Any]:
        """Rows by role, layer, node or tensor, measured now."""
        async with self._asleep:
            await trio.to_thread.run_sync(self._measure)
            return await trio.to_thread.run_sync(tables.rows_by, by, self.ledger.now, self._table, self.placement)

    def experts(self, layer: int | None) -> dict[str, Any]:
        """Per layer, or for one: heat of each expert, what is resident, effective number."""
        return tables.experts(layer, self.ledger.now, self.heat)
