"""How many rows of prompts go into a step beside answers, on machines whose steps cost what a formula says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hearthd.daemon.pace import FEW, FIRST, Pace

Cost = Callable[[int, int], float]  # seconds of a step, from rows of answers and of prompts


def experts(answers: int, prompts: int) -> float:
    """As measured where rows share experts: the more rows, the less each costs."""
    return 0.018 * (answers + prompts) ** 0.6


def run(pace: Pace, cost: Cost, answers: int, steps: int) -> list[tuple[int, float]]:
    """Steps beside a prompt that never ends: rows and seconds of each."""
    done = []
    for _ in range(steps):
        rows = pace.rows(answers, "prompt")
        done.append((rows, cost(answers, rows)))
        pace.note(answers, {"prompt": rows, "score": 0}, done[-1][1])
    return done


def answer(pace: Pace, cost: Cost, answers: int, steps: int = 3) -> None:
    for _ in range(steps):
        pace.note(answers, {"prompt": 0, "score": 0}, cost(answers, 0))


@pytest.mark.parametrize("cost", [experts, lambda a, p: 0.01 + 0.004 * a + 0.0015 * p], ids=["experts", "even"])
def test_steps_come_to_take_what_the_pace_allows(cost: Cost) -> None:
    pace = Pace(0.2)
    answer(pace, cost, 2)
    done = run(pace, cost, 2, 20)
    limit = pace.limit(2)
    assert limit <= 0.2 and max(seconds for _, seconds in done) < 1.5 * 0.2
    assert [seconds for _, seconds in done[-3:]] == pytest.approx([limit] * 3, rel=0.1)


def test_it_works_without_a_step_of_answers_alone() -> None:
    pace = Pace(0.2)
    assert run(pace, experts, 4, 20)[-1][1] == pytest.approx(0.2, rel=0.15)


def test_a_read_from_disk_that_holds_up_one_step_changes_nothing() -> None:
    pace = Pace(0.2)
    answer(pace, experts, 4)
    rows, _ = run(pace, experts, 4, 20)[-1]
    pace.note(4, {"prompt": rows, "score": 0}, 3.0)
    assert pace.rows(4, "prompt") == pytest.approx(rows, rel=0.15)


def test_a_slower_disk_is_followed_and_so_is_its_end() -> None:
    pace = Pace(0.2)
    answer(pace, experts, 4)
    quick = run(pace, experts, 4, 20)[-1][0]
    slow = run(pace, lambda a, p: 4 * experts(a, p), 4, 20)[-1]
    assert slow[0] < quick / 3 and slow[1] < 0.5
    assert run(pace, experts, 4, 20)[-1][0] == pytest.approx(quick, rel=0.15)


def test_what_answers_were_thought_to_take_falls_when_more_take_less() -> None:
    """Else a start from a cold disk would starve prompts for as long as there are any."""
    pace = Pace(0.2)
    answer(pace, lambda a, p: 1.5, 2)
    assert pace.rows(2, "prompt") >= FEW
    assert run(pace, experts, 2, 20)[-1][1] > 0.1


def test_prompts_go_on_however_slow_the_machine_is() -> None:
    pace = Pace(0.001)
    answer(pace, experts, 4)
    assert {rows for rows, _ in run(pace, experts, 4, 10)[1:]} == {FEW}


def test_four_answers_keep_a_quarter_of_their_rate_and_one_a_sixteenth() -> None:
    for answers, share in ((16, 4), (4, 4), (2, 8), (1, 16)):
        pace = Pace(10.0)
        answer(pace, experts, answers)
        alone, beside = experts(answers, 0), run(pace, experts, answers, 20)[-1][1]
        assert share / 2 < beside / alone < share


def test_where_answers_alone_take_as_long_prompts_keep_a_fifth() -> None:
    pace = Pace(0.2)
    answer(pace, lambda a, p: 0.3, 64)
    rows, seconds = run(pace, lambda a, p: 0.3 + 0.002 * p, 64, 20)[-1]
    assert rows > 30 and seconds == pytest.approx(0.375, rel=0.05)


def test_more_answers_than_ever_do_not_make_a_step_too_long() -> None:
    pace = Pace(0.2)
    answer(pace, experts, 1)
    run(pace, experts, 1, 20)
    assert max(seconds for _, seconds in run(pace, experts, 16, 20)) < 2.5 * 0.2


def test_rows_that_hand_out_logits_are_learnt_apart() -> None:
    pace = Pace(0.2)
    answer(pace, experts, 4)
    run(pace, experts, 4, 20)
    for _ in range(20):
        rows = pace.rows(4, "score")
        pace.note(4, {"prompt": 0, "score": rows}, seconds := experts(4, rows) + 0.003 * rows)
    assert seconds == pytest.approx(pace.limit(4), rel=0.1) and rows < 0.6 * pace.rows(4, "prompt")


def test_nothing_known_begins_small() -> None:
    assert Pace(0.2).rows(1, "prompt") == FIRST
    alone = Pace(0.2)  # whole batches before there were answers
    alone.note(0, {"prompt": 512, "score": 0}, 0.7)
    assert FIRST < alone.rows(1, "prompt") < 0.2 / (0.7 / 512)
