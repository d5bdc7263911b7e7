"""Composes a step from jobs: a row of every answer first, then rows of prompts and of what is scored (one at least).

Owns who gets how many rows. Runs nothing: the scheduler says which jobs are in progress and hands the step to the
engine. Prompts share what answers and the pace leave: each client gets the same number of rows, over steps; a client's
rows go to its oldest request, but for a quarter that goes to the one with the fewest tokens left, so that a short
prompt never waits for the whole of a long one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .generation import Job
from .model.turn import Part
from .pace import Kind, Pace

LOGITS_BYTES = 64 << 20  # of one step's logits that are handed out
QUICK = 4  # the part of a client's rows for the shortest of its prompts: one in so many


@dataclass
class Step:
    """jobs, parts: whose rows, in the same order. answers: rows of answers in progress; prompts: rows of prompts and of
    what is scored."""

    jobs: list[Job] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    answers: int = 0
    rows: dict[Kind, int] = field(default_factory=lambda: {"prompt": 0, "score": 0})

    @property
    def prompts(self) -> int:
        return self.rows["prompt"] + self.rows["score"]

    def add(self, job: Job, room: int) -> int:
        """How many rows the job has now."""
        reading = job.in_prompt
        if (part := job.rows(room)) is None:
            return 0
        self.jobs.append(job)
        self.parts.append(part)
        if reading:
            self.rows[kind_of(job)] += len(part.tokens)
        else:
            self.answers += len(part.tokens)
        return len(part.tokens)


def kind_of(job: Job) -> Kind:
    return "score" if job.want == "all" else "prompt"


class Composer:
    """batch: rows of a step at most; vocabulary: floats of a row of logits."""

    def __init__(self, batch: int, vocabulary: int, pace: Pace) -> None:
        self._batch = batch
        self._scored = max(1, LOGITS_BYTES // (4 * vocabulary))  # rows of a step that hand out logits
        self._pace = pace
        self._prompts_next = False  # whether prompts had the last row that answers could have had
        self._round: list[Job] = []  # of answers that do not all fit: who has waited longest first
        self._credit: dict[str, float] = {}  # rows that a client is owed: what its shares had beside whole rows

    def compose(self, jobs: Sequence[Job]) -> Step:
        """The next step of jobs whose sessions are open; without parts when none of them wants any."""
        step = Step()
        answering = [job for job in jobs if not job.in_prompt]
        reading = [job for job in jobs if job.in_prompt]
        for job in self._first(answering, self._batch - self._kept(answering, reading)):
            step.add(job, 1)
        if reading and step.answers < self._batch:
            self._read(step, sorted(reading, key=lambda job: job.arrived))
        return step

    def _kept(self, answering: list[Job], reading: list[Job]) -> int:
        """Rows that prompts get although answers could fill the step: else they would stand until an answer ends. One;
        where a step has but one, every second."""
        if not reading or len(answering) < self._batch:
            return 0
        self._prompts_next = not self._prompts_next or self._batch > 1
        return int(self._prompts_next)

    def _first(self, answering: list[Job], room: int) -> list[Job]:
        """Those that fit, who has waited longest first."""
        if len(answering) <= room:
            self._round.clear()
            return answering
        known, here = set(self._round), set(answering)
        order = [job for job in self._round if job in here] + [job for job in answering if job not in known]
        self._round = order[room:] + order[:room]
        return order[:room]

    def _read(self, step: Step, reading: list[Job]) -> None:
        """Rows of prompts, as many as there is room and time for."""
        clients: dict[str, list[Job]] = {}
        for job in reading:
            clients.setdefault(job.owner, []).append(job)
        grants = self._grants(step, clients)
        left = self._scored
        for job in reading:  # the oldest first, also in the step
            room = min(grants.get(job, 0), left if job.want == "all" else self._batch)
            if room > 0:
                taken = step.add(job, room)
                left -= taken if job.want == "all" else 0

    def _grants(self, step: Step, clients: dict[str, list[Job]]) -> dict[Job, int]:
        """Rows of each job."""
        room = self._batch - step.answers
        if step.answers:
            room = min(room, self._paced(step.answers, clients))
        wanted = {client: sum(map(_left, jobs)) for client, jobs in clients.items()}
        grants: dict[Job, int] = {}
        for client, rows in self._shares(wanted, room).items():
            grants |= divided(clients[client], rows)
        return grants

    def _paced(self, answers: int, clients: dict[str, list[Job]]) -> int:
        """Rows that the pace allows, whoever gets them: as many as if all were of the kind that takes longer."""
        kinds = {kind_of(job) for jobs in clients.values() for job in jobs}
        return min(self._pace.rows(answers, kind) for kind in kinds)

    def _shares(self, wanted: dict[str, int], room: int) -> dict[str, int]:
        """Rows of each client: equal ones, where some want less more for the others; what a step cannot divide is made
        up for in the next ones."""
        room = min(room, sum(wanted.values()))
        left, even = float(room), {}
        for number, (client, rows) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
            even[client] = min(float(rows), left / (len(wanted) - number))
            left -= even[client]
        owed = {client: self._credit.get(client, 0.0) + share for client, share in even.items()}
        shares = {client: min(wanted[client], max(0, int(rows))) for client, rows in owed.items()}
        free = room - sum(shares.values())
        while free:  # one more, or fewer, for those whose share is furthest from what they are owed
            step = 1 if free > 0 else -1
            able = [c for c in shares if (shares[c] < wanted[c] if step > 0 else shares[c] > 0)]
            client = max(able, key=lambda name: step * (owed[name] - shares[name]))
            shares[client] += step
            free -= step
        self._credit = {client: owed[client] - shares[client] for client in shares if shares[client] < wanted[client]}
        return shares


def _left(job: Job) -> int:
    return len(job.prompt) - job.computed


def divided(jobs: Sequence[Job], rows: int) -> dict[Job, int]:
    """One client's rows among its prompts, the oldest first."""
    given = dict.fromkeys(jobs, 0)
    quick = min(jobs, key=_left)
    order: Iterable[tuple[Job, int]] = [(quick, -(-rows // QUICK)), *((job, rows) for job in jobs)]
    for job, most in order:
        count = min(most, rows, _left(job) - given[job])
        given[job] += count
        rows -= count
    return given
