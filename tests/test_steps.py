"""What a step is composed of: everyone's row, and rows of prompts as room, pace, clients and age have it."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hearthd.daemon import protocol, steps
from hearthd.daemon.generation import Job
from hearthd.daemon.model.turn import Outcome, Part, Want
from hearthd.daemon.pace import Pace
from hearthd.daemon.steps import Composer, Step, divided

VOCABULARY = 1000
COUNT = itertools.count()


class Session:
    length = 0

    def close(self) -> None:
        pass


class Reader(Job):
    """A prompt of so many tokens, then an answer without end."""

    def __init__(self, prompt: int, owner: str = "", want: Want = "last") -> None:
        super().__init__(f"job {next(COUNT)}", "", b"", np.zeros(prompt, np.int32), owner)
        self.arrived = float(next(COUNT))
        self.session = Session()
        self.want = want

    def rows(self, room: int) -> Part | None:
        assert self.session is not None
        return Part(self.session, np.zeros(min(room, max(len(self.prompt) - self.computed, 1)), np.int32), self.want)

    def take(self, outcome: Outcome) -> list[protocol.Reply]:
        raise AssertionError

    def finish(self, reason: str) -> tuple[protocol.Reply, None]:
        raise AssertionError


def answers(count: int, owner: str = "") -> list[Job]:
    made: list[Job] = [Reader(1, owner) for _ in range(count)]
    for job in made:
        job.computed = 1
    return made


def seconds(step: Step) -> float:
    """A machine's: it takes 2 ms for a row of a prompt."""
    return 0.02 + 0.01 * step.answers + 0.002 * step.prompts


class Machine:
    """Composes steps and runs them on a clock of its own."""

    def __init__(self, *, batch: int = 512, pace: float = 0.2) -> None:
        self.pace = Pace(pace)
        self.composer = Composer(batch, VOCABULARY, self.pace)
        self.now = 0.0

    def step(self, jobs: list[Job]) -> Step:
        step = self.composer.compose(jobs)
        self.now += seconds(step)
        self.pace.note(step.answers, step.rows, seconds(step))
        for job, part in zip(step.jobs, step.parts, strict=True):
            job.computed += len(part.tokens)
        return step


def rows(step: Step) -> dict[str, int]:
    return {job.name: len(part.tokens) for job, part in zip(step.jobs, step.parts, strict=True)}


def test_every_answer_has_its_row_in_every_step_whatever_arrives() -> None:
    machine, running = Machine(), answers(4)
    jobs = list(running)
    for number in range(100):
        if number % 10 == 0:
            jobs += [Reader(4000, f"client {number}"), Reader(30, "other")]
        step = machine.step(jobs)
        assert all(rows(step)[job.name] == 1 for job in running) and step.prompts > 0


def test_the_gap_between_tokens_is_bounded_while_a_long_prompt_is_read() -> None:
    machine, running, late = Machine(), answers(4), Reader(4000)
    for _ in range(3):
        machine.step(running)
    gaps = []
    while late.in_prompt:
        before = machine.now
        machine.step([*running, late])
        gaps.append(machine.now - before)
    assert max(gaps) <= 0.21 and len(gaps) < 70


def test_alone_a_prompt_takes_whole_batches() -> None:
    machine, job = Machine(batch=64), Reader(150)
    assert [machine.step([job]).prompts for _ in range(3)] == [64, 64, 22]
    assert machine.step([job]).answers == 1


def test_a_step_is_no_longer_than_a_batch_and_answers_without_a_row_come_first_in_the_next() -> None:
    machine, jobs = Machine(batch=4), answers(6)
    seen = Counter[str]()
    for _ in range(6):
        step = machine.step(jobs)
        assert sum(rows(step).values()) == 4
        seen.update(rows(step))
    assert set(seen.values()) == {4}


@pytest.mark.parametrize(("batch", "running"), [(1, 1), (1, 3), (4, 4), (4, 6)])
def test_answers_that_fill_every_step_leave_prompts_a_row(batch: int, running: int) -> None:
    """And wait for it in turn."""
    machine, going, late = Machine(batch=batch), answers(running), Reader(12)
    seen = Counter[str]()
    for _ in range(12 * (1 + (batch == 1))):
        step = machine.step([*going, late])
        assert sum(rows(step).values()) == batch
        seen.update(rows(step))
    assert not late.in_prompt and seen.pop(late.name) == 12
    assert len(seen) == running and max(seen.values()) - min(seen.values()) <= 1


def test_clients_get_equal_rows_over_steps() -> None:
    machine = Machine(batch=10)
    jobs: list[Job] = [Reader(1000, owner) for owner in "aaabcd"]
    for _ in range(30):
        assert machine.step(jobs).prompts == 10
    got = Counter[str]()
    for job in jobs:
        got[job.owner] += job.computed
    assert set(got.values()) == {75}


def test_what_one_client_does_not_want_goes_to_the_others() -> None:
    machine = Machine(batch=100)
    short, long, other = Reader(10, "a"), Reader(500, "b"), Reader(500, "c")
    assert rows(machine.step([short, long, other])) == {short.name: 10, long.name: 45, other.name: 45}


@pytest.mark.parametrize("running", [0, 4])
def test_a_short_prompt_is_not_stuck_behind_long_ones(running: int) -> None:
    """Be they of other clients or of its own."""
    for owner in ("its own", "another"):
        machine, jobs = Machine(), answers(running)
        jobs += [Reader(4000, owner) for _ in range(3)]
        for _ in range(5):
            machine.step(jobs)
        short = Reader(40, "its own")
        jobs.append(short)
        start = machine.now
        while short.in_prompt:
            machine.step(jobs)
        assert machine.now - start < 1.5 and all(job.in_prompt for job in jobs[running:-1])


def test_within_a_client_the_oldest_comes_first() -> None:
    jobs: list[Job] = [Reader(1000), Reader(1000), Reader(20), Reader(1000)]
    assert list(divided(jobs, 100).values()) == [80, 0, 20, 0]
    assert list(divided(jobs, 1015).values()) == [995, 0, 20, 0]
    assert list(divided(jobs, 1030).values()) == [1000, 10, 20, 0]
    assert list(divided(jobs[:2], 100).values()) == [100, 0]
    assert sum(divided(jobs, 5000).values()) == 3020


def test_logits_of_a_step_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "LOGITS_BYTES", 4 * VOCABULARY * 30)
    machine = Machine()
    score, other, prompt = Reader(100, "a", "all"), Reader(100, "b", "all"), Reader(100, "c")
    step = machine.step([score, other, prompt])
    assert step.rows == {"prompt": 100, "score": 30}
    steps_taken = 1
    while score.in_prompt or other.in_prompt:
        steps_taken += 1
        assert machine.step([job for job in (score, other) if job.in_prompt]).rows["score"] <= 30
    assert steps_taken == 7


def test_scores_share_steps_with_answers_at_their_pace() -> None:
    machine, running, score = Machine(), answers(2), Reader(2000, want="all")
    for _ in range(3):
        machine.step(running)
    start, taken = machine.now, 0
    while score.in_prompt:
        step = machine.step([*running, score])
        assert step.answers == 2 and seconds(step) <= 0.21
        taken += 1
    assert (machine.now - start) / taken > 0.1
