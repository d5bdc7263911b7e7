"""The right to end one step. Knows no engine: whoever runs the step says how it is ended."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Interrupt:
    """Belongs to one step. Asked for before that step, it never begins; while it runs, it ends early; afterwards,
    nothing happens. No other step can hear of it, whatever the order in which threads come by."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop: Callable[[bool], None] | None = None
        self._asked = False

    def ask(self) -> None:
        """From any thread."""
        with self._lock:
            self._asked = True
            if self._stop is not None:
                self._stop(True)

    def begin(self, stop: Callable[[bool], None]) -> bool:
        """The step begins, and `stop(True)` would end it; False when it must not. Only one step runs at a time."""
        with self._lock:
            if not self._asked:
                self._stop = stop
            return not self._asked

    def over(self) -> None:
        """The step has ended: before the next one begins, what was asked for is taken back."""
        with self._lock:
            stop, self._stop = self._stop, None
            if stop is not None and self._asked:
                stop(False)
