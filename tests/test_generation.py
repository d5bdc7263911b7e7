"""Jobs: the rows that they want, and what they make of what comes of these. Without an engine."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hearthd.daemon import protocol
from hearthd.daemon.generation import GenerateJob, Job, ScoreJob
from hearthd.daemon.model.sampling import Choice
from hearthd.daemon.model.turn import Outcome, Part

from .fake_hearth import Sampler, Tokenizer


class Session:
    length = 0
    closed = False

    def close(self) -> None:
        self.closed = True


class Told(Sampler):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def begin(self, prompt: np.ndarray) -> None:
        self.tokens += prompt.tolist()

    def accept(self, token: int) -> None:
        self.tokens.append(token)


def generation(prompt: list[int], **fields: Any) -> GenerateJob:
    request = protocol.Generate(**fields)
    job = GenerateJob(request, name="me", peer=b"", tokens=prompt, tokenizer=Tokenizer(), sampler=Told())  # type: ignore[arg-type]
    job.session = Session()
    return job


def step(job: Job, room: int, **came: Any) -> tuple[Part, list[protocol.Reply]]:
    """Rows, and what came of them."""
    part = job.rows(room)
    assert part is not None and part.session is job.session
    part.session.length += len(part.tokens)
    return part, job.take(Outcome(**came))


def chosen(job: Job, token: int) -> tuple[Part, list[protocol.Reply]]:
    return step(job, 1, choice=Choice(token))


def test_what_is_computed_catches_up_with_what_is_wanted() -> None:
    job = generation([10, 11, 12, 13, 14], max_tokens=3, stream=True)
    asked = []
    for room, token in ((2, None), (1, None), (9, 65), (9, 66), (9, 67)):
        part, replies = step(job, room, choice=None if token is None else Choice(token))
        asked.append((part.tokens.tolist(), part.want, part.sampler is not None))
        assert [(reply.token, reply.text) for reply in replies] == ([] if token is None else [(token, chr(token))])
        assert part.tokens.dtype == np.int32
    assert asked == [
        ([10, 11], "none", False), ([12], "none", False), ([13, 14], "last", True), ([65], "last", True),
        ([66], "last", True),
    ]  # fmt: skip
    assert job.ended == "length" and job._sampler.tokens == [10, 11, 12, 13, 14, 65, 66, 67]  # type: ignore[attr-defined]
    done, _ = job.finish("length")
    assert isinstance(done, protocol.Done) and (done.text, done.tokens) == ("ABC", [65, 66, 67])


def test_rows_that_were_lost_are_wanted_again() -> None:
    """What a failed or dropped step leaves behind: the session is as it was, and so is the job."""
    job = generation([10, 11, 12], max_tokens=5)
    step(job, 2)
    first, again = job.rows(9), job.rows(9)
    assert first is not None and again is not None and first.tokens.tolist() == again.tokens.tolist() == [12]
    chosen(job, 65)
    assert job.rows(0) is None


def test_nothing_is_chosen_of_a_prompt_alone() -> None:
    job = generation([10, 11], max_tokens=0)
    part, replies = step(job, 9)
    assert (part.want, part.sampler, replies, job.ended) == ("none", None, [], "length")


@pytest.mark.parametrize(
    ("fields", "tokens", "reason", "text"),
    [
        ({}, [65, 0], "stop", "A"),
        ({"ignore_eos": True, "max_tokens": 3}, [65, 0, 66], "length", "A\0B"),
        ({"stop": ["BC"]}, [65, 66, 67], "stop-string", "A"),
        ({"stop": ["BCD"], "max_tokens": 3}, [65, 66, 67], "length", "ABC"),
    ],
)
def test_an_answer_ends_where_it_should(fields: dict[str, Any], tokens: list[int], reason: str, text: str) -> None:
    job = generation([10], stream=True, **fields)
    shown: list[protocol.Reply] = []
    for token in tokens:
        assert not job.ended
        shown += chosen(job, token)[1]
    assert job.ended == reason
    shown += job.rest()
    done, _ = job.finish(reason)
    assert isinstance(done, protocol.Done) and done.text == text == "".join(event.text for event in shown)  # type: ignore[attr-defined]


def test_a_score_is_the_same_in_any_chunks() -> None:
    logits = np.random.default_rng(3).normal(size=(7, 20)).astype(np.float32)
    prompt = [3, 1, 4, 1, 5, 9, 2]
    results = []
    for chunks in ([7], [1] * 7, [3, 3, 1]):
        request = protocol.Score(tokens=prompt, logits=True, logits_from=2)
        job = ScoreJob(request, name="me", peer=b"", tokens=prompt)
        job.session = Session()
        for room in chunks:
            start = job.computed
            part, replies = step(job, room, logits=logits[start : start + room])
            assert part.want == "all" and replies == []
        assert job.ended == "stop"
        result, body = job.finish("stop")
        assert body is not None and bytes(body) == logits[2:].tobytes()
        data = json.loads(protocol.encode(result))["data"]
        results.append([data["logprobs"], data["sum"], data["shape"]])
    assert results[0] == results[1] == results[2] and results[0][2] == [5, 20]
    expected = [logits[at, prompt[at + 1]] - np.log(np.exp(logits[at]).sum()) for at in range(6)]
    assert results[0][0] == [None, *(pytest.approx(value, abs=1e-5) for value in expected)]


def test_a_session_goes_back_once() -> None:
    job = generation([10])
    session = job.session
    job.close_session()
    job.close_session()
    assert session.closed and job.session is None  # type: ignore[union-attr]
