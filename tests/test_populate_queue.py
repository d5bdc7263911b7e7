"""The queue's promises: order of classes, moving up, cancelling, merging, the window, failure, giving back."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hearthd.cyext.mapping import Mapping
from hearthd.cyext.populate_queue import CURSOR, DEMAND, LOOKAHEAD, ROUTED, SWEEP, PopulateQueue
from hearthd.cyext.spans import ABSENT, FAILED, READY, Spans

from .pages import PAGE, cached_pages, cold_file

KIB, MIB = 1 << 10, 1 << 20
SMALL = 256 * KIB


class House:
    """A file of 64 small spans in 8 layers and, behind them, one span of 9 MiB."""

    def __init__(self, path: Path, **options: object) -> None:
        self.path = cold_file(path, 64 * SMALL + 9 * MIB)
        self.mapping = Mapping([self.path])
        offset = [i * SMALL for i in range(64)] + [64 * SMALL]
        nbytes = [SMALL] * 64 + [9 * MIB]
        self.spans = Spans(self.mapping, [0] * 65, offset, nbytes, [i // 8 for i in range(64)] + [-1])
        self.queue = PopulateQueue(self.spans, **{"workers": 1, **options})  # type: ignore[arg-type]
        for cls in range(5):
            self.queue.set_cover(cls, 2.0)  # exact ranges, so that the cache shows what was read

    def cached(self) -> np.ndarray:
        return cached_pages(self.path)

    def state(self, *ids: int) -> list[int]:
        return self.spans.state[list(ids)].tolist()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "model")
    if house.cached().any():
        pytest.skip("the file system of the temporary directory keeps dropped pages (tmpfs?)")
    yield house
    house.queue.close()


def test_what_is_asked_for_becomes_ready_and_only_that(house: House) -> None:
    house.queue.submit(ROUTED, [3, 4, 64])
    assert all(house.queue.drain(cls, 5) for cls in range(5))
    assert house.state(3, 4, 64, 5) == [READY, READY, READY, ABSENT]
    assert np.flatnonzero(house.cached()).tolist() == [*range(192, 320), *range(4096, 4096 + 2304)]
    counts = house.queue.stats()["routed"]
    assert counts["read"] == 2 * SMALL + 9 * MIB and counts["spans"] == 3 and counts["failed"] == 0


def test_rows_of_a_table_come_without_the_blocks_around_them(house: House) -> None:
    house.queue.rows(64, 5 * PAGE // 2, [5, 100])
    arriving = time.monotonic() + 5
    while np.count_nonzero(house.cached()) < 6 and time.monotonic() < arriving:
        time.sleep(0.001)
    assert (np.flatnonzero(house.cached()) - 64 * SMALL // PAGE).tolist() == [12, 13, 14, 250, 251, 252]
    assert house.state(64) == [ABSENT]
    with pytest.raises(IndexError):
        house.queue.rows(64, PAGE, [9 * MIB // PAGE])


def test_cached_spans_cost_only_the_mapping(house: House) -> None:
    house.path.read_bytes()
    house.queue.submit(SWEEP, range(64))
    assert house.queue.drain(SWEEP, 5)
    counts = house.queue.stats()["sweep"]
    assert (counts["read"], counts["cached"]) == (0, 64 * SMALL)
    assert house.mapping.mapped(0, [0], [64 * SMALL])[0] == 64 * SMALL


def test_a_higher_class_takes_a_span_over_and_a_lower_one_leaves_it(house: House) -> None:
    house.queue.pause(range(5))
    house.queue.submit(SWEEP, range(8))
    house.queue.submit(ROUTED, [6])
    house.queue.submit(LOOKAHEAD, [6, 7])
    house.queue.submit(DEMAND, [7])
    assert house.queue.depths() == [1, 1, 0, 0, 6]
    house.queue.pause((SWEEP,))
    assert house.queue.drain(DEMAND, 5) and house.queue.drain(ROUTED, 5)
    assert house.state(*range(8)) == [ABSENT] * 6 + [READY] * 2
    house.queue.resume()
    assert house.queue.drain(SWEEP, 5)
    assert house.state(*range(8)) == [READY] * 8


def test_a_cancelled_class_is_forgotten_and_can_be_asked_again(house: House) -> None:
    house.queue.pause(range(5))
    house.queue.submit(LOOKAHEAD, range(8))
    house.queue.submit(ROUTED, [1])
    house.queue.cancel(LOOKAHEAD)
    assert house.queue.depths() == [0, 1, 0, 0, 0]
    house.queue.resume()
    assert house.queue.drain(ROUTED, 5)
    assert house.state(0, 1, 2) == [ABSENT, READY, ABSENT]
    house.queue.submit(LOOKAHEAD, [0])
    assert house.queue.drain(LOOKAHEAD, 5) and house.state(0) == [READY]


def test_the_window_moves_with_the_step(house: House) -> None:
    house.queue.set_plan([64, *range(63, -1, -1)], 1)
    drained = [READY] * 65
    while not house.queue.idle():
        house.queue.drain(CURSOR, 0.01)
    assert house.state(*range(8), 64) == drained[:9]  # between steps: what has no layer, then the first layers
    assert not house.spans.state[8:64].any()
    house.queue.progress(4)
    while not house.queue.idle():
        house.queue.drain(CURSOR, 0.01)
    assert house.state(*range(32, 48)) == drained[:16]
    assert not house.spans.state[8:32].any() and not house.spans.state[48:64].any()
    house.queue.progress(-1)
    assert house.queue.depths()[CURSOR] == 40
    house.queue.cancel(CURSOR)
    assert house.queue.depths()[CURSOR] == 0


def test_waiting_raises_to_demand_and_returns_the_first_that_is_ready(house: House) -> None:
    house.queue.pause((CURSOR, SWEEP))
    house.queue.submit(SWEEP, range(64))
    assert house.queue.wait_any([50, 20]) in (0, 1)
    assert house.queue.drain(DEMAND, 5)
    assert house.state(50, 20, 0) == [READY, READY, ABSENT]


def test_a_waiter_can_be_stopped(house: House) -> None:
    house.queue.pause(range(5))
    stop = np.zeros(1, dtype=np.int32)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(house.queue.wait_any([0], stop)))
    thread.start()
    stop[0] = 1
    house.queue.wake()
    thread.join(5)
    assert found == [-1]


def test_a_truncated_file_fails_the_spans_behind_its_end_and_no_others(house: House) -> None:
    os.truncate(house.path, 10 * SMALL + 100)
    house.queue.submit(ROUTED, [8, 9, 10, 11, 64])
    assert house.queue.wait_any([64]) == 0
    assert house.queue.drain(ROUTED, 5) and house.queue.drain(DEMAND, 5)
    assert house.state(8, 9, 10, 11, 64) == [READY, READY, FAILED, FAILED, FAILED]
    assert house.queue.error(10) == (errno.ENODATA, 10 * SMALL + 100)
    assert house.queue.error(64) == (errno.ENODATA, 64 * SMALL)
    assert house.queue.error(8) is None
    assert sum(row["failed"] for row in house.queue.stats().values()) == 3


def test_what_failed_is_read_in_the_background_only_when_that_is_allowed(house: House) -> None:
    size = house.path.stat().st_size
    os.truncate(house.path, 64 * SMALL)
    house.queue.submit(SWEEP, [64])
    assert house.queue.drain(SWEEP, 5) and house.state(64) == [FAILED]
    os.truncate(house.path, size)
    for cls in (LOOKAHEAD, CURSOR, SWEEP):
        house.queue.submit(cls, [64])
        assert house.queue.drain(cls, 5) and house.state(64) == [FAILED]
    house.queue.retry([3, 64])
    assert house.state(3, 64) == [ABSENT, FAILED]
    house.queue.submit(SWEEP, [64])
    assert house.queue.drain(SWEEP, 5) and house.state(64) == [READY]


def test_evicted_spans_are_gone_and_those_in_use_stay(house: House) -> None:
    house.queue.submit(SWEEP, range(16))
    assert house.queue.drain(SWEEP, 5)
    house.spans.users[3] = 1  # what hd_span_acquire does
    taken, freed = house.queue.evict(range(16))
    house.spans.users[3] = 0
    assert (taken, freed) == (15, 15 * SMALL)
    assert house.state(2, 3, 4) == [ABSENT, READY, ABSENT]
    assert np.flatnonzero(house.cached()).tolist() == list(range(192, 256))
    house.queue.submit(DEMAND, [0])
    assert house.queue.drain(DEMAND, 5) and house.state(0) == [READY]


def test_reading_and_evicting_at_once_never_shows_a_reader_a_span_that_is_not_there(tmp_path: Path) -> None:
    house = House(tmp_path / "model", workers=3)
    stop = threading.Event()

    def evict() -> None:
        while not stop.is_set():
            house.queue.evict(range(64))

    thread = threading.Thread(target=evict)
    thread.start()
    try:
        rng = np.random.default_rng(0)
        for _ in range(100):
            chosen = rng.choice(64, 4, replace=False).astype(np.int32)
            house.queue.submit(ROUTED, chosen)
            assert 0 <= house.queue.wait_any(chosen) < 4
    finally:
        stop.set()
        thread.join()
        house.queue.close()


def test_neighbours_asked_for_together_share_the_pages_between_them(tmp_path: Path) -> None:
    path = cold_file(tmp_path / "model", 4 * MIB)
    mapping = Mapping([path])
    spans = Spans(mapping, [0] * 4, [i * 1000 * KIB + i * 32 for i in range(4)], [1000 * KIB] * 4, [0] * 4)
    queue = PopulateQueue(spans, workers=2)
    queue.set_cover(ROUTED, 2.0)
    queue.submit(ROUTED, [0, 1, 2, 3])
    assert queue.drain(ROUTED, 5)
    pages = -(-(4 * 1000 * KIB + 96) // PAGE)
    assert queue.stats()["routed"]["read"] == pages * PAGE == cached_pages(path).sum() * PAGE
    queue.close()
    with pytest.raises(ValueError, match="closed"):
        queue.depths()


def test_one_set_of_workers_per_node_reads_its_own_spans(tmp_path: Path) -> None:
    path = cold_file(tmp_path / "model", 8 * MIB)
    mapping = Mapping([path])
    spans = Spans(mapping, [0] * 8, [i * MIB for i in range(8)], [MIB] * 8, [-1] * 4 + [0] * 4, nodes=2)
    cpu = min(os.sched_getaffinity(0))
    queue = PopulateQueue(spans, workers=2, node=[0, 1] * 4, cpus=[{cpu}, {cpu}], memory=[0, -1])
    queue.set_plan(range(8), 1)
    assert queue.drain(CURSOR, 5)
    assert (spans.state == READY).all()
    queue.close()
    with pytest.raises(ValueError, match="node"):
        PopulateQueue(spans, node=[2] * 8, cpus=[{cpu}, {cpu}])


def test_the_brake_holds_the_sweep_and_not_a_demand(house: House) -> None:
    house.queue.set_rate(1.0)  # a byte per second: after the first piece nothing more
    house.queue.submit(SWEEP, [64])
    while house.queue.stats()["sweep"]["read"] == 0:
        house.queue.drain(SWEEP, 0.01)
    assert house.queue.wait_any([0, 1]) >= 0
    assert house.spans.state[64] != READY
    house.queue.set_rate(0)
    assert house.queue.drain(SWEEP, 5) and house.spans.state[64] == READY
