"""How many operations may be in progress, in all and of one client. Counts calls and does not know what they do.

A call is at work, or it waits for something that takes its time (the engine, spans that are read): then it takes no
place from those that are at work. What waits in the scheduler's queue is counted there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

AT_WORK, AT_WORK_EACH = 64, 32
WAITING, WAITING_EACH = 1024, 256
BYTES, BYTES_EACH = 48 << 20, 24 << 20  # of their messages


class NoPlace(Exception):
    """Too much is in progress already."""


class Kind:
    """Places of one kind, and who has them."""

    def __init__(self, most: int, each: int, what: str) -> None:
        self._most, self._each, self._what = most, each, what
        self._taken: Counter[str] = Counter()

    def take(self, owner: str, count: int = 1) -> None:
        """Raises NoPlace. What is too big for the limits has a place where there is nothing else."""
        total, own = self._taken.total(), self._taken[owner]
        if total and total + count > self._most:
            raise NoPlace(f"{total} {self._what} already, {self._most} may be")
        if own and own + count > self._each:
            raise NoPlace(f"{own} {self._what} for this client already, {self._each} may be")
        self.add(owner, count)

    def add(self, owner: str, count: int = 1) -> None:
        """Without asking: negative to give back."""
        self._taken[owner] += count
        if not self._taken[owner]:
            del self._taken[owner]

    def __len__(self) -> int:
        return self._taken.total()


class Places:
    """Of one control socket."""

    def __init__(self) -> None:
        self.at_work = Kind(AT_WORK, AT_WORK_EACH, "operations are in progress")
        self.waiting = Kind(WAITING, WAITING_EACH, "operations are waiting")
        self.bytes = Kind(BYTES, BYTES_EACH, "bytes of requests are being worked on")


class Place:
    """One call's. `urgent` calls always have one."""

    def __init__(self, places: Places, owner: str, nbytes: int, *, urgent: bool = False) -> None:
        """Raises NoPlace."""
        self._places, self._owner, self._nbytes = places, owner, nbytes
        if urgent:
            places.at_work.add(owner)
            self._nbytes = 0
        else:
            places.at_work.take(owner)
            try:
                places.bytes.take(owner, nbytes)
            except NoPlace:
                places.at_work.add(owner, -1)
                raise
        self._at_work = True

    def leave(self) -> None:
        """The operation is done, or counted elsewhere from now on."""
        if self._at_work:
            self._at_work = False
            self._places.at_work.add(self._owner, -1)
        self._places.bytes.add(self._owner, -self._nbytes)
        self._nbytes = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For the body this call only waits. Raises NoPlace."""
        self._places.waiting.take(self._owner)
        self._places.at_work.add(self._owner, -1)
        self._at_work = False
        try:
            yield
        finally:
            self._places.waiting.add(self._owner, -1)
            self._places.at_work.add(self._owner)
            self._at_work = True
