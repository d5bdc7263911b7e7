"""Rates over steps of any length, by a clock that only the test moves."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hearthd.daemon.rates import Rate, Rates, Stepped


@dataclass
class Told:
    """A clock and the rates that go by it."""

    now: float = 100.0
    rates: Rates = field(init=False)

    def __post_init__(self) -> None:
        self.rates = Rates(lambda: self.now)

    def step(self, seconds: float, prompt: int = 0, answers: int = 0, chosen: int = 0, parts: int = 1) -> None:
        start = self.now
        self.rates.begin(start)
        self.now += seconds
        self.rates.step(Stepped(start, self.now, prompt, answers, chosen, parts))


@pytest.fixture
def told() -> Told:
    return Told()


def test_nothing_ran_nothing_is_told(told: Told) -> None:
    assert told.rates.now() == Rate()


def test_steps_of_prompts_and_answers_are_told_apart(told: Told) -> None:
    for _ in range(15):
        told.step(0.1, prompt=20, answers=4, chosen=5, parts=6)
    rate = told.rates.now()
    assert (rate.prompt, rate.generate, rate.steps) == pytest.approx((200, 50, 10))
    assert (rate.prompt_rows, rate.answer_rows, rate.parts) == pytest.approx((20, 4, 6))
    assert (told.rates.prompt_tokens, told.rates.generated_tokens, told.rates.steps) == (300, 75, 15)


def test_a_step_that_outlasts_the_second_keeps_its_rate_until_the_next_is_known(told: Told) -> None:
    told.step(3.0, prompt=512)
    assert told.rates.now().prompt == pytest.approx(512 / 3)
    told.rates.begin(start := told.now)
    for _ in range(8):
        told.now += 0.5
        rate = told.rates.now()
        assert (rate.prompt, rate.steps, rate.prompt_rows) == pytest.approx((512 / 3, 1 / 3, 512))
    told.rates.step(Stepped(start, told.now, 256, 0, 1, 1))
    assert told.rates.now().prompt == pytest.approx(256 / 4)


def test_rates_fall_to_nothing_within_a_second_of_the_last_step(told: Told) -> None:
    told.step(2.0, prompt=200, answers=2, chosen=2)
    seen = []
    for _ in range(5):
        seen.append(told.rates.now().prompt)
        told.now += 0.25
    assert seen == pytest.approx([100, 75, 50, 25, 0])
    assert told.rates.now() == Rate()
    # What began after a pause does not bring the old rate back.
    told.now += 60
    told.rates.begin(told.now)
    told.now += 2
    assert told.rates.now() == Rate()


def test_means_are_of_the_steps_not_of_the_time(told: Told) -> None:
    """Nine short steps of answers beside one long step of a prompt."""
    told.step(0.55, prompt=500, answers=1, chosen=1)
    for _ in range(9):
        told.step(0.05, answers=1, chosen=1)
    rate = told.rates.now()
    assert (rate.steps, rate.prompt_rows, rate.answer_rows) == pytest.approx((10, 50, 1))


def test_a_clock_too_coarse_for_a_step_loses_none_of_it(told: Told) -> None:
    for _ in range(3):
        told.step(0.0, answers=2, chosen=2)
    assert told.rates.now().generate == pytest.approx(6)


def test_what_is_kept_does_not_grow(told: Told) -> None:
    for _ in range(5000):
        told.step(0.01, answers=1, chosen=1)
    assert len(told.rates._steps) <= 101
    assert told.rates.now().generate == pytest.approx(100)
