"""Many clients of all kinds for a long time: every answer has to be what it was alone, and memory has to stay flat.

    python -m tests.fuzz.soak [--minutes 10] [--clients 64] [--seed 1] [--model FILE] [-- hearthd's options]

from the repository's root, with any installed hearthd; a daemon is started on a small model (or --model) for it. It is
first asked a deck of questions one by one, greedy and seeded, generations and scores, of mixed lengths. Then so many
clients, each a process of its own, draw from the deck until the time is over: most wait for one reply, some take a
stream slowly, some leave in mid-stream, some cancel. It prints the answers that differ, the longest waits, and the
memory (anonymous and shared, not the model's pages) over the time; what the daemon takes when all are gone is shown
beside what it took before. The exit code is 1 for a wrong answer, a silence, a traceback, or memory that grew.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

from .daemon import Answer, Client, Daemon, NoAnswer, essence, small_model

MIB = 1 << 20
GROWTH = 8 * MIB  # and a twentieth: what the memory of the last third may have over the second's
KINDS = {"whole": 70, "slow": 15, "leaves": 10, "cancels": 5}  # how often a client is of which kind
WRONG_SHOWN = 3  # per client


class Question(NamedTuple):
    """A request, and its only right answer."""

    request: Answer
    answer: Answer


class Tale(NamedTuple):
    """What one client lived through. Waits in seconds: for the first event, and for the last."""

    asked: Counter[str]  # by kind
    wrong: list[str]
    first: float
    last: float


def request_of(chance: random.Random, vocabulary: int, longest: int) -> Answer:
    """Of any length up to so many tokens of prompt and answer together; short ones are as frequent as long ones."""
    prompt = min(longest // 2, int(longest ** chance.random()) + 1)
    tokens = [chance.randrange(vocabulary) for _ in range(prompt)]
    if chance.random() < 0.15:
        return {"op": "score", "tokens": [*tokens, 1]}
    sampling: Answer = {"temperature": 0}
    if chance.random() < 0.5:
        sampling = {"temperature": 0.9, "seed": chance.randrange(1 << 30)}
    if chance.random() < 0.2:
        sampling |= {"repeat_penalty": 1.2, "logprobs": 3}
    count = int((longest // 2) ** chance.random()) + 1
    return {"op": "generate", "tokens": tokens, "max_tokens": count, "ignore_eos": True, "sampling": sampling}


def deck_of(daemon: Daemon, count: int, seed: int, longest: int) -> list[Question]:
    """Asked one by one, while nobody else asks."""
    chance = random.Random(f"deck {seed}")
    vocabulary = daemon.ask({"op": "status"})["data"]["model"]["vocabulary"]
    deck = []
    for _ in range(count):
        request = request_of(chance, vocabulary, longest)
        answer = essence(daemon.ask(request, 120))
        if "error" in answer:
            raise NoAnswer(f"a question of the deck is refused: {answer}")
        deck.append(Question(request, answer))
    return deck


class Guest:
    """One client: asks until `until`, then tells."""

    def __init__(self, endpoint: str, deck: Sequence[Question], name: str, until: float, patience: float) -> None:
        self._endpoint, self._deck, self._until, self._patience = endpoint, deck, until, patience
        self._name, self._chance = name, random.Random(name)
        self._asked: Counter[str] = Counter()
        self._wrong: list[str] = []
        self._first = self._last = 0.0

    def live(self, pipe: Connection) -> None:
        while time.monotonic() < self._until:
            kind = self._chance.choices(list(KINDS), list(KINDS.values()))[0]
            question = self._chance.choice(self._deck)
            if question.request["op"] == "score":
                kind = "whole"
            self._asked[kind] += 1
            began = time.monotonic()
            with Client(self._endpoint, **({"rcvhwm": 1} if kind == "slow" else {})) as client:
                try:
                    self._ask(client, kind, question)
                except NoAnswer as error:
                    self._note(f"{kind}: {error}")
            self._last = max(self._last, time.monotonic() - began)
            time.sleep(self._chance.random() * 0.1)
        pipe.send(Tale(self._asked, self._wrong, self._first, self._last))

    def _ask(self, client: Client, kind: str, question: Question) -> None:
        began = time.monotonic()
        mine = f"{self._name} {self._asked.total()}"  # a cancel means whoever's request has that id
        request = question.request | ({"stream": True, "id": mine} if kind != "whole" else {})
        client.send(request)
        reply = client.take(self._patience)
        self._first = max(self._first, time.monotonic() - began)
        leaves = self._chance.randrange(1, 1 + question.request.get("max_tokens", 1))
        texts = []
        while reply["event"] == "token" or reply.get("id") == "end":
            if reply.get("id") == "end":  # the cancel's own, before what comes of it or after the request's last
                reply = client.take(self._patience)
                continue
            texts.append(reply["text"])
            if len(texts) == leaves and kind == "leaves":
                return
            if len(texts) == leaves and kind == "cancels":
                client.send({"op": "cancel", "target": mine, "id": "end"})
            if kind == "slow":
                time.sleep(self._chance.random() * 0.05)
            reply = client.take(self._patience)
        if kind == "cancels" and reply.get("reason") == "cancelled":
            expected = question.answer["tokens"]
            if reply["tokens"] != expected[: len(reply["tokens"])]:
                self._note(f"{kind}: {reply['tokens']} is not the beginning of {expected}: {question.request}")
        elif essence(reply) != question.answer:
            self._note(f"{kind}: {essence(reply)} instead of {question.answer} to {question.request}")
        if texts and reply["event"] == "done" and "".join(texts) != reply["text"]:
            self._note(f"{kind}: events say {''.join(texts)!r}, the end {reply['text']!r}")

    def _note(self, text: str) -> None:
        self._wrong += [text] if len(self._wrong) < WRONG_SHOWN else []
        self._asked["wrong"] += 1


def spread(samples: Sequence[int]) -> str:
    return f"{min(samples) / MIB:.1f} to {max(samples) / MIB:.1f} MiB" if samples else "not measured"


def grown(samples: Sequence[int]) -> int:
    """Bytes by which the last third's median is over the second third's."""
    third = len(samples) // 3
    if not third:
        return 0
    return int(statistics.median(samples[-third:]) - statistics.median(samples[third : 2 * third]))


def soak(daemon: Daemon, given: argparse.Namespace) -> int:
    """Faults."""
    deck = deck_of(daemon, given.deck, given.seed, given.longest)
    before = daemon.memory()
    forked = multiprocessing.get_context("fork")
    until = time.monotonic() + given.minutes * 60
    guests = []
    for number in range(given.clients):
        guest = Guest(daemon.endpoint, deck, f"{given.seed} {number}", until, given.patience)
        mine, other = forked.Pipe()
        process = forked.Process(target=guest.live, args=(other,), daemon=True)
        process.start()
        other.close()
        guests.append((process, mine))
    samples: list[int] = []
    told = time.monotonic()
    while time.monotonic() < until and daemon.alive:
        time.sleep(min(1.0, given.minutes * 60 / 30))
        samples.append(daemon.memory())
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"  {until - told:4.0f} s left, memory {samples[-1] / MIB:.1f} MiB", flush=True)
    tales: list[Tale] = []
    for process, pipe in guests:
        with suppress(EOFError):
            if pipe.poll(given.patience + 10):
                tales.append(pipe.recv())
        process.kill()
        process.join()
    asked = sum((tale.asked for tale in tales), Counter[str]())
    wrong = asked.pop("wrong", 0)
    each = sorted(sum(tale.asked[kind] for kind in KINDS) for tale in tales) or [0]
    more = grown(samples)
    time.sleep(given.settle)
    began, used = time.monotonic(), daemon.processor_seconds()
    time.sleep(given.settle / 4)
    idle = (daemon.processor_seconds() - used) / max(1e-6, time.monotonic() - began)
    print(f"  asked {sum(asked.values())}: {dict(asked)}, {each[0]} to {each[-1]} a client")
    print(f"  wrong or silent {wrong}, of {len(tales)} clients that told")
    waits = sorted(tale.first for tale in tales) or [0.0]
    longest = max((tale.last for tale in tales), default=0.0)
    print(f"  longest wait for a first reply {waits[0]:.1f} to {waits[-1]:.1f} s a client, for a last {longest:.1f} s")
    print(f"  memory before {before / MIB:.1f} MiB, {spread(samples)}, grew by {more / MIB:.1f} MiB in the last third")
    print(f"  when all are gone: {daemon.memory() / MIB:.1f} MiB, {100 * idle:.1f} % of a core")
    for text in [text for tale in tales for text in tale.wrong][:10]:
        print(f"  {text[:600]}")
    steady = more <= GROWTH + statistics.median(samples or [0]) / 20
    missing = given.clients - len(tales)
    return wrong + missing + daemon.tracebacks() + (not steady) + (not daemon.alive)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--deck", type=int, default=60, help="questions (default 60)")
    parser.add_argument("--longest", type=int, default=800, help="tokens of a question and its answer (default 800)")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds between two replies (default 120)")
    parser.add_argument(
        "--settle", type=float, default=8.0, help="seconds until what is not needed has been given back (default 8)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default=None)
    parser.add_argument("options", nargs="*", help="of hearthd")
    given = parser.parse_args()
    options = ["--context", str(given.longest + 64), "--queue", str(4 * given.clients), *given.options]
    with Daemon(given.model or small_model(), *options) as daemon:
        print(f"{given.clients} clients for {given.minutes:g} minutes, seed {given.seed}", flush=True)
        faults = soak(daemon, given)
        if daemon.tracebacks() or not daemon.alive:
            print(daemon.log[-3000:])
    print(f"faults: {faults}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
