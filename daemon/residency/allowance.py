"""What memory admits to the model now: read in time, held back by the brakes, told when it has moved far.

Owns the moments at which limits are read and what is said of them. How they are read is the budget's; the keeper and
the arena make room.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..tending import Say
from .budget import Budget, Budgeter, Sessions
from .ledger import Ledger
from .text import gib

if TYPE_CHECKING:
    from .. import protocol
    from .parts import Engine

TOLD_SHARE = 0.1  # of the budget: smaller moves are no event


class Allowance:
    """wanted: bytes of the model; moves of a budget above them change nothing and are not told.

    say: code, message, level; called from the thread that reads. may_take: bytes of sessions and steps, at most.
    `engine`, once there is one, tells what they have taken.
    """

    def __init__(self, budgeter: Budgeter, ledger: Ledger, wanted: int, say: Say, may_take: int = 0) -> None:
        self._budgeter, self._ledger, self._wanted, self._say = budgeter, ledger, wanted, say
        self.engine: Engine | None = None
        self.sessions = Sessions(may_take)
        self.now: Budget = budgeter.read(0, self.sessions)
        self._told = self.now.bytes
        self._read_at = time.monotonic()

    def age(self) -> float:
        """Seconds since limits and brakes were read."""
        return time.monotonic() - self._read_at

    def read(self, arena: int) -> None:
        """The limits and the brakes, as the ledger last saw what is resident. arena: bytes that it holds. Blocks."""
        self._read_at = time.monotonic()
        now = self._ledger.now
        moved = self._budgeter.brake(self._read_at, int(now.evicted_recently.sum()), int(now.resident.sum()))
        self.follow(arena, braked=moved)

    def follow(self, arena: int, braked: bool = False) -> None:
        """The limits alone. Blocks."""
        locked = int(self._ledger.now.mapped[self._ledger.locked].sum())
        if self.engine is not None:
            self.sessions = Sessions(self.sessions.may_take, self.engine.memory_taken())
        self.now = self._budgeter.read(locked + arena, self.sessions)
        before, now = min(self._told, self._wanted), min(self.now.bytes, self._wanted)
        if braked and before != now:
            held_back = gib(self.now.held_back)
            self._tell(f"the budget is {gib(self.now.bytes)} now ({self.now.reason}, {held_back} held back)",
                       "warning" if self.now.held_back else "info")  # fmt: skip
        elif abs(now - before) > before * TOLD_SHARE:
            self._tell(f"the budget has moved from {gib(self._told)} to {gib(self.now.bytes)} ({self.now.reason})",
                       "warning" if now < before else "info")  # fmt: skip

    def _tell(self, message: str, level: protocol.Level) -> None:
        self._told = self.now.bytes
        self._say("budget", message, level)
