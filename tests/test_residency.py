"""Residency's policy on files of our own: what every combination of options does, and that shown is what is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trio
from hearthd.cyext.mapping import Mapping
from hearthd.cyext.populate_queue import SWEEP, PopulateQueue
from hearthd.cyext.spans import FAILED, READY, Spans
from hearthd.daemon import protocol
from hearthd.daemon.residency import Residency
from hearthd.daemon.residency.budget import Budgeter
from hearthd.daemon.residency.heat import Heat

from .pages import PAGE, cached_pages, cold_file

MIB = 1 << 20
LAYERS, EXPERTS, EXPERT_BYTES = 4, 8, 256 << 10


class Engine:
    def __init__(self) -> None:
        self.expert_counts = np.zeros((LAYERS, EXPERTS), dtype=np.uint64)
        self.layer = -1

    def memory_taken(self) -> int:
        return 0


class House:
    """Per layer one dense span of 1 MiB and 8 experts of 256 KiB: 4 MiB dense, 8 MiB of experts."""

    def __init__(self, directory: Path, *, budget: int = 1 << 40, **options: Any) -> None:
        self.path = cold_file(directory / "model", LAYERS * 3 * MIB)
        layer = np.repeat(np.arange(LAYERS), 1 + EXPERTS).astype(np.int32)
        expert = np.tile(np.arange(-1, EXPERTS), LAYERS).astype(np.int32)
        nbytes = np.where(expert < 0, MIB, EXPERT_BYTES).astype(np.uint64)
        n = len(layer)
        self.table = SimpleNamespace(
            file=np.zeros(n, np.int32), offset=np.concatenate(([0], np.cumsum(nbytes)[:-1])).astype(np.uint64),
            nbytes=nbytes, layer=layer, expert=expert, part=np.where(expert < 0, -1, 0), tensor=layer,
            names=[f"t{i}" for i in range(LAYERS)], n_expert=EXPERTS, rows_only=np.zeros(0, np.int32),
            describe=lambda span: f"span {span}", failure=lambda span, found, paths: f"span {span}: {found}",
        )  # fmt: skip
        self.model = SimpleNamespace(
            identity="feed", hyper=lambda key, default=None: {"expert_count": EXPERTS, "expert_used_count": 2}.get(key)
        )
        self.options = SimpleNamespace(**{
            "experts": "defer", "warm": "auto", "memory_budget": f"{budget}B",
            "state_directory": str(directory / "state"), "short_memory": "mapping",
        } | options)  # fmt: skip
        self.mapping = Mapping([self.path])
        self.spans = Spans(self.mapping, self.table.file, self.table.offset, nbytes, layer)
        self.queue = PopulateQueue(self.spans, workers=2)
        self.engine = Engine()
        fake = machine(directory, available=1 << 30)
        self.events: list[protocol.EventNow] = []
        self.residency = Residency(
            self.model, self.table, self.mapping, self.spans, self.queue, self.engine, self.options,
            Budgeter(self.options.memory_budget, proc=fake / "proc", cgroup=fake / "cgroup"),
        )  # fmt: skip
        self.residency.on_event = self.events.append

    def oracle(self, mask: np.ndarray) -> int:
        """Bytes of the spans in a mask that an independent mincore finds cached."""
        truth = np.repeat(cached_pages(self.path), PAGE)
        return sum(int(truth[int(o) : int(o + b)].sum()) for o, b in
                   zip(self.table.offset[mask], self.table.nbytes[mask], strict=True))  # fmt: skip

    @property
    def experts_here(self) -> int:
        return self.oracle(self.table.expert >= 0)

    async def until(self, condition: Any) -> None:
        with trio.fail_after(10):
            while not condition():  # noqa: ASYNC110 (the kernel tells no events)
                await trio.sleep(0.01)

    def close(self) -> None:
        self.queue.close()
        self.mapping.close()


def machine(directory: Path, *, total: int = 2 << 30, available: int = 1 << 30) -> Path:
    """A fake /proc and /sys/fs/cgroup without limits."""
    (directory / "proc" / "self").mkdir(parents=True, exist_ok=True)
    (directory / "cgroup").mkdir(exist_ok=True)
    (directory / "proc" / "meminfo").write_text(f"MemTotal: {total >> 10} kB\nMemAvailable: {available >> 10} kB\n")
    (directory / "proc" / "self" / "cgroup").write_text("")
    return directory


@pytest.fixture
def houses(tmp_path: Path) -> Iterator[Any]:
    made: list[House] = []

    def make(**options: Any) -> House:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(House(directory, **options))
        if cached_pages(made[-1].path).any():
            pytest.skip("the file system of the temporary directory keeps dropped pages (tmpfs?)")
        return made[-1]

    yield make
    for house in made:
        house.close()


@pytest.mark.parametrize("warm", ["auto", "background", "before-ready", "off"])
@pytest.mark.parametrize("experts", ["defer", "eager"])
async def test_every_combination_of_options_means_what_it_says(houses: Any, experts: str, warm: str) -> None:
    house = houses(experts=experts, warm=warm)
    async with trio.open_nursery() as nursery:
        await nursery.start(house.residency.run)
        everything = experts == "eager" or warm != "off"
        await house.until(house.residency.warmed)
        await house.until(lambda: house.residency.state == ("warm" if everything else "serving-cold"))
        await house.until(lambda: house.residency.ledger.now.measured_at > 0)
        assert house.oracle(house.table.expert < 0) == LAYERS * MIB
        if everything:
            assert house.experts_here == LAYERS * 2 * MIB
        else:
            assert (house.spans.state[house.table.expert >= 0] != READY).all()
        nursery.cancel_scope.cancel()
    codes = {warning.code for warning in house.residency.warnings}
    assert ("eager-without-warm" in codes) == (experts == "eager" and warm == "off")


async def test_a_state_directory_that_cannot_be_is_told_at_the_start(houses: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    house = houses(warm="off", state_directory=str(tmp_path / "file" / "state"))
    async with trio.open_nursery() as nursery:
        await nursery.start(house.residency.run)
        nursery.cancel_scope.cancel()
    messages = [warning.message for warning in house.residency.warnings if warning.code == "heat"]
    assert messages == [f"heat cannot be saved in {tmp_path}/file/state: Not a directory"]
    assert [event.message for event in house.events if event.code == "heat"] == messages


async def test_states_and_start_line_are_told_as_they_come(houses: Any) -> None:
    house = houses()
    assert house.residency.state == "mapped"
    async with trio.open_nursery() as nursery:
        await nursery.start(house.residency.run)
        await house.until(lambda: house.residency.state == "warm")
        await house.until(lambda: house.residency.ledger.now.measured_at > 0)
        nursery.cancel_scope.cancel()
    states = [event.state for event in house.events if event.code == "state"]
    assert states[0] == "serving-cold" and states[-1] == "warm"
    line = house.residency.start_line()
    assert line.startswith("dense 4.00 MiB populated in ") and "warming in background (budget " in line
    progress = house.residency.status()["warm"]
    assert progress["percent"] == 100 and progress["ready_bytes"] == LAYERS * 3 * MIB and progress["rate"] > 0


async def test_what_is_shown_equals_an_independent_mincore(houses: Any) -> None:
    house = houses(warm="off")
    chosen = [1, 2, 3, 12, 20, 33]
    for cls in range(5):
        house.queue.set_cover(cls, 2.0)
    house.queue.submit(0, chosen)
    house.queue.drain(0, 5)
    fd = os.open(house.path, os.O_RDONLY)  # cached by somebody else: not mapped
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(fd, 2 * PAGE, 6 * MIB)
    os.close(fd)
    await trio.to_thread.run_sync(house.residency.ledger.refresh)
    now = house.residency.snapshot()
    for row in now.rows:
        mask = (house.table.expert < 0) == (row.role == "dense")
        assert row.mapped + row.cached == house.oracle(mask)
        assert row.mapped + row.cached + row.deferred + row.unknown == row.total
    assert [row.mapped for row in now.rows] == [0, 6 * EXPERT_BYTES] and now.rows[0].cached == 2 * PAGE
    assert now.experts == ["###00000", "00#00000", "0#000000", "00000#00"]


async def test_over_the_budget_the_coldest_go_first_and_dense_stays(houses: Any) -> None:
    house = houses(budget=6 * MIB, warm="off")
    house.engine.expert_counts[:] = np.arange(EXPERTS, 0, -1) ** 3
    async with trio.open_nursery() as nursery:
        await nursery.start(house.residency.run)
        await house.until(house.residency.warmed)
        for expert in range(EXPERTS):
            house.queue.submit(0, np.flatnonzero(house.table.expert == expert))
        house.queue.drain(0, 5)
        await house.until(lambda: house.residency.keeper.over(6 * MIB) <= 0 and house.residency.keeper.given_back_bytes)
        nursery.cancel_scope.cancel()
    ready = house.spans.state == READY
    assert ready[house.table.expert < 0].all() and ready[house.table.expert == 0].all()
    assert not ready[house.table.expert > 1].any()
    assert house.experts_here <= 2 * MIB


async def test_what_does_not_fit_is_warmed_by_heat_or_left_until_asked(houses: Any) -> None:
    house = houses(budget=6 * MIB)
    async with trio.open_nursery() as nursery:
        await nursery.start(house.residency.run)
        await house.until(house.residency.warmed)
        assert house.experts_here == 0 and "not known" in house.residency.warmer.scope
        house.engine.expert_counts[:, 5] = 1000
        house.engine.expert_counts[:, 2] = 900
        await house.until(lambda: "hottest" in house.residency.warmer.scope)
        await house.until(house.residency.warmed)
        nursery.cancel_scope.cancel()
    ready = np.flatnonzero(house.spans.state == READY)
    assert sorted(set(house.table.expert[ready].tolist())) == [-1, 2, 5]


@pytest.mark.parametrize("warm", ["background", "auto"])
async def test_percent_and_state_agree_where_memory_is_tight(houses: Any, warm: str) -> None:
    house = houses(budget=8 * MIB, warm=warm)
    seen: set[tuple[str, bool]] = set()

    def look() -> str:
        stats = house.residency.stats()
        assert stats["warm_bytes"] <= house.table.nbytes.sum()
        seen.add((stats["state"], stats["warm_percent"] == 100))
        return str(stats["state"])

    look()
    async with trio.open_nursery() as nursery:
        await nursery.start(house.residency.run)
        for turn in range(30):  # what is asked for takes the place of what was planned
            if look() == "warm" or warm == "auto":
                house.queue.submit(0, np.flatnonzero(house.table.expert == turn % EXPERTS))
            await trio.sleep(0.02)
        await house.until(lambda: look() == "warm")
        nursery.cancel_scope.cancel()
    progress = house.residency.status()["warm"]
    assert progress["seconds"] > progress["dense_seconds"] > 0
    assert {state for state, whole in seen if whole} == {"warm"} and ("warm", False) not in seen


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger measures ten times a second."""
    for name in ("REFRESH_SECONDS", "IDLE_REFRESH_SECONDS"):
        monkeypatch.setattr(f"hearthd.daemon.residency.house.{name}", 0.1)


