"""When memory is short or the daemon dies: limits that shrink are followed, SIGKILL leaves nothing insane behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from hearthd.daemon import client
from hearthd.daemon.residency.heat import Heat
from hearthd.daemon.residency.lookahead import Lookahead

from .test_residency import MIB, houses

__all__ = ["houses"]
RESERVE = 64 * MIB  # what the budget keeps free below a small limit


class Cgroup:
    """Files of a version 1 cgroup; its usage is what no file page is: the arena, and what is locked."""

    def __init__(self, directory: Path, house: Any) -> None:
        self.own, self.house = directory / "cgroup" / "memory" / "own", house
        self.own.mkdir(parents=True)
        (directory / "proc" / "self" / "cgroup").write_text("4:memory:/own\n")

    def limit(self, nbytes: int) -> None:
        ledger = self.house.residency.ledger
        locked = int(ledger.now.mapped[ledger.locked].sum())
        (self.own / "memory.usage_in_bytes").write_text(str(self.house.queue.arena()["taken"] + locked))
        (self.own / "memory.limit_in_bytes").write_text(str(nbytes))


async def test_a_limit_that_falls_step_by_step_is_followed_and_told(houses: Any) -> None:
    house = houses(budget=11 * MIB, short_memory="arena", warm="background")
    cgroup = Cgroup(house.path.parent, house)
    cgroup.limit(RESERVE + 11 * MIB)
    residency, queue = house.residency, house.queue
    async with trio.open_nursery() as nursery:
        await nursery.start(residency.run)
        if not residency.arena.in_use:
            pytest.skip(residency.arena.reason)
        await house.until(lambda: residency.state == "warm")
        assert residency.status()["arena"]["in_use"] == "arena" and queue.arena()["used"] > 0
        for budget in (9, 7, 5):
            cgroup.limit(RESERVE + budget * MIB)

            def fits(budget: int = budget) -> bool:
                cgroup.limit(RESERVE + budget * MIB)
                small = queue.arena()["taken"] <= (budget - 4) * 0.45 * MIB
                return bool(small and residency.keeper.over(budget * MIB) <= 0)

            await house.until(fits)
        assert (house.spans.state[house.table.expert < 0] == 2).all()  # dense spans stay
        told = [event.message for event in house.events if event.code == "budget" and event.level == "warning"]
        assert len(told) >= 2 and "memory.limit_in_bytes" in told[-1]
        assert residency.stats()["warm_percent"] <= 100
        nursery.cancel_scope.cancel()


def test_a_daemon_killed_while_it_warms_starts_again(start_daemon: Callable[..., Any]) -> None:
    daemon = start_daemon("--demo", "--memory-budget", "9M")
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()
    again = start_daemon("--demo", "--memory-budget", "9M")
    with client.Client(again.endpoint, timeout=60) as hearth:
        done = hearth.generate("Once upon a time", max_tokens=8, temperature=0).done
        assert done.reason == "length"
        status = hearth.status()
        assert status.arena["in_use"] in ("arena", "mapping") and status.arena["reason"]
        assert not status.lookahead["reading"] and status.lookahead["reason"]


def test_heat_that_is_killed_while_it_is_saved_is_whole_or_as_before(tmp_path: Path) -> None:
    path = tmp_path / "heat-x"
    program = (
        "import sys, numpy as np, pathlib\n"
        "from hearthd.daemon.residency.heat import Heat\n"
        "heat = Heat(48, 128, 8)\n"
        "print('go', flush=True)\n"
        "while True:\n"
        "    heat.update(heat.counts_seen() + np.uint64(1))\n"
        "    heat.save(pathlib.Path(sys.argv[1]), 'x')\n"
    )
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        with child, child.stdout:
            child.stdout.readline()
            while not path.exists():
                os.sched_yield()
            child.kill()
        heat = Heat(48, 128, 8)
        assert heat.load(path, "x") == "" and heat.tokens() > 0
    heat.save(path, "x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["heat-x"]


def test_few_even_choices_do_not_pass_for_uneven_ones() -> None:
    rng = np.random.default_rng(0)
    heat = Heat(4, 128, 8)
    even = np.zeros((4, 128), dtype=np.uint64)
    for layer in even:
        np.add.at(layer, np.concatenate([rng.choice(128, 8, replace=False) for _ in range(40)]), 1)
    heat.update(even)
    assert not heat.verdict()[0] and "near uniform" in heat.verdict()[1]


def test_lookahead_reads_only_where_it_pays_and_says_why() -> None:
    policy = Lookahead(expert_bytes=100 * MIB)
    counts = {"guessed": 0, "right": 0, "used": 0, "read_bytes": 0, "wasted_bytes": 0}

    def after(tokens: int, missed: int, **more: int) -> bool:
        for name, value in more.items():
            counts[name] = value
        policy.decide(counts, missed, tokens, fits=False, seconds=float(tokens))
        return policy.reading

    assert not after(1, 10 * MIB) and "too few" in policy.reason
    assert after(10, 200 * MIB, guessed=1000, right=860, used=1000) and "86%" in policy.reason
    assert not after(20, 400 * MIB, guessed=2000, right=1000) and "come true" in policy.reason
    assert not policy.decide(counts, 0, 20, fits=True, seconds=20.0) and "fits" in policy.reason
    rest = Lookahead(expert_bytes=100 * MIB)
    for tokens in (1, 50):
        rest.decide({**counts, "right": 1900}, 5 * MIB, tokens, fits=False, seconds=1.0)
    assert not rest.reading and "missing" in rest.reason


@pytest.mark.parametrize(
    ("with_it", "word"), [(0.05, "on: it saves 38%"), (0.1, "off: tried, a token took 125% of its time")]
)
def test_reading_on_guesses_stays_on_only_where_a_trial_shows_that_it_pays(with_it: float, word: str) -> None:
    policy = Lookahead(expert_bytes=100 * MIB)
    counts = {"guessed": 1000, "right": 900, "used": 1000, "read_bytes": 0, "wasted_bytes": 0}
    seconds, tried = 0.0, set()
    for tokens in range(1, 200):
        seconds += with_it if policy.reading else 0.08
        policy.decide(counts, tokens * 20 * MIB, tokens, fits=False, seconds=seconds)
        if "tried, with" in policy.reason:
            tried.add(policy.reading)
    assert tried == {True, False} and policy.reason.startswith(word)
    assert policy.reading == word.startswith("on")
