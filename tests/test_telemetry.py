"""What the daemon tells of its steps and of the pool while it answers, and when it has answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hearthd.daemon.client import Client
from hearthd.daemon.protocol import Stats


def test_steps_sessions_and_blocks_are_told_while_answers_run_and_go_afterwards(
    start_daemon: Callable[..., Any],
) -> None:
    daemon = start_daemon("--demo", "--sessions", "3")
    with Client(daemon.endpoint, timeout=60) as hearth:

        def until(condition: Callable[[Stats], bool]) -> Stats:
            deadline = time.monotonic() + 60
            while not condition(stats := hearth.status().stats):
                assert time.monotonic() < deadline, stats
                time.sleep(0.02)
            return stats

        streams = [hearth.generate("Once upon a time", max_tokens=450, ignore_eos=True) for _ in range(4)]
        together = until(lambda stats: stats.answer_rows > 1.5 and stats.sessions == 3)
        assert together.steps_rate > 0 and together.parts >= together.answer_rows
        assert together.pool_blocks >= together.pool_used >= 3 and together.pool_bytes > 0
        for stream in streams:
            stream.cancel()
        gone = until(lambda stats: stats.steps_rate == 0)
        assert (gone.sessions, gone.waiting, gone.pool_used) == (0, 0, 0)
        assert (gone.prompt_rate, gone.generate_rate, gone.prompt_rows, gone.answer_rows) == (0, 0, 0, 0)
        assert gone.prompt_tokens > 0 and gone.generated_tokens > 0
    assert daemon.stop() == 0
