"""The scheduler alone, on an engine that only counts rows: what ends, what gives way, who is next."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hearthd.daemon import protocol, scheduler
from hearthd.daemon.generation import Job
from hearthd.daemon.model.turn import ContextFull, Interrupted, Outcome, Part, StepFailed
from hearthd.daemon.scheduler import Busy, Scheduler


class Session:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.length = 0
        engine.open += 1

    def close(self) -> None:
        self.engine.open -= 1


class Engine:
    """Steps that take `seconds`. `fail` says what the rows of a token come to; `closed` is raised by every step."""

    batch = 8
    context = 1000
    n_vocab = 16

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.steps: list[list[int]] = []  # the parts' last tokens
        self.fail: dict[int, Exception] = {}
        self.open = self.trimmed = 0
        self.running = threading.Event()
        self.go_on = threading.Event()
        self.closed = False

    def new_session(self) -> Session:
        return Session(self)

    def trim(self) -> None:
        self.trimmed += 1

    def step(self, parts: list[Part]) -> list[Outcome]:
        self.steps.append([int(part.tokens[-1]) for part in parts])
        self.running.set()
        self.go_on.wait(self.seconds)
        self.running.clear()
        if self.closed:
            raise Interrupted("the engine closes")
        outcomes = []
        for part in parts:
            error = self.fail.get(int(part.tokens[-1]))
            if error is None:
                part.session.length += len(part.tokens)
            outcomes.append(Outcome(error=error))
        return outcomes

    @property
    def rows(self) -> Counter[int]:
        """Steps in which a token was the last of a part."""
        return Counter(token for step in self.steps for token in step)


class Tokens(Job):
    """So many tokens, one a step, all of them `token`."""

    op = "generate"

    def __init__(self, name: str, owner: str = "", count: int = 4, nbytes: int = 0, token: int = 5) -> None:
        super().__init__(name, name, name.encode(), [token], owner)
        self.count, self.extra, self.made = count, nbytes, 0

    @property
    def nbytes(self) -> int:
        return self.extra

    @property
    def generated(self) -> int:
        return self.made

    def rows(self, room: int) -> Part | None:
        assert self.session is not None
        return Part(self.session, self.prompt, "last")

    def take(self, outcome: Outcome) -> list[protocol.Reply]:
        self.computed += 1
        self.made += 1
        self.ended = "" if self.made < self.count else "length"
        return [protocol.TokenEvent(id=self.id, token=self.made)]

    def finish(self, reason: str) -> tuple[protocol.Reply, bytes | None]:
        return protocol.Done(id=self.id, reason=reason), None


class Desk:
    """A scheduler with an engine, and what was delivered: the last word on each request."""

    def __init__(self, engine: Engine, **limits: int) -> None:
        self.engine = engine
        self.ends: dict[str, str] = {}
        self.tokens: Counter[str] = Counter()
        self.on_token: Callable[[Job], bool] = lambda job: True
        self.scheduler = Scheduler(self._deliver, **{"sessions": 4, "queue": 64} | limits)

    def _deliver(self, job: Job, reply: protocol.Reply, body: Any) -> bool:
        if isinstance(reply, protocol.TokenEvent):
            self.tokens[job.name] += 1
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
    assert engine.open == 0


async def test_one_step_carries_everyone_in_progress() -> None:
    engine = Engine(0.02)
    async with desk(engine, sessions=3) as made:
        for token, count in ((1, 1), (2, 5), (3, 3), (4, 2)):
            made.scheduler.submit(Tokens(f"job {token}", token=token, count=count))
    assert engine.steps == [[1, 2, 3], [2, 3, 4], [2, 3, 4], [2], [2]]
    assert set(made.ends.values()) == {"length"} and len(made.ends) == 4
    assert (made.scheduler.rates.steps, made.scheduler.rates.generated_tokens) == (5, 11)


async def test_who_is_found_away_while_its_token_is_delivered_costs_no_other_a_token() -> None:
    engine = Engine(0.001)
    async with desk(engine) as made:
        made.on_token = lambda job: made.leave(job) if job.name == "leaves" else True
        made.scheduler.submit(Tokens("leaves", count=100, token=1))
        made.scheduler.submit(Tokens("stays", count=5, token=2))
    assert made.ends == {"stays": "length"} and made.tokens == {"leaves": 1, "stays": 5}
    assert engine.rows == {1: 1, 2: 5}


async def test_who_is_cancelled_in_mid_step_loses_its_own_rows_and_nobody_elses() -> None:
    engine = Engine(60.0)
    async with desk(engine) as made:
        first, second = Tokens("first", token=1, count=9), Tokens("second", token=2, count=3)
        made.scheduler.submit(first)
        made.scheduler.submit(second)
        await trio.to_thread.run_sync(engine.running.wait)
        assert made.scheduler.running
        made.scheduler.end(first, "cancelled")
        await trio.testing.wait_all_tasks_blocked()
        assert made.ends == {} and made.scheduler.jobs() == [first, second]  # the step has to return
        engine.go_on.set()
    assert made.ends == {"first": "cancelled", "second": "length"}
    assert engine.rows == {1: 1, 2: 3} and made.tokens == {"second": 3}


async def test_each_has_an_outcome_of_its_own() -> None:
    engine = Engine()
    engine.fail = {1: StepFailed("span 7 could not be read", 7), 2: ContextFull("9 tokens"), 3: ValueError("odd")}
    async with desk(engine) as made:
        for token in range(5):
            made.scheduler.submit(Tokens(f"job {token}", token=token, count=2))
    reasons = ["length", "failed", "too-long", "failed", "length"]
    assert made.ends == {f"job {token}": reason for token, reason in enumerate(reasons)}
    assert engine.steps[1] == [0, 4]


async def test_a_full_context_ends_an_answer_that_has_begun() -> None:
    engine = Engine()
    async with desk(engine) as made:

        def on_token(job: Job) -> bool:
            engine.fail[1] = ContextFull("no room")
            return True

        made.on_token = on_token
        made.scheduler.submit(Tokens("full", token=1, count=9))
    assert made.ends == {"full": "context"} and made.tokens == {"full": 1}


async def test_a_closing_engine_ends_all_that_its_step_carries() -> None:
    engine = Engine(60.0)
    async with desk(engine) as made:
        made.scheduler.submit(Tokens("one", token=1))
        made.scheduler.submit(Tokens("two", token=2))
        await trio.to_thread.run_sync(engine.running.wait)
        engine.closed = True
        engine.go_on.set()
    assert made.ends == {"one": "stopping", "two": "stopping"}


async def test_no_session_is_one_requests_failure() -> None:
    class Short(Engine):
        def new_session(self) -> Session:
            if self.open == 1:
                raise MemoryError("no state")
            return super().new_session()

    async with desk(Short(), sessions=2) as made:
        for name in ("one", "two", "three"):
            made.scheduler.submit(Tokens(name))
    assert made.ends == {"one": "length", "two": "failed", "three": "failed"}


async def test_buffers_are_given_back_once_after_a_while_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "TRIM_SECONDS", 0.02)
    engine = Engine()
    told: list[tuple[int, int]] = []
    async with desk(engine) as made:
        made.scheduler.on_step = lambda prompts, answers: told.append((prompts, answers))
        made.scheduler.submit(Tokens("one", count=3))
        await made.scheduler.until_idle()
        while not engine.trimmed:  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert told == [(1, 0), (0, 1), (0, 1), (0, 0)]
        await trio.sleep(0.1)
        assert engine.trimmed == 1


async def test_requests_that_end_at_any_moment_cost_no_other_a_token() -> None:
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
    hosts = [f"host {number}" for number in range(3)]
    assert [(made.ends[name], made.tokens[name]) for name in hosts] == [("length", 300)] * 3
    assert len(ended) > 50 and set(made.ends) | ended == {f"guest {number}" for number in range(150)} | set(hosts)


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