async def test_pages_that_the_kernel_took_are_mapped_again_between_requests(houses: Any, often: None) -> None:
    house = houses()
    async with trio.open_nursery() as nursery:
        await nursery.start(house.residency.run)
        await house.until(lambda: house.residency.state == "warm")
        house.engine.layer = 0
        ledger, keeper = house.residency.ledger, house.residency.keeper
        for _ in range(2):  # whatever a look before the step has led to is over
            at = ledger.now.measured_at
            await house.until(partial(lambda at: ledger.now.measured_at > at, at))
        before = keeper.remapped_bytes  # the kernel may have moved pages just then
        house.mapping.evict(0, 4 * MIB, 2 * MIB)  # behind the queue's back
        await house.until(lambda: len(keeper.decayed()) > 0)
        at = ledger.now.measured_at
        await house.until(lambda: ledger.now.measured_at > at and len(keeper.decayed()) > 0)
        assert keeper.remapped_bytes == before  # a step is running
        house.engine.layer = -1
        house.residency.snapshot()  # somebody looks: the ledger does not take an idle daemon's time
        await house.until(lambda: house.experts_here == LAYERS * 2 * MIB and not len(house.residency.keeper.decayed()))
        nursery.cancel_scope.cancel()
    assert house.residency.keeper.remapped_bytes >= 2 * MIB


