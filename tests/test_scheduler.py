"""The scheduler alone, on an engine that only tells whose step was ended: what ends, what gives way, who is next."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hearthd.daemon import protocol
from hearthd.daemon.generation import Job
from hearthd.daemon.interrupt import Interrupt
from hearthd.daemon.scheduler import Busy, Scheduler


class Ended(Exception):
    pass


class Engine:
    """Steps that take `seconds`, unless they are ended. `ended` counts those by the name of the job."""

    batch = 8

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.steps: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.running = threading.Event()
        self._flag = threading.Event()

    def new_session(self) -> Any:
        return type("Session", (), {"close": lambda self: None})()

    def trim(self) -> None:
        pass

    def step(self, name: str, interrupt: Interrupt) -> None:
        self.steps[name] += 1
        if not interrupt.begin(lambda on: self._flag.set() if on else self._flag.clear()):
            raise Ended
        self.running.set()
        try:
            if self._flag.wait(self.seconds):
                self.ended[name] += 1
                raise Ended
        finally:
            self.running.clear()
            interrupt.over()


class Tokens(Job):
    """So many tokens, one a turn."""

    op = "generate"

    def __init__(self, name: str, owner: str = "", count: int = 4, nbytes: int = 0) -> None:
        super().__init__(name, name, name.encode(), [5], owner)
        self.count, self.extra = count, nbytes

    @property
    def nbytes(self) -> int:
        return self.extra

    def turn(self, engine: Any, interrupt: Interrupt) -> list[protocol.Reply]:
        engine.step(self.name, interrupt)
        self.prompt_done = 1
        self.count -= 1
        self.ended = "" if self.count else "length"
        return [protocol.TokenEvent(id=self.id, token=self.count)]

    def finish(self, reason: str) -> tuple[protocol.Reply, bytes | None]:
        return protocol.Done(id=self.id, reason=reason), None


class Desk:
    """A scheduler with an engine, and what was delivered: the last word on each request."""

    def __init__(self, engine: Engine, **limits: int) -> None:
        self.engine = engine
        self.ends: dict[str, str] = {}
        self.on_token: Callable[[Job], bool] = lambda job: True
        self.scheduler = Scheduler(self._deliver, **{"sessions": 4, "queue": 64} | limits)

    def _deliver(self, job: Job, reply: protocol.Reply, body: Any) -> bool:
        if isinstance(reply, protocol.TokenEvent):
            return self.on_token(job)
        self.ends[job.name] = reply.reason if isinstance(reply, protocol.Done) else reply.code
        return True

    def leave(self, job: Job) -> bool:
        """As when sending finds that the client is away: all of its requests end, from within the delivery."""
        self.scheduler.end_all("gone", lambda other: other.peer == job.peer and not other.stop_reason)
        return False


@asynccontextmanager
async def desk(engine: Engine, **limits: int) -> AsyncIterator[Desk]:
    made = Desk(engine, **limits)
    made.scheduler.use(engine)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.scheduler.run)
            yield made
            await made.scheduler.until_idle()
            nursery.cancel_scope.cancel()


async def test_who_is_found_away_while_its_token_is_delivered_ends_no_other_step() -> None:
    engine = Engine(0.001)
    async with desk(engine) as made:
        made.on_token = lambda job: made.leave(job) if job.name == "leaves" else True
        made.scheduler.submit(Tokens("leaves", count=100))
        made.scheduler.submit(Tokens("stays", count=5))
    assert made.ends == {"stays": "length"}
    assert engine.steps == {"leaves": 1, "stays": 5} and not engine.ended


async def test_the_running_step_ends_with_its_request() -> None:
    engine = Engine(60.0)
    async with desk(engine) as made:
        first, second = Tokens("first"), Tokens("second", count=1)
        made.scheduler.submit(first)
        made.scheduler.submit(second)
        await trio.to_thread.run_sync(engine.running.wait)
        made.scheduler.end(first, "cancelled")
        engine.seconds = 0.0
    assert made.ends == {"first": "cancelled", "second": "length"}
    assert engine.ended == {"first": 1}


async def test_requests_that_end_at_any_moment_end_no_step_of_others() -> None:
    engine, chance = Engine(0.0002), random.Random(11)
    ended: set[str] = set()
    async with desk(engine, queue=1000) as made:

        def on_token(job: Job) -> bool:
            if job.name.startswith("guest") and chance.random() < 0.3:
                ended.add(job.name)
                return made.leave(job)
            return True

        made.on_token = on_token
        for number in range(3):
            made.scheduler.submit(Tokens(f"host {number}", count=300))
        for number in range(150):
            guest = Tokens(f"guest {number}", count=50)
            made.scheduler.submit(guest)
            await trio.sleep(chance.random() * 0.003)
            if chance.random() < 0.5 and not guest.ended:
                ended.add(guest.name)
                made.scheduler.end(guest, "cancelled")
    assert {name: made.ends[name] for name in made.ends if name.startswith("host")} == {
        f"host {number}": "length" for number in range(3)
    }
    assert len(ended) > 50 and set(engine.ended) <= ended


def test_an_interrupt_is_its_steps_alone() -> None:
    flag: list[bool] = []
    early, late, never = Interrupt(), Interrupt(), Interrupt()
    early.ask()
    assert not early.begin(flag.append) and flag == []
    assert late.begin(flag.append)
    late.ask()
    late.over()
    assert flag == [True, False]  # taken back before another step can begin
    late.ask()
    assert never.begin(flag.append)
    never.over()
    assert flag == [True, False]


def waiting(made: Desk) -> list[str]:
    return [job.name for job in made.scheduler.jobs()]


async def test_the_newest_of_whoever_has_most_waiting_gives_way() -> None:
    made = Desk(Engine(), queue=4)  # without an engine: all wait
    for number in range(4):
        made.scheduler.submit(Tokens(f"many {number}", "many"))
    with pytest.raises(Busy, match="4 requests"):
        made.scheduler.submit(Tokens("many 4", "many"))
    made.scheduler.submit(Tokens("few 0", "few"))
    made.scheduler.submit(Tokens("few 1", "few"))
    with pytest.raises(Busy):  # it has as many as the other now
        made.scheduler.submit(Tokens("few 2", "few"))
    assert waiting(made) == ["many 0", "many 1", "few 0", "few 1"]
    assert made.ends == {"many 3": "busy", "many 2": "busy"}


async def test_bytes_that_wait_give_way_alike() -> None:
    made = Desk(Engine(), queue=100, queue_bytes=1000)
    for number in range(3):
        made.scheduler.submit(Tokens(f"big {number}", "big", nbytes=300))
    with pytest.raises(Busy, match="900 bytes"):
        made.scheduler.submit(Tokens("big 3", "big", nbytes=300))
    for number in range(5):
        made.scheduler.submit(Tokens(f"small {number}", "small", nbytes=50))
    assert waiting(made) == ["big 0", "big 1", *(f"small {number}" for number in range(5))]
    assert made.ends == {"big 2": "busy"}


async def test_a_client_with_many_connections_gets_one_clients_share() -> None:
    order: list[str] = []
    async with desk(Engine(), sessions=2) as made:
        made.on_token = lambda job: not order.append(job.name)  # type: ignore[func-returns-value]
        for number in range(3):
            made.scheduler.submit(Tokens(f"many {number}", "many", count=1))
        made.scheduler.submit(Tokens("one", "one", count=1))
    assert order == ["many 0", "one", "many 1", "many 2"]
