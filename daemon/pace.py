"""How many rows of prompts a step may have while answers run, learnt from the steps that ran. Knows no jobs.

A step's seconds are taken as those of its answers' rows alone plus so many for each row of a prompt (or to be scored,
where all logits cost more). Of each the median of the last three is believed: a read from a cold disk that held up one
step changes nothing. The seconds of a row fall with the number of rows (experts are shared), so one number would be
wrong for all numbers of rows but one; as each step measures it at the number that was chosen, the choice comes to rest
where it is right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Literal

Kind = Literal["prompt", "score"]

FEW = 4  # rows that prompts get in any case: they go on, however slow the machine is
FIRST = 16  # rows of the first step beside answers, when nothing is known
SHARED = 4  # from so many answers on they keep a quarter of their rate beside a prompt; fewer keep in proportion less
SLOWED = 3.5  # times as long as without a prompt: a quarter of the rate, with something in hand
GOES_ON = 1.25  # times what answers take alone: a step may take as long in any case, so that prompts keep a fifth
GROWTH = 2  # times the rows of the step before
BELIEVED = 3  # last values, of which the median counts
UNSURE = 2.0  # times the seconds of a row in whole batches, which are cheaper, until rows beside answers were measured
LEAST_SHARE = 0.1  # of a step's seconds that is counted as its prompts', whatever was believed of its answers'


class Median:
    """The median of the last few values; of two the higher."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._last: deque[float] = deque(values, BELIEVED)

    def add(self, value: float) -> None:
        self._last.append(value)

    @property
    def value(self) -> float | None:
        return sorted(self._last)[len(self._last) // 2] if self._last else None


class Pace:
    """seconds: what a step may take while answers run."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._answers: dict[int, Median] = {}  # seconds of steps of nothing but answers, by the number of these
        self._row: dict[Kind, Median] = {"prompt": Median(), "score": Median()}  # seconds, beside answers
        self._alone: dict[Kind, float] = {}  # the same in the last step without answers
        self._allowed: dict[Kind, int] = {}  # rows, the last time

    def answers(self, count: int) -> float:
        """Seconds of a step of so many answers' rows and nothing else; 0 when nothing is known of it.

        A number that was not seen is judged by others: more rows never take less, nor n times as many more than n
        times as long.
        """
        known = self._answers.get(count)
        if known is not None and known.value is not None:
            return known.value
        return min((seconds * max(1.0, count / other) for other, seconds in self._seen()), default=0.0)

    def _seen(self) -> Iterable[tuple[int, float]]:
        return [(count, median.value) for count, median in self._answers.items() if median.value is not None]

    def limit(self, answers: int) -> float:
        """Seconds that a step with so many answers' rows may take."""
        if not (alone := self.answers(answers)):
            return self._seconds
        return max(min(self._seconds, alone * SLOWED * SHARED / min(answers, SHARED)), alone * GOES_ON)

    def row(self, kind: Kind) -> float | None:
        """Seconds of one row beside answers; None when nothing is known of it."""
        if (known := self._row[kind].value) is not None:
            return known
        return self._alone[kind] * UNSURE if kind in self._alone else None

    def rows(self, answers: int, kind: Kind) -> int:
        """Rows of this kind that the next step, with so many answers' rows, may have."""
        rows = FIRST
        if (row := self.row(kind)) is not None:
            rows = max(FEW, int((self.limit(answers) - self.answers(answers)) / row))
            if kind in self._allowed:
                rows = min(rows, max(FIRST, GROWTH * self._allowed[kind]))
        self._allowed[kind] = rows
        return rows

    def note(self, answers: int, rows: dict[Kind, int], seconds: float) -> None:
        """A step has taken so long, until the next could begin."""
        total = sum(rows.values())
        if not total:
            if answers:
                self._answers.setdefault(answers, Median()).add(seconds)
            return
        # What fewer answers were thought to take alone cannot be more than they took with all that.
        for count in [answers, *self._answers] if answers else ():
            if count <= answers and self.answers(count) > seconds:
                self._answers[count] = Median([seconds])
        present = [kind for kind, count in rows.items() if count]
        if not answers:
            self._alone.update(dict.fromkeys(present, seconds / total))
            return
        spent = max(seconds - self.answers(answers), LEAST_SHARE * seconds)
        guess = {kind: self.row(kind) or spent / total for kind in present}
        expected = sum(guess[kind] * rows[kind] for kind in present)
        for kind in present:
            self._row[kind].add(guess[kind] * spent / expected)
