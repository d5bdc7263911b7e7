"""Gives back to the kernel what long messages leave behind in the C library's heaps. Knows sizes, no messages.

A freed block goes to a heap, not to the kernel: glibc raises its threshold for blocks of their own up to 32 MiB, and a
heap shrinks at its end only. A client that sends or gets much would leave a hundred megabytes for nobody. What is short
is not counted: steps and their logits never meet this.
"""

from __future__ import annotations

import trio

from .threads import in_thread

LONG = 64 << 10  # bytes of what is counted
WORTH = 4 << 20  # bytes that have come or gone since it was last done
PAUSE = 0.25  # seconds, at least, between two times


class Trimmer:
    """Told of bytes that come and go; `run` gives back what they leave."""

    def __init__(self) -> None:
        self._bytes = 0
        self._some = trio.Event()

    def passed(self, nbytes: int) -> None:
        """A message of this length came, or has gone."""
        if nbytes >= LONG:
            self._bytes += nbytes
            if self._bytes >= WORTH:
                self._some.set()

    async def run(self) -> None:
        limiter = trio.CapacityLimiter(1)
        while True:
            await self._some.wait()
            await trio.sleep(PAUSE)  # what has come meanwhile goes with it
            self._bytes, self._some = 0, trio.Event()
            await in_thread(_trim, limiter)


def _trim() -> None:
    from hearthd.cyext.heap import trim  # not before READY

    trim()
