"""What a daemon holds for a client that asks and never reads.

    python -m tests.fuzz.unread [--seconds 15] [--only score] [--model FILE]

from the repository's root, with any installed hearthd. For each kind of reply that can be large, or can be asked for
often, a daemon of its own gets as many requests as it takes in --seconds from a client that reads none. What its memory
(anonymous and shared, not the model's pages) has grown by when it has nothing left to do is held for that client: under
--megabytes (64), or it is a fault. What it grew by at most, with the work on one request after the other, is shown
beside it. The same was asked and read before, so that what the daemon needs once does not count. Afterwards another
client has to be answered. The exit code is 1 if there were faults.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any, NamedTuple

import zmq

from .daemon import PACKAGED, QUESTION, Client, Daemon, NoAnswer, essence

MIB = 1 << 20
EMBEDDED = 500  # tokens that fit any of the models' contexts
SETTLE = 15.0  # seconds after the last request, at most, until nothing is left to do
TEXT = "Once upon a time there was a little fox. "


class Case(NamedTuple):
    """A kind of request; by how many connections of the one client it is made."""

    name: str
    request: dict[str, Any]
    connections: int = 1


TOKENS = [5 + i % 100 for i in range(EMBEDDED)]
GREEDY = {"temperature": 0}
STREAM = {"op": "generate", "tokens": [5, 6, 7], "max_tokens": 400, "ignore_eos": True, "stream": True}
CASES = (
    Case("score with logits", {"op": "score", "tokens": TOKENS, "logits": True}),
    Case("score with logits, 16 connections", {"op": "score", "tokens": TOKENS, "logits": True}, 16),
    Case("score", {"op": "score", "tokens": TOKENS}),
    Case("generate streams", {**STREAM, "sampling": GREEDY}),
    Case("generate streams with alternatives", {**STREAM, "sampling": {**GREEDY, "logprobs": 100}}),
    Case("generate, whole", {**STREAM, "stream": False, "sampling": GREEDY}),
    Case("residency by tensor", {"op": "residency", "by": "tensor"}),
    Case("experts", {"op": "experts"}),
    Case("status", {"op": "status"}),
    Case("status, 64 connections", {"op": "status"}, 64),
    Case("status with a long id", {"op": "status", "id": "i" * (1 << 20)}),
    Case("plan", {"op": "plan"}),
    Case("tokenize 1 MB", {"op": "tokenize", "text": TEXT * (1_000_000 // len(TEXT))}),
    Case("tokenize 8 MB", {"op": "tokenize", "text": TEXT * (8_000_000 // len(TEXT))}),
    Case("detokenize 250,000", {"op": "detokenize", "tokens": TOKENS * 500}),
    Case("prompts of 4 MB", {"op": "generate", "prompt": TEXT * (4_000_000 // len(TEXT)), "max_tokens": 1}),
    Case("prompts of 4 MB, 8 connections",
         {"op": "generate", "prompt": TEXT * (4_000_000 // len(TEXT)), "max_tokens": 1}, 8),
    Case("stop strings of 4 MB", {**STREAM, "max_tokens": 400, "stop": ["ab" * 2_000_000]}),
    Case("chats of 4 MB", {"op": "chat", "messages": [{"role": "user", "content": TEXT * 100_000}], "max_tokens": 1}),
    Case("chats of many parts",
         {"op": "chat", "messages": [{"role": "user", "content": ""}] * 60_000, "max_tokens": 1}),
    Case("prompts that wait", {"op": "generate", "tokens": TOKENS, "max_tokens": 400, "ignore_eos": True}),
    Case("warm with progress", {"op": "warm", "stream": True}),
    Case("bodies that are none", {"op": "x" * (1 << 20)}),
)  # fmt: skip


class Found(NamedTuple):
    """Requests that the daemon's socket took; bytes that its memory had grown by at most, and in the end; what went
    wrong."""

    sent: int
    most: int
    held: int
    trouble: str


def try_case(case: Case, options: argparse.Namespace) -> Found:
    body = json.dumps(case.request).encode()
    with Daemon(options.model, "--warm", "background") as daemon:
        with Client(daemon.endpoint) as reader:
            for _ in range(3):
                _ask_or_lose(reader, body)
            alone = essence(reader.ask(QUESTION))
        before = most = daemon.memory()
        clients = [Client(daemon.endpoint, rcvhwm=1, rcvbuf=4096, sndhwm=1) for _ in range(case.connections)]
        sent, until = 0, time.monotonic() + options.seconds
        try:
            while time.monotonic() < until and daemon.alive:
                took = sum(_offer(client, body) for client in clients)
                sent += took
                most = max(most, daemon.memory())
                time.sleep(0.002 if took else 0.02)
            most = max(most, _settled(daemon))
            held = daemon.memory()
            trouble = "" if daemon.alive else "the daemon died"
            if daemon.alive:
                try:
                    answer = daemon.ask_apart(QUESTION, 30)
                    if essence(answer) != alone:
                        trouble = f"another client was answered {str(answer)[:100]}"
                except NoAnswer as error:
                    trouble = f"another client: {error}"
            if daemon.alive and daemon.tracebacks():
                trouble = (trouble + ", tracebacks in the log").lstrip(", ")
        finally:
            for client in clients:
                client.close()
    return Found(sent, most - before, held - before, trouble)


def _settled(daemon: Daemon) -> int:
    """Wait until the daemon has nothing to do; the most memory on the way."""
    most, until = 0, time.monotonic() + SETTLE
    while time.monotonic() < until and daemon.alive:
        worked, most = daemon.processor_seconds(), max(most, daemon.memory())
        time.sleep(0.5)
        if daemon.processor_seconds() - worked < 0.03:
            break
    return most


def _offer(client: Client, body: bytes) -> int:
    """Send if the daemon takes it without being read."""
    try:
        client.socket.send_multipart([b"", body], zmq.NOBLOCK)
    except zmq.Again:
        return 0
    return 1


def _ask_or_lose(client: Client, body: bytes) -> None:
    """A request that is answered, or for which the daemon hangs up."""
    try:
        client.ask(body, 10)
    except NoAnswer:
        client.close()
        client.__init__(client.endpoint)  # type: ignore[misc]


def main(given: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--seconds", type=float, default=15.0, help="of asking, for each kind")
    made.add_argument("--only", default="", help="kinds whose name has this")
    made.add_argument("--model", default=str(PACKAGED), help="default: the packaged one, with 4096 tokens")
    made.add_argument("--megabytes", type=int, default=64)
    options = made.parse_args(given)
    print("| kind of request | taken | MiB held | at most | |\n| --- | --- | --- | --- | --- |", flush=True)
    failed = 0
    for case in CASES:
        if options.only not in case.name:
            continue
        found = try_case(case, options)
        over = found.held > options.megabytes << 20
        failed += bool(over or found.trouble)
        words = ", ".join(filter(None, ["over the limit" if over else "", found.trouble]))
        print(f"| {case.name} | {found.sent} | {found.held / MIB:.1f} | {found.most / MIB:.1f} | {words} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
