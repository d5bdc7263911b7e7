"""What is done for one client leaves nothing in memory: no frames of errors, no freed blocks, no lists of numbers."""

from __future__ import annotations

import gc
import weakref
from array import array
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from hearthd.cyext import heap
from hearthd.daemon import operations, trimming
from hearthd.daemon.threads import in_thread
from hearthd.daemon.trimming import Trimmer


class Text:
    """Stands for what a request brings: it can tell whether anybody still has it."""


@pytest.fixture
def no_cycles_found() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_error_from_a_thread_lets_go_of_what_was_worked_on(no_cycles_found: None) -> None:
    seen: list[weakref.ref[Text]] = []

    async def request() -> None:
        text = Text()

        def work() -> None:
            seen.append(weakref.ref(text))
            raise ValueError

        try:
            await in_thread(work, trio.CapacityLimiter(1))
        except ValueError:
            raise LookupError from None

    try:
        await request()
    except LookupError as error:
        assert seen[0]() is not None and isinstance(error.__context__, ValueError)
    assert seen[0]() is None


async def test_result_from_a_thread() -> None:
    assert await in_thread(lambda: None, trio.CapacityLimiter(1)) is None
    assert await in_thread(lambda: 5, trio.CapacityLimiter(1)) == 5


async def test_heaps_are_trimmed_after_long_messages_and_only_then(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    trimmed: list[float] = []

    async def at_once(work: object, limiter: object) -> None:  # the clock would not wait for a thread
        trimmed.append(trio.current_time())

    monkeypatch.setattr(trimming, "in_thread", at_once)
    trimmer = Trimmer()
    nursery.start_soon(trimmer.run)
    for _ in range(1000):  # a long answer's events, all together
        trimmer.passed(trimming.LONG - 1)
    await trio.sleep(10)
    assert not trimmed
    for _ in range(20):
        trimmer.passed(trimming.WORTH // 10)
    await trio.sleep(10)
    assert len(trimmed) == 1
    trimmer.passed(trimming.WORTH)
    await trio.sleep(10)
    assert len(trimmed) == 2


def test_freed_blocks_go_back_to_the_kernel() -> None:
    heap.trim()
    blocks = [bytes(60_000) for _ in range(1000)]  # too small to be mapped by themselves
    pinned = blocks[-1]
    full = anonymous()
    del blocks
    heap.trim()
    assert full - anonymous() > 40 << 20
    assert len(pinned) == 60_000


def anonymous() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon:"))


def test_many_tokens_become_json_piece_by_piece() -> None:
    for count in (0, 1, operations.LONG, 3 * operations.LONG + 7):
        tokens = array("i", range(count))
        text = bytes(operations._tokens_json(tokens)).decode()
        assert text.replace(" ", "") == str({"tokens": list(tokens), "count": count}).replace(" ", "").replace("'", '"')
