"""Threads follow what a daemon may use while it runs; answers are the same bits with any number of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from hearthd.cyext.teams import Teams
from hearthd.daemon import processors, topology
from hearthd.daemon.client import Client
from hearthd.daemon.processors import Processors
from hearthd.daemon.topology import Node, Topology

from .opened import Opened, stepped


def machine(cores: int, quota: float | None = None, nodes: int = 1) -> Topology:
    each = cores // nodes
    return Topology(tuple(Node(k, tuple((k * each + i,) for i in range(each)), 1 << 30) for k in range(nodes)), quota)


def test_threads_are_as_many_as_a_quota_runs_without_a_pause() -> None:
    for quota, threads in ((0.5, 1), (1.0, 1), (1.5, 1), (1.99, 1), (2.0, 2), (7.9, 7), (9.0, 8), (None, 8)):
        made = Processors(0, machine(8, quota))
        assert made.threads == threads and made.warnings == []
        assert bool(made.reason) == (threads < 8)
    (warning,) = Processors(2, machine(8, 1.5)).warnings
    assert warning.code == "threads-over" and "1.5 processors" in warning.message
    (warning,) = Processors(9, machine(8)).warnings
    assert warning.code == "threads-over" and "on 8 processors" in warning.message
    assert Processors(1, machine(8, 0.5)).warnings == []  # fewer than one there cannot be


def test_teams_keep_their_nodes_and_at_least_a_thread() -> None:
    made = Processors(0, machine(8, nodes=2))
    made.divide([[0, 1, 2, 3], [4, 5, 6, 7]], [0, 1])
    assert made.fit() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for quota, teams in ((3.5, [[0, 1], [4]]), (1.0, [[0], [4]])):
        made.machine = machine(8, quota, nodes=2)
        made.threads = made.machine.threads
        assert made.fit() == teams
    made.machine = Topology((Node(0, ((0,),), 1 << 30), Node(1, (), 1 << 30, barred=True)))
    made.threads = made.machine.threads
    assert made.fit() == [[0], [-1]]  # a node whose processors were taken away: its part is computed elsewhere
    assert topology.deal(2, [6, 2, 1], least=1) == [1, 1, 1]


async def test_a_change_is_followed_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = machine(8), 0

    def glance() -> tuple[int, float | None]:
        nonlocal looks
        looks += 1
        return now.cores, now.quota

    monkeypatch.setattr(processors, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(topology, "read", lambda: now)
    monkeypatch.setattr(topology, "glance", glance)
    used: list[list[list[int]]] = []
    said: list[tuple[str, str, str]] = []

    class Engine:
        use_processors = used.append

    async def after(changed: Topology) -> None:
        nonlocal now
        now, before = changed, looks
        while looks < before + 3:  # noqa: ASYNC110 - the last but one has been acted upon
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        free, asked = Processors(0, now), Processors(4, now)
        nursery.start_soon(free.follow, Engine, lambda *event: said.append(event))
        await after(now)
        assert used == [] and said == []
        await after(machine(8, 2.5))
        assert used == [[[0, 1]]] and free.threads == 2
        assert said == [("threads", "2 threads from now on: 8 cores may be used, a quota of 2.5 processors", "info")]
        await after(machine(3, 2.5))  # a cpuset; threads enough are left
        assert len(used) == 1 and len(said) == 1
        await after(machine(8))
        assert used[-1] == [[*range(8)]] and said[-1][1].startswith("8 threads from now on")
        nursery.cancel_scope.cancel()
    said.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked.follow, Engine, lambda *event: said.append(event))
        await after(machine(8, 1.5))
        assert asked.threads == 4 and [event[0] for event in said] == ["threads-over"]  # as asked, and warned of
        nursery.cancel_scope.cancel()


def test_answers_are_the_same_bits_while_threads_come_and_go(models_dir: Path) -> None:
    tokens = np.arange(3, 35, dtype=np.int32)

    def logits(engine: Any) -> np.ndarray:
        session = engine.new_session()
        parts = [stepped(engine, (session, tokens[i : i + 4], "all"))[0] for i in range(0, len(tokens), 4)]
        session.close()
        return np.concatenate(parts)

    with Opened(models_dir / "tiny" / "moe-q4_0.gguf", threads=3) as engine:
        expected = logits(engine)
        over = threading.Event()

        def change() -> None:
            count = 0
            while not over.is_set():
                count += 1
                engine.use_processors([[-1] * (1 + count % 5)])

        changing = threading.Thread(target=change)
        changing.start()
        try:
            for _ in range(20):
                assert np.array_equal(logits(engine), expected)
        finally:
            over.set()
            changing.join()
        assert engine.program.team_rows(64) == [(0, 64)]
        with pytest.raises(ValueError, match="shares"):
            engine.program.set_teams(Teams([[-1]] * 2))


def test_who_reads_which_rows_does_not_change_with_threads() -> None:
    before, after = Teams([[-1] * 3, [-1]]), Teams([[-1], [-1] * 2], shares=[3, 1])
    assert before.shares == after.shares == [3, 1]
    with pytest.raises(ValueError):
        Teams([[-1], [-1]], shares=[1, 0])


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor: nothing to take away")
def test_a_daemon_follows_its_affinity(start_daemon: Callable[..., Any]) -> None:
    daemon = start_daemon("--demo")
    with Client(daemon.endpoint) as hearth:
        many = hearth.status().options["threads"]
        usual = [event.token for event in hearth.generate("Once upon a time", max_tokens=16, temperature=0)]
        allowed = os.sched_getaffinity(daemon.process.pid)
        os.sched_setaffinity(daemon.process.pid, {min(allowed)})
        for count, processes in ((1, {min(allowed)}), (many, allowed)):
            os.sched_setaffinity(daemon.process.pid, processes)
            until = time.monotonic() + 60
            while hearth.status().options["threads"] != count and time.monotonic() < until:
                time.sleep(0.1)
            assert hearth.status().options["threads"] == count
            again = [event.token for event in hearth.generate("Once upon a time", max_tokens=16, temperature=0)]
            assert again == usual
        told = [event.message for event in hearth.status().events if event.code == "threads"]
        assert [text.split()[0] for text in told] == ["1", str(many)] if many > 1 else []
