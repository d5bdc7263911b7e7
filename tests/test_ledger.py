"""A picture of what lies where is made whole before it is shown: whoever looks while it is made sees the one before."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from hearthd.daemon.residency.heat import Heat
from hearthd.daemon.residency.ledger import Ledger

SPANS, PAGE = 20_000, 4096


class Turning:
    """A mapping in which all is mapped, then nothing and all is cached, by turns."""

    blind = False
    all_mapped = False

    def mapped(self, file: np.ndarray, offset: np.ndarray, nbytes: np.ndarray) -> np.ndarray:
        self.all_mapped = not self.all_mapped
        return nbytes.copy() if self.all_mapped else np.zeros_like(nbytes)

    def cachestat(self, file: np.ndarray, offset: np.ndarray, nbytes: np.ndarray) -> np.ndarray:
        return np.stack((nbytes, np.zeros_like(nbytes)), axis=1)


@pytest.fixture
def many_switches() -> Iterator[None]:
    """Threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_bytes_add_up_while_they_are_being_measured(many_switches: None) -> None:
    table = SimpleNamespace(file=np.zeros(SPANS, np.int32), offset=np.arange(SPANS, dtype=np.uint64) * np.uint64(PAGE),
                            nbytes=np.full(SPANS, PAGE, np.uint64), layer=np.zeros(SPANS, np.int32),
                            expert=np.arange(SPANS))  # fmt: skip
    ledger = Ledger(Turning(), table)
    ledger.refresh()
    ends = threading.Event()

    def measure() -> None:
        while not ends.is_set():
            ledger.refresh()

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        for _ in range(300):
            seen = ledger.now
            row, lines = seen.rows()[-1], seen.expert_lines(1, SPANS)
            assert (row.mapped, row.cached, row.deferred) in ((row.total, 0, 0), (0, row.total, 0))
            assert lines == ["#" * SPANS]
    finally:
        ends.set()
        thread.join()


def test_heat_that_somebody_looks_at_stays_as_it_was() -> None:
    heat = Heat(1, 4, 1)
    heat.update(np.array([[4, 3, 2, 1]], dtype=np.uint64))
    seen = heat.counts
    heat.update(np.array([[9, 9, 9, 9]], dtype=np.uint64))
    assert seen.tolist() == [[4, 3, 2, 1]]
    assert heat.counts[0, 0] > 4
