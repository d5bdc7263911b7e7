"""Spans that could not be read: which, why, and when each is tried again unasked. Reads nothing itself: the queue does.

A span stays known until it has been read, also while a new try is under way: nothing about the state changes by trying.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from hearthd.cyext.spans import FAILED, READY
from numpy.typing import NDArray

from .text import gib

if TYPE_CHECKING:
    from hearthd.cyext.populate_queue import PopulateQueue

    from .parts import Table

FIRST_PAUSE_SECONDS = 10.0  # doubled with each try
LONGEST_PAUSE_SECONDS = 3600.0


class Unreadable:
    """known: bool [n], in place; text: bytes and reasons for people, empty when everything can be read."""

    def __init__(self, table: Table, queue: PopulateQueue, paths: Sequence[str]) -> None:
        self._table, self._queue, self._paths = table, queue, paths
        n = len(table.nbytes)
        self.known = np.zeros(n, dtype=bool)
        self._due = np.full(n, np.inf)
        self._pause = np.zeros(n)
        self._found: dict[int, tuple[int, int] | None] = {}  # errno and byte
        self.text = ""

    def look(self, state: NDArray[np.uint8], now: float) -> list[tuple[str, str]]:
        """Take up what these states tell; now: seconds on any clock. What is new, as (code, message)."""
        failed = state == FAILED
        fresh = np.flatnonzero(failed & ~self.known)
        back = np.flatnonzero(self.known & (state == READY))
        if not len(fresh) and not len(back):
            return []
        for span in fresh.tolist():
            self._found[span] = self._queue.error(span)
        for span in back.tolist():
            del self._found[span]
        self.known[fresh], self.known[back] = True, False
        self._pause[fresh] = FIRST_PAUSE_SECONDS
        self._due[fresh] = now + self._pause[fresh]
        self.text = self._text()
        news = []
        if len(fresh):
            first = int(fresh[0])
            news.append(("unreadable", self._table.failure(first, self._found[first], self._paths) + _more(fresh)))
        if len(back):
            news.append(("readable", f"{self._table.describe(int(back[0]))} can be read again{_more(back)}"))
        return news

    def _text(self) -> str:
        if not self._found:
            return ""
        reasons = sorted({os.strerror(found[0]) for found in self._found.values() if found is not None})
        nbytes = int(np.asarray(self._table.nbytes)[self.known].sum())
        return f"{gib(nbytes)} unreadable" + (f" ({', '.join(reasons)})" if reasons else "")

    def due(self, wanted: NDArray[np.bool_], now: float) -> NDArray[np.int32]:
        """Of the wanted, those to be tried again now; the next time is twice as far away, an hour at most."""
        ids = np.flatnonzero(self.known & wanted & (self._due <= now)).astype(np.int32)
        self._pause[ids] = np.minimum(2 * self._pause[ids], LONGEST_PAUSE_SECONDS)
        self._due[ids] = now + self._pause[ids]
        return ids


def _more(ids: NDArray[np.intp]) -> str:
    return f", and {len(ids) - 1} more" if len(ids) > 1 else ""
