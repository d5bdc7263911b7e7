"""When guessed experts are read before their layer is reached. Owns the decision and its reasons; the engine guesses.

The engine measures its guesses always. Reading on them pays where experts are missing at all and guesses come true;
that the disk is idle at the moment of a guess is looked at by the program itself.
"""

from __future__ import annotations

from collections import deque
from typing import Any

LEAST_PRECISION = 0.6  # below, more than two bytes in five would be read for nothing, and evict something besides
MOST_WASTED = 0.4  # of what was read on a guess
LEAST_MISSING = 0.01  # of the expert bytes of a token: below, waiting costs less than guessing in every layer
LEAST_GUESSES = 200  # experts, before a precision means anything
WINDOW = 32  # looks back
EVERY = 16  # steps between guesses that are only measured

COUNTS = ("guessed", "right", "used", "read_bytes", "wasted_bytes")


class Lookahead:
    """expert_bytes: of all experts that one token uses."""

    def __init__(self, expert_bytes: float) -> None:
        self._token_bytes = expert_bytes
        self._past: deque[tuple[dict[str, float], float, float]] = deque(maxlen=WINDOW)
        self.reading = False
        self.reason = "nothing has been measured yet"
        self.precision: float | None = None

    def decide(self, counts: dict[str, Any], missed_bytes: float, tokens: float, fits: bool) -> bool:
        """counts: the engine's totals; missed_bytes, tokens: bytes read for waiting steps or on guesses, and tokens,
        since the start. True when the engine has to be told."""
        now = ({name: float(counts[name]) for name in COUNTS}, missed_bytes, tokens)
        self._past.append(now)
        old = self._past[0]
        since = {name: now[0][name] - old[0][name] for name in COUNTS}
        # Guesses are rare while nothing is read on them: then the precision is that of all since the start.
        long = since if since["guessed"] >= LEAST_GUESSES else now[0]
        enough = long["guessed"] >= LEAST_GUESSES
        self.precision = long["right"] / long["guessed"] if enough else None
        passed = tokens - old[2]
        missing = (missed_bytes - old[1]) / passed / self._token_bytes if passed > 0 and self._token_bytes else None
        wasted = since["wasted_bytes"] / since["read_bytes"] if since["read_bytes"] >= 32 << 20 else 0.0
        before = self.reading
        if fits:
            self.reading, self.reason = False, "off: the model fits the budget, soon nothing will be missing"
        elif self.precision is None:
            self.reading, self.reason = False, "off: too few guesses to know their worth"
        elif self.precision < LEAST_PRECISION:
            self.reading, self.reason = False, f"off: {self.precision:.0%} of the guesses come true, too few"
        elif wasted > MOST_WASTED:
            self.reading, self.reason = False, f"off: {wasted:.0%} of what was read on guesses was for nothing"
            self._past.clear()
        elif missing is None:
            pass
        elif missing < LEAST_MISSING:
            self.reading, self.reason = False, f"off: only {missing:.1%} of a token's expert bytes are missing"
        else:
            self.reading = True
            self.reason = f"on: {missing:.0%} of a token's experts are missing, {self.precision:.0%} of guesses right"
        return self.reading != before

    def status(self, counts: dict[str, Any]) -> dict[str, Any]:
        """recall and wasted bytes as the engine counts them, and what is done about it."""
        return {
            "reading": self.reading, "reason": self.reason, "recall": counts.get("recall"),
            "precision": counts.get("precision"), "read_bytes": counts.get("read_bytes", 0),
            "wasted_bytes": counts.get("wasted_bytes", 0),
        }  # fmt: skip
