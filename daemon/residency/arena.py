"""An arena of huge pages that experts are read into past the page cache: where it serves, how large, what leaves it.

Owns those decisions for its two uses: while a model that fits is cold, and where RAM is short. The queue reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hearthd.cyext.populate_queue import CLASSES, DEMAND, LOOKAHEAD, ROUTED
from hearthd.cyext.spans import READY
from numpy.typing import NDArray

from .text import gib

if TYPE_CHECKING:
    from hearthd.cyext.populate_queue import PopulateQueue
    from hearthd.cyext.spans import Spans

    from .keeper import Keeper

SHARE = 0.4  # of the room for experts, where RAM is short. The kernel cannot take an arena's pages: when a limit falls
# by a step, what the mapping holds beside it is what keeps us from being killed before we have shrunk.
SLACK = 0.02  # of the budget: what is left to the mapping for spans that find no slot
STEADY = 0.01  # of the budget: moves smaller than this leave the arena's size alone
SPARE = 0.5  # of what the budget leaves beside the whole model: most that a cold start takes
SINGLE = (DEMAND, ROUTED, LOOKAHEAD)  # the classes that pick single experts
GIVE_BACK = 64 << 20  # bytes of free slots that are kept for the next reads
CHUNK = 64 << 20  # bytes that are brought home at a time

Ids = NDArray[np.int32]


class Arena:
    """The common part, and what there is when no arena serves: nothing lies in it."""

    use = "mapping"

    def __init__(self, queue: PopulateQueue, spans: Spans, reason: str = "not decided yet") -> None:
        self._queue, self._spans = queue, spans
        self.reason = reason
        self.in_use = False
        self.passing = False  # what comes into it moves on into the mapping
        self._limit = 0
        self._nbytes = np.asarray(spans.nbytes, dtype=np.int64)

    def _make(self, ids: Ids, size: int) -> bool:
        """Address space for so many bytes; False, with the reason, where there can be none."""
        if self._spans.nodes > 1:
            self.reason = "an arena serves one node only"
        elif not len(ids):
            self.reason = "there are no experts"
        else:
            try:
                self._queue.make_arena(ids, size)
            except OSError as error:
                self.reason = f"there is no arena here: {error.strerror}"
            else:
                self.in_use, self._limit = True, size
        return self.in_use

    def mask(self) -> NDArray[np.bool_]:
        """[n] spans that are read from the arena."""
        return np.asarray(self._spans.at[0] != self._spans.home) if self.in_use else np.zeros(len(self._spans), bool)

    def taken(self) -> int:
        """Bytes of memory that the arena holds; they are no file pages, so limits count them as used."""
        return int(self._queue.arena()["taken"]) if self.in_use else 0

    def follow(self, room: int, budget: int, keeper: Keeper, heat: NDArray[np.float64]) -> None:
        """The budget may have moved; room: what it leaves to experts. Blocks."""

    def bring_home(self, keeper: Keeper) -> int:
        """Move some spans back into the mapping; bytes moved, 0 when there is nothing to move. Blocks."""
        return 0

    def status(self) -> dict[str, Any]:
        """in_use: what serves experts, why, and what the arena holds."""
        line = {"in_use": self.use if self.in_use else "mapping", "reason": self.reason}
        return line | (self._queue.arena() if self.in_use else {})

    def line(self) -> str:
        """For an event, when an arena is used."""
        return f"experts are read into an arena of {gib(self._limit)}: {self.reason}"


class ColdReads(Arena):
    """Where the model fits: single experts that a cold start asks for come past the page cache, exactly their bytes and
    at the disk's full rate, which the page cache gives to whole 2 MiB blocks only. What came that way moves into the
    mapping once everything else is there, so that it outlives us and the kernel can take it when others need memory.

    room: bytes that the budget leaves beside the whole model.
    """

    use = "arena while cold"

    def __init__(self, queue: PopulateQueue, spans: Spans, ids: Ids, room: int) -> None:
        super().__init__(queue, spans, "single experts are read directly, and move into the mapping afterwards")
        size = int(min(room * SPARE, self._nbytes[ids].sum() + GIVE_BACK))
        if size < GIVE_BACK:
            self.reason = "the model leaves no memory to read experts apart from the page cache"
        elif self._make(ids, size):
            queue.direct(SINGLE)
            self.passing = True
        self.moved_bytes = 0
        self._unreadable = np.zeros(len(self._nbytes), dtype=bool)

    def follow(self, room: int, budget: int, keeper: Keeper, heat: NDArray[np.float64]) -> None:
        """Memory of free slots goes back to the kernel."""
        counts = self._queue.arena()
        if counts["taken"] > counts["used"] + (GIVE_BACK if counts["used"] else 0):
            self._queue.limit_arena(counts["used"])
            self._queue.limit_arena(self._limit)

    def bring_home(self, keeper: Keeper) -> int:
        """Neighbours together, in the order of the file; most of their pages came with the sweep's blocks."""
        ids = np.flatnonzero(self.mask() & (self._spans.users == 0) & ~self._unreadable).astype(np.int32)
        if not len(ids):
            return 0
        ids = ids[keeper.in_file_order(ids)]
        ids = ids[: int(np.searchsorted(np.cumsum(self._nbytes[ids]), CHUNK)) + 1]
        try:
            keeper.populate(ids)
        except OSError:
            self._unreadable[ids] = True  # they stay where they can be read
            return 0
        self._queue.come_home(ids)
        moved = int(self._nbytes[ids[~self.mask()[ids]]].sum())
        self.moved_bytes += moved
        return moved

    def status(self) -> dict[str, Any]:
        return super().status() | {"moved_home": self.moved_bytes}


