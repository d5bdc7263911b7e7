"""When guessed experts are read before their layer is reached. Owns the decision and its reasons; the engine guesses.

The engine measures its guesses always. Reading on them can pay where experts are missing at all and guesses come true;
whether it does is tried, since what is read early keeps the disk from what is waited for a moment later. That the disk
is idle at the moment of a guess is looked at by the program itself.
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
TURN_TOKENS = 12.0  # with reading on guesses, then as many without
TURNS = 3  # of each, before there is a verdict
LEAST_GAIN = 0.02  # of a token's time
KEPT_TOKENS = 2000.0  # then it is tried anew: routing and memory change
PAUSE_SECONDS = 0.5  # no measurement over a pause between requests

COUNTS = ("guessed", "right", "used", "read_bytes", "wasted_bytes")


class Trial:
    """A token's time with reading on guesses and without, by turns."""

    def __init__(self) -> None:
        self.reading = True
        self.gain: float | None = None  # share of a token's time that reading saves; None while it is tried
        self._time = {True: 0.0, False: 0.0}
        self._tokens = {True: 0.0, False: 0.0}
        self._turn = self._since = 0.0
        self._fresh = True
        self._last: tuple[float, float] | None = None

    def step(self, now: float, tokens: float) -> None:
        """now: seconds; tokens: since the start. Moves to the next turn, or to the verdict."""
        last, self._last = self._last, (now, tokens)
        if last is None or now - last[0] > PAUSE_SECONDS:
            return
        seconds, made = now - last[0], tokens - last[1]
        if self.gain is not None:
            self._since += made
            return
        if not self._fresh:  # what came first in a turn began in the one before
            self._time[self.reading] += seconds
            self._tokens[self.reading] += made
        self._fresh = False
        self._turn += made
        if self._turn < TURN_TOKENS:
            return
        self._turn, self._fresh, self.reading = 0.0, True, not self.reading
        if min(self._tokens.values()) >= TURNS * TURN_TOKENS / 2:
            each = {way: self._time[way] / self._tokens[way] for way in (True, False)}
            self.gain = 1.0 - each[True] / each[False] if each[False] else 0.0
            self.reading = self.gain >= LEAST_GAIN

    def old(self) -> bool:
        """Its verdict was made too long ago."""
        return self._since >= KEPT_TOKENS


class Lookahead:
    """expert_bytes: of all experts that one token uses."""

    def __init__(self, expert_bytes: float) -> None:
        self._token_bytes = expert_bytes
        self._past: deque[tuple[dict[str, float], float, float]] = deque(maxlen=WINDOW)
        self.reading = False
        self.reason = "nothing has been measured yet"
        self.precision: float | None = None
        self._trial = Trial()

    def decide(self, counts: dict[str, Any], missed_bytes: float, tokens: float, fits: bool, seconds: float) -> bool:
        """counts: the engine's totals; missed_bytes, tokens: bytes read for waiting steps or on guesses, and tokens,
        since the start; seconds: now, on any clock. True when the engine has to be told."""
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
            if self._trial.old():
                self._trial = Trial()
            self._trial.step(seconds, tokens)
            self.reading, gain = self._trial.reading, self._trial.gain
            why = f"{missing:.0%} of a token's experts are missing, {self.precision:.0%} of guesses right"
            if gain is None:
                self.reason = f"being tried, with and without by turns: {why}"
            elif self.reading:
                self.reason = f"on: it saves {gain:.0%} of a token's time ({why})"
            else:
                self.reason = f"off: tried, a token took {1 - gain:.0%} of its time with it ({why})"
        return self.reading != before

    def status(self, counts: dict[str, Any]) -> dict[str, Any]:
        """recall and wasted bytes as the engine counts them, and what is done about it."""
        return {
            "reading": self.reading, "reason": self.reason, "recall": counts.get("recall"),
            "precision": counts.get("precision"), "read_bytes": counts.get("read_bytes", 0),
            "wasted_bytes": counts.get("wasted_bytes", 0),
        }  # fmt: skip
