"""Where experts lie when RAM is short: in an arena of huge pages read past the page cache, or in the mapping.

Owns that choice, the arena's size and the order in which slots are given up. Reads nothing itself: the queue does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hearthd.cyext.spans import READY
from numpy.typing import NDArray

from .text import gib

SHARE = 0.4  # of the room for experts. The kernel cannot take an arena's pages: when a limit falls by a step, what the
# mapping holds beside it is what keeps us from being killed before we have shrunk.
SLACK = 0.02  # of the budget: what is left to the mapping for spans that find no slot
STEADY = 0.01  # of the budget: moves smaller than this leave the arena's size alone


class Arena:
    """setting: arena or mapping; auto is mapping: under a 3 GiB limit on a 4.2 GiB model it made 1.4 times the tokens
    of an arena with uneven routing, which trained models have. With even routing the arena made up to twice as many."""

    def __init__(self, queue: Any, spans: Any, setting: str = "auto") -> None:
        self._queue, self._spans, self.setting = queue, spans, setting
        self.in_use = False
        self.reason = "not decided yet"
        self._limit = 0
        self._nbytes = np.asarray(spans.nbytes, dtype=np.int64)
        self._member = np.zeros(len(self._nbytes), dtype=bool)
        self._replaced = -1

    def begin(self, ids: NDArray[np.int32], fits: bool, room: int, budget: int) -> None:
        """ids: expert spans; room: bytes that the budget leaves to them. Cheap: address space only."""
        self._member[ids] = True
        if self.setting == "mapping":
            self.reason = "as asked"
        elif self.setting == "auto" and fits:
            self.reason = "the model fits the budget: its pages are mapped once and need no copies"
        elif self.setting == "auto":
            self.reason = (
                "the model does not fit the budget: the mapping was measured faster where routing is uneven "
                "(--short-memory arena is worth trying where it is even)"
            )
        elif self._spans.nodes > 1:
            self.reason = "an arena serves one node only"
        elif not len(ids):
            self.reason = "there are no experts"
        else:
            size = int(room * SHARE)
            try:
                self._queue.make_arena(ids, size)
                self._queue.set_mapping_room(room - int(budget * SLACK) - size)
            except OSError as error:
                self.reason = f"there is no arena here: {error.strerror}"
                return
            self.in_use, self._limit = True, size
            self.reason = "as asked: direct reads into huge pages, whose slots are given up at no cost"

    def mask(self) -> NDArray[np.bool_]:
        """[n] spans that are read from the arena."""
        return np.asarray(self._spans.at[0] != self._spans.home) if self.in_use else np.zeros(len(self._spans), bool)

    def taken(self) -> int:
        """Bytes of memory that the arena holds; they are no file pages, so limits count them as used."""
        return int(self._queue.arena()["taken"]) if self.in_use else 0

    def resize(self, room: int, budget: int) -> None:
        """Follow the budget: memory of free slots goes back to the kernel. What must be evicted for it went before."""
        if not self.in_use:
            return
        mapped = int(self._nbytes[(self._spans.state == READY) & ~self.mask() & self._member].sum())
        size = int(room * SHARE)
        self._queue.set_mapping_room(max(room - int(budget * SLACK) - size - mapped, 0))
        if abs(size - self._limit) > budget * STEADY or self.taken() > max(size, self._limit):
            self._limit = size
            self._queue.limit_arena(size)

    def excess(self, room: int, budget: int) -> bool:
        """The arena holds more than its share of a room that has become smaller."""
        return self.in_use and int(self._queue.arena()["used"]) - int(room * SHARE) > budget * STEADY

    def too_many(self, room: int, coldest: NDArray[np.int32]) -> NDArray[np.int32]:
        """The coldest of the arena's spans that have to go for it to keep to its share."""
        excess = int(self._queue.arena()["used"]) - int(room * SHARE)
        ids = coldest[self.mask()[coldest]]
        return ids[: int(np.searchsorted(np.cumsum(self._nbytes[ids]), excess)) + 1]

    def wants_victims(self) -> bool:
        """The order of victims is old: a quarter of it has been used up, or there is none yet."""
        if not self.in_use:
            return False
        counts = self._queue.arena()
        if counts["taken"] < 0.6 * min(self._limit, counts["capacity"]) and not counts["replaced"]:
            return False
        fresh = counts["replaced"] + counts["full"]
        if fresh == self._replaced:
            return False
        self._replaced = fresh
        return True

    def set_victims(self, coldest: NDArray[np.int32]) -> None:
        self._queue.set_victims(coldest[self.mask()[coldest]])

    def status(self) -> dict[str, Any]:
        """in_use: arena or mapping, why, and what the arena holds."""
        line = {"in_use": "arena" if self.in_use else "mapping", "reason": self.reason}
        return line | (self._queue.arena() if self.in_use else {})

    def line(self) -> str:
        """For an event, when an arena is used."""
        return f"experts are read into an arena of {gib(self._limit)}: {self.reason}"
