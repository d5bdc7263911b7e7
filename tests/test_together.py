"""Many clients at once on a real model: each gets the answer that it would get alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hearthd.daemon.client import Client

STORIES = ["Once upon a time", "The little dog", "One day, a girl named Lily", "In the forest was", "Tom had a ball"]


def test_an_answer_is_the_one_computed_alone_whoever_else_is_answered(start_daemon: Callable[..., Any]) -> None:
    """Prompts of different lengths arrive while others' answers run, and a score between them."""
    daemon = start_daemon("--demo", "--sessions", "6", "--batch", "48", "--step-ms", "20")
    asked = [(" ".join([STORIES[at % 5]] * (1 + 7 * at)), 12 + 3 * at, {"temperature": 0} if at % 2 else {"seed": at})
             for at in range(8)]  # fmt: skip

    def answer(at: int) -> Any:
        prompt, count, how = asked[at]
        with Client(daemon.endpoint, timeout=60) as hearth:
            if at == 5:
                return hearth.score(text=prompt)[0]["logprobs"]
            stream = hearth.generate(prompt, max_tokens=count, ignore_eos=True, **how)
            return [event.token for event in stream]

    alone = [answer(at) for at in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(answer, range(8))) == alone
