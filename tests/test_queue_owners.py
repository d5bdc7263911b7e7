"""The queue where pages have owners, simulated by two sets of workers on one node: what is handed over follows its
span."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hearthd.cyext.mapping import Mapping
from hearthd.cyext.populate_queue import CURSOR, SWEEP, PopulateQueue
from hearthd.cyext.spans import ABSENT, LOADING, READY, Spans

from .pages import PAGE, cold_file

KIB = 1 << 10
SPANS, SIZE = 48, 256 * KIB
SECONDS = 5  # within which what is asked for is there, on a machine that has other things to do


class TwoNodes:
    """48 spans side by side; the first half of each belongs to one set of workers, the second to the other."""

    def __init__(self, path: Path) -> None:
        self.mapping = Mapping([path])
        self.mapping.small_pages()
        self.spans = Spans(self.mapping, [0] * SPANS, np.arange(SPANS) * SIZE, [SIZE] * SPANS, [0] * SPANS, 2)
        anywhere = set(os.sched_getaffinity(0))
        self.queue = PopulateQueue(self.spans, workers=2, nice=0, cpus=[anywhere, anywhere])
        begin = np.arange(2 * SPANS) * SIZE // 2
        self.queue.place([0, len(begin)], begin, np.tile([0, 1], SPANS))

    def waits_for(self, ids: np.ndarray) -> bool:
        """A step's question: is one of these there, within SECONDS?"""
        stop, found = np.zeros(1, np.int32), []
        thread = threading.Thread(target=lambda: found.append(self.queue.wait_any(ids, stop)))
        thread.start()
        thread.join(SECONDS)
        stop[0] = 1
        self.queue.wake()
        thread.join()
        return found[0] >= 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cold_file(tmp_path_factory.mktemp("owners") / "model", SPANS * SIZE)


@contextmanager
def interrupted_sweep(model: Path, moment: int) -> Iterator[TwoNodes]:
    """A sweep from the disk that is paused at some moment while it is under way."""
    fd = os.open(model, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    nodes = TwoNodes(model)
    nodes.queue.submit(SWEEP, range(SPANS))
    time.sleep(0.0005 * (moment % 10))
    nodes.queue.pause((SWEEP,))
    yield nodes
    nodes.queue.close()


def test_a_demand_never_stands_behind_a_pause(model: Path) -> None:
    for moment in range(20):
        with interrupted_sweep(model, moment) as nodes:
            for span in np.flatnonzero(nodes.spans.state != READY)[:3].tolist():
                assert nodes.waits_for(np.array([span]))


def test_what_was_taken_of_a_class_ends_although_it_is_paused_and_cancelled(model: Path) -> None:
    for moment in range(20):
        with interrupted_sweep(model, moment) as nodes:
            nodes.queue.cancel(SWEEP)
            assert nodes.queue.drain(SWEEP, SECONDS)
            assert set(nodes.spans.state.tolist()) <= {ABSENT, READY}
            assert nodes.queue.stats()["sweep"]["in_flight"] == 0
            taken, _ = nodes.queue.evict(range(SPANS))
            assert taken == SPANS


def test_a_closed_queue_leaves_nothing_under_way(model: Path) -> None:
    for moment in range(5):
        with interrupted_sweep(model, moment) as nodes:
            pass
        assert not (nodes.spans.state == LOADING).any()


def test_a_plan_is_whole_while_owners_are_exchanged(model: Path) -> None:
    nodes, planned, ends = TwoNodes(model), 12000, threading.Event()
    nodes.queue.pause((CURSOR,))
    rng = np.random.default_rng(0)
    begin = np.arange(SPANS) * SIZE

    def exchange() -> None:
        while not ends.is_set():
            nodes.queue.place([0, SPANS], begin, rng.integers(0, 2, SPANS))

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        for _ in range(100):
            nodes.queue.set_plan(np.arange(planned) % SPANS, 1)
            assert nodes.queue.depths()[CURSOR] == planned
    finally:
        ends.set()
        thread.join()
        nodes.queue.close()


def test_a_span_without_bytes_is_ready_when_the_plan_reaches_it(tmp_path: Path) -> None:
    mapping = Mapping([cold_file(tmp_path / "model", 4 * PAGE)])
    spans = Spans(mapping, [0] * 2, [0, PAGE], [PAGE, 0], [0] * 2, 2)
    queue = PopulateQueue(spans, workers=2, cpus=[{0}, {0}])
    queue.place([0, 2], [0, PAGE], [0, 1])
    queue.set_plan([1, 0], 1)
    assert queue.drain(CURSOR, SECONDS)
    assert spans.state.tolist() == [READY] * 2
    queue.close()


def test_owners_are_sets_of_workers(model: Path) -> None:
    nodes = TwoNodes(model)
    with pytest.raises(ValueError, match="owner"):
        nodes.queue.place([0, 1], [0], [2])
    nodes.queue.place([0, 1], [0], [-1])
    assert nodes.waits_for(np.array([5]))
    nodes.queue.close()
