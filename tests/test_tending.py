"""A part of the daemon that fails is told and begins again; answers go on, and nothing else ends with it."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hearthd.daemon.client import Client
from hearthd.daemon.residency.budget import Budgeter
from hearthd.daemon.tending import CODE, STEADY_SECONDS, Tending

FAILING = str(Path(__file__).with_name("failing.py"))
HOUSE = "hearthd.daemon.residency"
INJECTED = {  # what fails whenever it is called: the task that is told to have failed
    f"{HOUSE}.ledger:Ledger.refresh=OSError": "measuring what is resident: injected",
    f"{HOUSE}.allowance:Allowance.read=MemoryError": "following the budget: MemoryError: injected",
    f"{HOUSE}.warmer:Warmer.brake=ValueError": "the clock of warming: ValueError: injected",
    f"{HOUSE}.warmer:Warmer.step_begins=KeyError": "residency beside a step: KeyError: 'injected'",
    f"{HOUSE}.house:Residency.status=ValueError": "residency's status: ValueError: injected",
    f"{HOUSE}.house:choose_arena=MemoryError": "the arena: MemoryError: injected",
    "hearthd.daemon.processors:Processors.fit=OSError": "following processors: injected",
    "hearthd.daemon.notify:Notifier.status=RuntimeError": "telling the service manager: RuntimeError: injected",
}


def test_answers_go_on_beside_everything_that_fails(start_daemon: Callable[..., Any]) -> None:
    # Heat's own reading and writing fail beside them; that is told in its own words.
    places = ",".join([*INJECTED, f"{HOUSE}.heat:Heat.load=RuntimeError", f"{HOUSE}.heat:Heat.save=RuntimeError"])
    daemon = start_daemon("--demo", wrap=[sys.executable, FAILING, places])
    with Client(daemon.endpoint, timeout=30) as hearth:
        until, missing = time.monotonic() + 60, set(INJECTED.values())
        while missing and time.monotonic() < until:
            assert len(list(hearth.generate("Once upon a time", max_tokens=8, temperature=0))) == 8
            status = hearth.status()
            missing -= {warning.message for warning in status.warnings if warning.code == CODE}
        assert missing == set()
        told = [event.message for event in status.events if event.code == CODE]
        assert told and len(told) == len(set(told))  # each once, however often it was tried
    assert daemon.process.poll() is None and "Traceback" in daemon.log
    assert daemon.stop() == 0


async def test_a_task_begins_again_after_growing_pauses_and_its_recovery_is_told(autojump_clock: Any) -> None:
    said: list[tuple[str, str, str]] = []
    began: list[float] = []
    tending = Tending(lambda *event: said.append(event))

    async def task() -> None:
        began.append(trio.current_time())
        if len(began) < 5:
            await trio.sleep(0.5)
            raise OSError(5, "Input/output error", "/proc/self/pagemap")
        if len(began) == 5:
            raise ExceptionGroup("wrapped", [ValueError("other")])
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tending.keep, "measuring", task, 4.0)
        await trio.sleep(20)
        assert [b - a for a, b in itertools.pairwise(began)] == pytest.approx([1.5, 2.5, 4.5, 4.5, 4.0])
        first = "measuring has failed and is tried again: /proc/self/pagemap: Input/output error"
        assert said == [(CODE, first, "warning"),
                        (CODE, "measuring has failed and is tried again: ValueError: other", "warning")]  # fmt: skip
        assert [warning.message for warning in tending.warnings] == ["measuring: ValueError: other"]
        tending.look()
        assert len(said) == 2  # not yet
        await trio.sleep(STEADY_SECONDS)
        tending.look()
        assert said[2:] == [(CODE, "measuring goes on again", "info")] and tending.warnings == []
        nursery.cancel_scope.cancel()


async def test_what_ends_a_task_from_outside_ends_it() -> None:
    tending = Tending(lambda *event: None)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tending.keep, "sleeping", trio.sleep_forever)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await tending.keep("over", trio.lowlevel.checkpoint)  # returns when the task does
    assert tending.warnings == []


def test_a_budget_is_not_nothing_where_memory_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 4194304 kB\nMemAvailable: 3145728 kB\n")
    budgeter = Budgeter("auto", proc=tmp_path, cgroup=tmp_path)
    before = budgeter.read()
    assert before.bytes > 1 << 31
    (tmp_path / "meminfo").unlink()
    assert budgeter.read().bytes == before.bytes
    assert Budgeter("auto", proc=tmp_path / "none", cgroup=tmp_path).read().bytes > 64 << 20
