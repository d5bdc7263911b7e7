"""The arena: what is read past the page cache is the same bytes, slots change hands, memory goes back when asked."""

from __future__ import annotations

import ctypes
import errno
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hearthd.cyext.mapping import Mapping
from hearthd.cyext.populate_queue import DEMAND, ROUTED, PopulateQueue
from hearthd.cyext.spans import ABSENT, FAILED, READY, Spans

from .opened import Opened, logits_of
from .pages import cached_pages, cold_file

ODD, N = 300_007, 32  # neither offsets nor sizes fall on pages
BIG = 9 << 20


class House:
    """32 experts of an odd size and one span of 9 MiB, on disk, with exact ranges for all classes."""

    def __init__(self, path: Path, slots: int) -> None:
        self.path = cold_file(path, N * ODD + BIG + 77)
        self.bytes = np.fromfile(self.path, dtype=np.uint8)
        cold_file(path, N * ODD + BIG + 77)
        self.mapping = Mapping([self.path])
        self.offset, self.nbytes = [i * ODD for i in range(N)] + [N * ODD], [ODD] * N + [BIG]
        self.spans = Spans(self.mapping, [0] * (N + 1), self.offset, self.nbytes, [0] * (N + 1))
        self.queue = PopulateQueue(self.spans, workers=2)
        for cls in range(5):
            self.queue.set_cover(cls, 2.0)
        self.slot = -(-ODD // 4096) * 4096 + 4096
        self.queue.make_arena(range(N), slots * self.slot)
        self.queue.direct(range(5))

    def read(self, *ids: int) -> None:
        self.queue.submit(ROUTED, ids)
        assert self.queue.drain(ROUTED, 5)

    def holds(self, span: int) -> bool:
        """What a reader would see is what the file holds, and 64 bytes more can be read."""
        size = self.nbytes[span]
        seen = ctypes.string_at(int(self.spans.at[0, span]), size + 64)[:size]
        return seen == self.bytes[self.offset[span] : self.offset[span] + size].tobytes()

    def in_arena(self) -> list[int]:
        return np.flatnonzero(self.spans.at[0] != self.spans.home).tolist()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    try:
        made = House(tmp_path / "model", slots=6)
    except OSError as error:
        assert error.errno == errno.EINVAL
        pytest.skip("the file system of the temporary directory knows no O_DIRECT")
    yield made
    made.queue.close()
    made.mapping.close()


def test_spans_lie_in_slots_and_leave_the_page_cache_alone(house: House) -> None:
    house.read(0, 1, 2, 31)
    assert house.in_arena() == [0, 1, 2, 31] and all(map(house.holds, house.in_arena()))
    assert not cached_pages(house.path).any()
    assert house.queue.stats()["routed"]["read"] == 4 * ODD
    house.read(32)  # no member: in the mapping
    assert house.in_arena() == [0, 1, 2, 31] and house.holds(32)


def test_only_the_classes_that_were_named_read_past_the_page_cache(house: House) -> None:
    house.queue.direct([DEMAND])
    house.read(0)
    assert house.in_arena() == [] and cached_pages(house.path).any()
    house.queue.submit(DEMAND, [1])
    assert house.queue.drain(DEMAND, 5)
    assert house.in_arena() == [1] and house.holds(1)


def test_a_span_comes_home_when_nobody_reads_it(house: House) -> None:
    house.read(3, 4, 5)
    house.mapping.populate(0, 3 * ODD, 3 * ODD, 0.0)
    house.spans.users[4] = 1
    assert house.queue.come_home([3, 4, 5, 6]) == 2
    assert house.in_arena() == [4] and house.holds(3) and house.holds(5)
    assert house.spans.state[[3, 4, 5, 6]].tolist() == [READY, READY, READY, ABSENT]
    house.spans.users[4] = 0
    assert house.queue.come_home([4]) == 1 and house.queue.arena()["used"] == 0
    assert house.queue.limit_arena(0) == 0


def test_the_first_victim_that_nobody_reads_gives_its_slot_up(house: House) -> None:
    house.read(0, 1, 2, 3, 4, 5)
    house.spans.users[3] = 1
    house.queue.set_victims([3, 5, 1])
    house.read(9)
    assert house.in_arena() == [0, 1, 2, 3, 4, 9] and house.holds(9)
    assert house.spans.state[[3, 5]].tolist() == [READY, ABSENT]
    house.read(10, 11)  # one more victim, then none: the mapping takes the last
    assert len(house.in_arena()) == 6 and house.spans.state[[1, 10, 11]].tolist() == [ABSENT, READY, READY]
    assert house.holds(10) and house.holds(11)
    counts = house.queue.arena()
    assert (counts["replaced"], counts["full"]) == (2, 1)


def test_memory_goes_back_when_slots_are_free_and_the_limit_falls(house: House) -> None:
    house.read(0, 1, 2, 3)
    assert house.queue.arena()["taken"] == 4 * house.slot
    assert house.queue.limit_arena(house.slot) == 4 * house.slot  # all in use
    assert house.queue.evict([0, 1, 2]) == (3, 3 * ODD)
    assert house.queue.limit_arena(house.slot) == house.slot
    house.read(4)
    assert house.in_arena() == [3] and house.holds(4)  # no memory for a second slot: the mapping
    house.queue.limit_arena(6 * house.slot)
    house.read(5)
    assert house.in_arena() == [3, 5] and house.holds(5)


def test_a_file_that_ends_early_fails_the_span_and_frees_its_slot(house: House) -> None:
    with open(house.path, "r+b") as file:
        file.truncate(4 * ODD + 5000)
    house.queue.submit(DEMAND, [4])
    assert house.queue.drain(DEMAND, 5)
    assert house.spans.state[4] == FAILED
    assert house.queue.error(4) == (errno.ENODATA, 4 * ODD + 5000)
    assert house.in_arena() == [] and house.queue.arena()["used"] == 0


def test_output_is_the_same_bit_for_bit_from_an_arena_too_small_for_the_model(models_dir: Path) -> None:
    folder = models_dir / "tiny"
    tokens = np.array(json.loads((folder / "reference.json").read_text())["tokens"], np.int32)
    path = folder / "moe-mix-q4_k_m.gguf"
    with Opened(path) as engine:
        expected = [logits_of(engine, tokens, chunk)[0] for chunk in (None, 1)]
    opened = Opened(path, deferred=True)
    with opened as engine:
        experts = np.flatnonzero(np.asarray(opened.table.expert) >= 0)
        for cls in range(5):
            opened.queue.set_cover(cls, 2.0)
        try:
            opened.queue.make_arena(experts, int(np.asarray(opened.table.nbytes)[experts].sum() * 0.6))
        except OSError as error:
            assert error.errno == errno.EINVAL
            pytest.skip("the file system of the models knows no O_DIRECT")
        opened.queue.direct(range(5))
        opened.queue.set_victims(experts)
        for chunk, logits in zip((None, 1), expected, strict=True):
            assert np.array_equal(logits_of(engine, tokens, chunk)[0], logits)
            opened.queue.set_victims(experts)
        assert opened.queue.arena()["used"] > 0