async def test_warm_defer_and_pin_by_selection(houses: Any) -> None:
    house = houses(warm="off")
    async with trio.open_nursery() as nursery:
        await nursery.start(house.residency.run)
        await house.until(house.residency.warmed)
        steps: list[tuple[int, int]] = []
        result = await house.residency.orders.warm(
            protocol.Selection(layers=[1, 2], experts=[3]), wait=True, progress=lambda a, b, _: steps.append((a, b))
        )
        assert (result["spans"], result["failed"]) == (2, 0) and steps[-1] == (2 * EXPERT_BYTES, 2 * EXPERT_BYTES)
        await house.residency.orders.pin(protocol.Selection(layers=[1], experts=[3]))
        freed = await house.residency.orders.defer(protocol.Selection())
        nursery.cancel_scope.cancel()
    ready = np.flatnonzero((house.spans.state == READY) & (house.table.expert >= 0))
    assert house.table.layer[ready].tolist() == [1] and freed["freed_bytes"] >= EXPERT_BYTES


async def test_waiting_for_what_is_not_to_come_any_more_ends(houses: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    house = houses(warm="off")
    residency, results = house.residency, []
    chosen = np.flatnonzero((house.table.expert == 3) & np.isin(house.table.layer, (1, 2))).astype(np.int32)

    async def warm() -> None:
        result = await residency.orders.warm(protocol.Selection(layers=[1, 2], experts=[3]), wait=True)
        results.append([result[name] for name in ("queued", "ready", "failed", "deferred")])

    async with trio.open_nursery() as nursery:
        await nursery.start(residency.run)
        await house.until(residency.warmed)
        house.queue.pause((SWEEP,))
        async with trio.open_nursery() as warming:
            warming.start_soon(warm)
            await house.until(lambda: residency.state == "warming")
            await residency.orders.defer(protocol.Selection(layers=[2]))
            house.queue.resume()
            await house.until(lambda: results)
        await residency.orders.defer(protocol.Selection())
        # Ready and gone again between two looks: memory was wanted for others.
        monkeypatch.setattr("hearthd.daemon.residency.orders.POLL_SECONDS", 2.0)
        house.queue.pause((SWEEP,))
        async with trio.open_nursery() as warming:
            warming.start_soon(warm)
            await house.until(lambda: house.queue.stats()["sweep"]["waiting"] == len(chosen))  # the first look is over
            house.queue.resume()
            await house.until(lambda: np.all(house.spans.state[chosen] == READY))
            residency.keeper.give_back(chosen[:1])
            await house.until(lambda: len(results) == 2)
        nursery.cancel_scope.cancel()
    assert results == [[2, 1, 0, 1], [2, 1, 0, 1]]


@pytest.mark.parametrize(
    "options", [{}, {"experts": "eager"}, {"warm": "background", "budget": 10 * MIB}, {"warm": "off"}]
)
async def test_what_an_operator_deferred_is_not_called_warm(houses: Any, options: dict[str, Any]) -> None:
    house = houses(**options)
    residency = house.residency
    async with trio.open_nursery() as nursery:
        await nursery.start(residency.run)
        await house.until(lambda: residency.state == ("serving-cold" if options.get("warm") == "off" else "warm"))
        before = len(house.events)
        await residency.orders.defer(protocol.Selection())
        for _ in range(20):  # at once, and from then on
            stats = protocol.Stats(**residency.stats())
            assert stats.state == residency.state == "serving-cold" and stats.warm_percent < 100
            await trio.sleep(0.01)
        if options.get("warm") == "off":
            assert stats.state_line() == "serving-cold"
        else:
            told = [event for event in house.events[before:] if event.code == "state"]
            assert [event.state for event in told] == ["serving-cold"] and stats.state_note in told[0].message
            assert stats.state_note.endswith("MiB deferred by order")
            assert stats.state_line() == f"serving-cold {int(stats.warm_percent)} %: {stats.state_note}"
        assert (house.spans.state[house.table.expert >= 0] != READY).all()
        half = EXPERTS // 2
        for select in (protocol.Selection(experts=range(half)), protocol.Selection(experts=range(half, EXPERTS))):
            assert residency.state == "serving-cold"
            house.queue.pause((SWEEP,))
            async with trio.open_nursery() as warming:
                warming.start_soon(partial(residency.orders.warm, select, wait=True))
                await house.until(lambda: residency.state == "warming")
                house.queue.resume()
        assert residency.state == "warm" and residency.stats()["state_note"] == ""
        if "budget" not in options:
            assert residency.stats()["warm_percent"] == 100
        states = [event.state for event in house.events[before:] if event.code == "state"]
        assert states[-4:] == ["warming", "serving-cold", "warming", "warm"]
        nursery.cancel_scope.cancel()


async def test_deferred_dense_spans_stay_away_until_they_are_asked_for(houses: Any) -> None:
    house = houses()
    dense = house.table.expert < 0
    async with trio.open_nursery() as nursery:
        await nursery.start(house.residency.run)
        await house.until(lambda: house.residency.state == "warm")
        await house.residency.orders.defer(protocol.Selection(dense=True))
        assert house.residency.state == "serving-cold" and house.residency.stats()["state_note"].startswith("4.00 MiB")
        assert (house.spans.state[dense] != READY).all() and (house.spans.state[~dense] == READY).all()
        house.queue.submit(0, np.flatnonzero(dense))  # a request
        await house.until(lambda: house.residency.state == "warm")
        nursery.cancel_scope.cancel()
    assert house.residency.stats()["state_note"] == ""


async def test_what_cannot_be_read_is_named_and_trying_again_changes_no_state(
    houses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hearthd.daemon.residency.unreadable.FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr("hearthd.daemon.residency.house.IDLE_TICK_SECONDS", 0.1)
    house = houses()
    residency, queue = house.residency, house.queue
    whole, lost = house.path.stat().st_size, 2 * EXPERT_BYTES
    os.truncate(house.path, whole - lost)
    seen: set[Any] = set()
    async with trio.open_nursery() as nursery:
        await nursery.start(residency.run)
        await house.until(lambda: residency.state == "warm")
        events = len(house.events)

        def look() -> int:
            stats = protocol.Stats(**residency.stats())
            seen.add((stats.state_line(), residency.warmed(), residency.status()["warm"]["failed_bytes"]))
            return int(queue.stats()["sweep"]["failed"])

        for more in (0, 2, 4, 6):  # two spans each time
            await house.until(lambda: look() >= more + 2)  # noqa: B023 (called at once)
        assert seen == {("warm 95 %: 512 KiB unreadable (No data available)", True, lost)}
        assert [event.code for event in house.events if event.code == "unreadable"] == ["unreadable"]
        assert [event.code for event in house.events[events:] if event.code == "state"] == []
        assert [warning.code for warning in residency.warnings].count("unreadable") == 1
        os.truncate(house.path, whole)
        assert (await residency.orders.warm(protocol.Selection(layers=[LAYERS - 1]), wait=True))["failed"] == 0
        assert residency.stats()["state_note"] == "" and residency.stats()["warm_percent"] == 100
        assert [event.code for event in house.events[events:]].count("readable") == 1
        assert "unreadable" not in [warning.code for warning in residency.warnings]
        nursery.cancel_scope.cancel()


async def test_what_the_kernel_took_and_cannot_be_read_again_is_unreadable(houses: Any, often: None) -> None:
    house = houses()
    async with trio.open_nursery() as nursery:
        await nursery.start(house.residency.run)
        await house.until(lambda: house.residency.state == "warm")
        os.truncate(house.path, house.path.stat().st_size - EXPERT_BYTES)
        house.residency.snapshot()  # somebody looks
        await house.until(lambda: house.residency.stats()["state_note"].startswith("256 KiB unreadable"))
        await house.until(lambda: house.residency.state == "warm")
        nursery.cancel_scope.cancel()
    assert [event.code for event in house.events].count("unreadable") == 1
    assert (house.spans.state == READY).sum() == len(house.table.nbytes) - 1


async def test_a_new_plan_is_no_reason_to_read_the_unreadable_again(houses: Any) -> None:
    house = houses()
    os.truncate(house.path, house.path.stat().st_size - EXPERT_BYTES)
    async with trio.open_nursery() as nursery:
        await nursery.start(house.residency.run)
        await house.until(lambda: house.residency.state == "warm")
        for _ in range(5):
            house.residency.warmer.plan(1 << 40)
            assert house.queue.drain(SWEEP, 5)
        nursery.cancel_scope.cancel()
    assert house.queue.stats()["sweep"]["failed"] == 1 and house.residency.state == "warm"


def test_pauses_between_tries_grow_to_an_hour(houses: Any) -> None:
    house = houses()
    known = house.residency.unreadable
    state = np.array(house.spans.state)
    state[[3, 7]] = FAILED
    assert [code for code, _ in known.look(state, 100.0)] == ["unreadable"]
    wanted = np.arange(len(state)) != 7
    tried = [now for now in range(100, 100 + 4 * 3600) if known.due(wanted, float(now)).tolist() == [3]]
    assert tried[:4] == [110, 130, 170, 250] and max(np.diff(tried)) == 3600 and len(tried) == 11
    state[3] = READY
    assert known.look(state, 0.0) == [("readable", "span 3 can be read again")] and known.known.sum() == 1


async def test_the_window_goes_with_a_prompt_s_rows_and_the_sweep_waits(houses: Any) -> None:
    house = houses(budget=11 * MIB)
    house.residency.begin()
    await house.until(house.residency.warmer.dense_done)
    house.residency.step_begins(512, 0)
    house.queue.progress(0)
    await house.until(house.queue.idle)
    chosen = house.table.expert >= 0
    experts_of = [house.spans.state[(house.table.layer == layer) & chosen] for layer in range(LAYERS)]
    assert [bool((state == READY).all()) for state in experts_of] == [True, True, True, False]
    house.residency.step_begins(0, 0)


def test_heat_decays_orders_and_says_when_it_is_no_use() -> None:
    heat = Heat(1, 4, 2, half_life=100)
    assert heat.update(np.array([[60, 20, 0, 0]], dtype=np.uint64)) == 40
    assert heat.verdict()[0]
    assert heat.effective()[0] == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
    heat.update(np.array([[60, 20, 200, 0]], dtype=np.uint64))
    assert heat.counts[0].tolist() == [30, 10, 200, 0]
    assert heat.update(np.array([[60, 20, 200, 0]], dtype=np.uint64)) == 0
    even = Heat(1, 4, 2)
    assert even.verdict()[0] is False
    even.update(np.full((1, 4), 100, dtype=np.uint64))
    used, reason = even.verdict()
    assert not used and "uniform" in reason and np.allclose(even.shares(), 0.5)


def test_heat_on_disk_is_whole_or_not_there_and_ages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heat = Heat(2, 4, 2)
    heat.update(np.arange(8, dtype=np.uint64).reshape(2, 4) * np.uint64(100))
    path = tmp_path / "state" / "heat"
    heat.save(path, "one")

    def torn(*_: Any) -> None:
        raise OSError("killed here")

    monkeypatch.setattr(os, "replace", torn)
    heat.counts += 1000
    with pytest.raises(OSError):
        heat.save(path, "one")
    monkeypatch.undo()
    assert os.listdir(path.parent) == ["heat"]
    later = os.stat(path).st_mtime + 14 * 86400
    monkeypatch.setattr("time.time", lambda: later)
    fresh = Heat(2, 4, 2)
    assert fresh.load(path, "one") == ""
    assert np.allclose(fresh.counts, np.arange(8).reshape(2, 4) * 50, rtol=1e-4)
    assert "another model" in Heat(2, 4, 2).load(path, "two")
    assert "size" in Heat(2, 5, 2).load(path, "one")
    path.write_bytes(path.read_bytes()[:-3])
    assert "size" in Heat(2, 4, 2).load(path, "one")
    path.write_bytes(b"\xff\xfe rubbish")
    assert "cannot be read" in Heat(2, 4, 2).load(path, "one")


async def test_heat_is_saved_when_the_run_ends_and_taken_up_by_the_next(houses: Any, tmp_path: Path) -> None:
    house = houses(state_directory=str(tmp_path / "s"))
    async with trio.open_nursery() as nursery:
        await nursery.start(house.residency.run)
        house.engine.expert_counts[:, 1] = 500
        await house.until(lambda: house.residency.heat.tokens() > 0)
        nursery.cancel_scope.cancel()
    again = houses(state_directory=str(tmp_path / "s"))
    async with trio.open_nursery() as nursery:
        await nursery.start(again.residency.run)
        nursery.cancel_scope.cancel()
    assert again.residency.warmer.by_heat()[:LAYERS].tolist() == np.flatnonzero(again.table.expert == 1).tolist()
    assert again.residency.status()["heat"]["used"]


def test_the_audit_names_what_does_not_match(houses: Any) -> None:
    house = houses(experts="eager", budget=5 * MIB)
    assert {w.code for w in house.residency.warnings} == {"eager-over-budget"}
    house = houses(budget=2 * MIB)
    assert {w.code for w in house.residency.warnings} == {"budget-below-dense"}


def test_heat_compares_layers_that_saw_different_numbers_of_tokens() -> None:
    """The last layer's experts see only what wants logits; of a layer that saw nothing, nothing is known."""
    heat = Heat(3, 4, 2)
    heat.update(np.array([[100, 100, 0, 0], [2, 0, 0, 2], [0, 0, 0, 0]], dtype=np.uint64))
    assert heat.shares().tolist() == [[1, 1, 0, 0], [1, 0, 0, 1], [0.5] * 4]
