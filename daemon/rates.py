"""How fast steps go by: told of every step, it answers with rates and means. Owns sums over time; knows no jobs.

A step's rows are spread evenly over its time, and rates are means over the last second that is known. While a step
runs, nothing after its beginning is: so a rate stays as it was until that step ends, however long it takes, and falls
to nothing within a second after the last one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Stepped:
    """One step that has run. start, end: seconds of the monotonic clock.

    prompt_rows: of prompts and of what is scored; answer_rows: of answers in progress; chosen: tokens that were chosen;
    parts: sessions that had rows in it.
    """

    start: float
    end: float
    prompt_rows: int
    answer_rows: int
    chosen: int
    parts: int


@dataclass(frozen=True, slots=True)
class Rate:
    """The last second. All zero when no step ran in it.

    prompt, generate: rows of prompts and chosen tokens per second; steps: per second. prompt_rows, answer_rows, parts:
    means of a step.
    """

    prompt: float = 0.0
    generate: float = 0.0
    steps: float = 0.0
    prompt_rows: float = 0.0
    answer_rows: float = 0.0
    parts: float = 0.0


class Rates:
    """The steps of one engine, one after another. prompt_tokens, generated_tokens, steps: since the start."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._steps: deque[Stepped] = deque()
        self._began: float | None = None
        self.prompt_tokens = self.generated_tokens = self.steps = 0

    def begin(self, start: float) -> None:
        """A step begins. What is not followed by its `step` (the engine closes) has no other consequence than that
        rates stay as they are."""
        self._began = start

    def step(self, stepped: Stepped) -> None:
        """The step has ended, with these rows."""
        self._began = None
        self.steps += 1
        self.prompt_tokens += stepped.prompt_rows
        self.generated_tokens += stepped.chosen
        self._steps.append(stepped)
        while self._steps[0].end <= stepped.end - WINDOW:  # of no second that is still to be asked for
            self._steps.popleft()

    def now(self) -> Rate:
        """Rates and means of the last known second."""
        until = self._clock() if self._began is None else self._began
        since = until - WINDOW
        chosen = steps = prompts = answers = parts = 0.0
        for each in self._steps:
            length = each.end - each.start
            share = (min(each.end, until) - max(each.start, since)) / length if length > 0 else float(each.end > since)
            if share <= 0:
                continue
            steps += share
            chosen += share * each.chosen
            prompts += share * each.prompt_rows
            answers += share * each.answer_rows
            parts += share * each.parts
        if not steps:
            return Rate()
        return Rate(
            prompt=prompts / WINDOW,
            generate=chosen / WINDOW,
            steps=steps / WINDOW,
            prompt_rows=prompts / steps,
            answer_rows=answers / steps,
            parts=parts / steps,
        )