class ShortMemory(Arena):
    """Where RAM is short, when asked for: the hottest experts live in the arena, whose slots are given up at no cost.

    room: bytes that the budget leaves to experts.
    """

    use = "arena"

    def __init__(self, queue: PopulateQueue, spans: Spans, ids: Ids, room: int, budget: int) -> None:
        super().__init__(queue, spans, "as asked: direct reads into huge pages, whose slots are given up at no cost")
        self._member = np.zeros(len(self._nbytes), dtype=bool)
        self._member[ids] = True
        self._replaced = -1
        if self._make(ids, int(room * SHARE)):
            queue.set_mapping_room(room - int(budget * SLACK) - self._limit)
            queue.direct(range(len(CLASSES)))

    def follow(self, room: int, budget: int, keeper: Keeper, heat: NDArray[np.float64]) -> None:
        """Down to the share of a room that has become smaller, the coldest first; then who goes next."""
        if self._excess(room) > budget * STEADY:
            keeper.give_back(self._too_many(room, keeper.coldest(heat)))
        self._resize(room, budget)
        if self._wants_victims():
            coldest = keeper.coldest(heat)
            self._queue.set_victims(coldest[self.mask()[coldest]])

    def _excess(self, room: int) -> int:
        return int(self._queue.arena()["used"]) - int(room * SHARE)

    def _too_many(self, room: int, coldest: Ids) -> Ids:
        """The coldest of the arena's spans that have to go for it to keep to its share."""
        ids = coldest[self.mask()[coldest]]
        return ids[: int(np.searchsorted(np.cumsum(self._nbytes[ids]), self._excess(room))) + 1]

    def _resize(self, room: int, budget: int) -> None:
        """Memory of free slots goes back to the kernel. What must be evicted for it went before."""
        mapped = int(self._nbytes[(self._spans.state == READY) & ~self.mask() & self._member].sum())
        size = int(room * SHARE)
        self._queue.set_mapping_room(max(room - int(budget * SLACK) - size - mapped, 0))
        if abs(size - self._limit) > budget * STEADY or self.taken() > max(size, self._limit):
            self._limit = size
            self._queue.limit_arena(size)

    def _wants_victims(self) -> bool:
        """The order of victims is old: some of it has been used up, or there is none yet."""
        counts = self._queue.arena()
        if counts["taken"] < 0.6 * min(self._limit, counts["capacity"]) and not counts["replaced"]:
            return False
        fresh = counts["replaced"] + counts["full"]
        if fresh == self._replaced:
            return False
        self._replaced = fresh
        return True


def choose_arena(
    queue: PopulateQueue, spans: Spans, setting: str, ids: Ids, *, all_warmed: bool, budget: int, dense: int
) -> Arena:
    """setting: --short-memory, which says only what happens where RAM is short. ids: expert spans; dense: their bytes.

    auto is the mapping there: under a 3 GiB limit on a 4.2 GiB model it made 1.4 times the tokens of an arena with
    uneven routing, which trained models have. With even routing the arena made up to twice as many.
    """
    room = max(budget - dense, 0)
    left = room - int(np.asarray(spans.nbytes, dtype=np.int64)[ids].sum())
    if setting == "arena":
        return ShortMemory(queue, spans, ids, room, budget)
    if all_warmed and left > 0:
        return ColdReads(queue, spans, ids, left)
    if left > 0:
        return Arena(queue, spans, "the model fits, and nothing is warmed that an arena could be emptied into")
    if setting == "mapping":
        return Arena(queue, spans, "as asked")
    return Arena(queue, spans, "the model does not fit the budget: the mapping was measured faster where routing is "
                 "uneven (--short-memory arena is worth trying where it is even)")  # fmt: skip
