"""Work of one request in a worker thread, whose errors are held by nobody. Knows no request.

An error has its traceback, that its frames, and they what they were working on. trio's own call leaves such an error
in a cycle (its frame holds the thread's outcome, that the error, that the frame), so megabytes of text would be there
until Python looks for cycles, which it rarely does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def in_thread(work: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
    """What `work` returns or raises."""

    done: list[T] = []
    failed: list[Exception] = []

    def kept() -> None:
        try:
            done.append(work())
        except Exception as error:
            failed.append(error)

    await trio.to_thread.run_sync(kept, limiter=limiter)
    if failed:
        raise failed.pop()  # no name here has it: this frame is in its traceback
    return done.pop()
