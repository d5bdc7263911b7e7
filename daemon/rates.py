"""How fast steps go by: told of every one of them, answers with rates. Knows no jobs."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stepped:
    """One step that has run. start, end: seconds of the monotonic clock; what came of its rows counts into it.

    prompt_rows: of prompts and of what is scored; answer_rows: of answers in progress; chosen: tokens that were chosen;
    parts: requests that had rows in it.
    """

    start: float
    end: float
    prompt_rows: int
    answer_rows: int
    chosen: int
    parts: int


class Rate:
    """Tokens per second over the last second."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float, int]] = deque()

    def add(self, start: float, end: float, count: int) -> None:
        self._marks.append((start, end, count))
        self._forget(end)

    def _forget(self, now: float) -> None:
        while self._marks and self._marks[0][1] < now - 1.0:
            self._marks.popleft()

    def now(self) -> float:
        moment = time.monotonic()
        self._forget(moment)
        if not self._marks:
            return 0.0
        return sum(mark[2] for mark in self._marks) / max(1.0, self._marks[-1][1] - self._marks[0][0])


class Rates:
    """What all steps so far add up to."""

    def __init__(self) -> None:
        self.prompt, self.generate = Rate(), Rate()
        self.prompt_tokens = self.generated_tokens = self.steps = 0

    def step(self, stepped: Stepped) -> None:
        self.steps += 1
        self.prompt_tokens += stepped.prompt_rows
        self.generated_tokens += stepped.chosen
        if stepped.prompt_rows:
            self.prompt.add(stepped.start, stepped.end, stepped.prompt_rows)
        if stepped.answer_rows:
            self.generate.add(stepped.start, stepped.end, stepped.answer_rows)
