"""Clients that leave, do not read, ask too much or only come by: each costs itself, and nobody else."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import zmq
from hearthd.daemon import client, outbox, protocol

from . import fake_hearth
from .test_service import collect, serving, until_requests, until_waiting

ENDLESS = {"op": "generate", "tokens": [20], "max_tokens": 1 << 20, "ignore_eos": True}


@contextmanager
def dealer(endpoint: str, **options: int) -> Iterator[zmq.Socket[bytes]]:
    """A client of libzmq's own, with a context and threads that end with it."""
    context = zmq.Context()
    raw = context.socket(zmq.DEALER)
    for name, value in options.items():
        setattr(raw, name, value)
    try:
        raw.connect(endpoint)
        yield raw
    finally:
        context.destroy(linger=0)


def ask(raw: zmq.Socket[bytes], **request: Any) -> None:
    raw.send(json.dumps(request).encode())


def leave_at_once(endpoint: str) -> None:
    """While the daemon's event loop, which is this thread's, stands still."""
    with dealer(endpoint) as raw:
        ask(raw, **ENDLESS)
        time.sleep(0.2)
    time.sleep(0.2)


async def replies(raw: zmq.Socket[bytes], count: int) -> list[dict[str, Any]]:
    """So many, without the frames behind them."""

    def read() -> list[dict[str, Any]]:
        raw.rcvtimeo = 15000  # a thread that waits for ever would outlive the test
        return [json.loads(raw.recv_multipart()[0]) for _ in range(count)]

    return await trio.to_thread.run_sync(read)


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.005)


async def test_who_stays_does_not_notice_those_who_leave_in_mid_stream(tmp_path: Path) -> None:
    async with serving(tmp_path, pause=0.0005) as (endpoint, fake, _), client.connect(endpoint) as hearth:
        reasons: Counter[str] = Counter()
        left = trio.Event()

        async def stay() -> None:
            while not left.is_set():
                _, done = await collect(hearth, protocol.Generate(tokens=[20], max_tokens=20))
                reasons[done.reason] += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay)
            for _ in range(60):
                with dealer(endpoint) as raw:
                    ask(raw, **ENDLESS, stream=True)
                    await trio.to_thread.run_sync(raw.poll, 2000)
            left.set()
        assert set(reasons) == {"length"}
        await until(lambda: not fake.engine.open_sessions)


async def test_nothing_is_done_for_who_left_before_the_message_was_looked_at(tmp_path: Path) -> None:
    async with serving(tmp_path) as (endpoint, fake, _), client.connect(endpoint) as hearth:
        leave_at_once(endpoint)
        await hearth.status()
        await trio.sleep(0.1)
        assert fake.engine.steps == [] and (await hearth.status()).stats.requests == []


async def test_replies_that_nobody_reads_are_bounded_before_they_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_hearth.Engine, "batch", 4096)
    positions = 8192
    size = 4 * positions * fake_hearth.VOCABULARY  # 8 MiB
    async with serving(tmp_path, context=positions) as (endpoint, _, served):
        with dealer(endpoint, rcvhwm=1, rcvbuf=4096) as raw:
            for number in range(12):
                ask(raw, op="score", id=str(number), tokens=[20] * positions, logits=True)
            async with client.connect(endpoint) as hearth:
                await until_requests(hearth, True)
                await until_requests(hearth, False)
                (owner,) = {known[1] for known in served._control._peers._known.values()}
                assert size <= served._control.outbox.held(owner) <= outbox.CLIENT_BYTES
            found = Counter(reply.get("code", reply["event"]) for reply in await replies(raw, 12))
            # With what libzmq and the kernel hold, a few more than fit may have been computed.
            assert 3 <= found["result"] <= 6 and found["busy"] == 12 - found["result"]
            await until(lambda: not served._control.outbox.held(owner))
            ask(raw, op="score", tokens=[20] * positions, logits=True)
            assert (await replies(raw, 1))[0]["event"] == "result"


async def test_logits_beyond_a_reply_are_had_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LOGITS_LIMIT", 3 * 4 * fake_hearth.VOCABULARY)
    tokens = list(range(10, 18))
    async with serving(tmp_path) as (endpoint, _, _), client.connect(endpoint) as hearth:
        with pytest.raises(client.RequestError, match=r"8 positions have 8192 bytes, .* 3072: ask for 3"):
            await hearth.score(tokens, logits=True)
        with pytest.raises(client.RequestError, match="8 is none of 8 positions"):
            await hearth.score(tokens, logits=True, logits_from=8)
        parts = []
        for start in range(0, 8, 3):
            data, body = await hearth.score(tokens[: start + 3], logits=True, logits_from=start)
            assert body is not None and data["shape"] == [min(3, 8 - start), fake_hearth.VOCABULARY]
            parts.append(body)
        monkeypatch.undo()
        assert b"".join(parts) == (await hearth.score(tokens, logits=True))[1]


async def test_who_takes_nothing_loses_what_waits_then_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_hearth.Engine, "batch", 4096)
    monkeypatch.setattr(outbox, "GIVE_UP_SECONDS", 0.2)
    monkeypatch.setattr(outbox, "PATIENT_BYTES", 0)
    async with serving(tmp_path, context=8192) as (endpoint, _, served):
        with dealer(endpoint, rcvhwm=1, rcvbuf=4096) as raw:
            for number in range(4):
                ask(raw, op="score", id=str(number), tokens=[20] * 8000, logits=True)
            await until(lambda: len(served._control._peers) == 1)
            await until(lambda: len(served._control._peers) == 0)
            assert served._control.outbox._total == 0 and not served._control.outbox._held


async def test_all_unread_replies_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "TOTAL_BYTES", 200_000)
    async with serving(tmp_path, context=1 << 16) as (endpoint, _, served):
        with dealer(endpoint, rcvhwm=1, rcvbuf=4096) as raw:
            for _ in range(400):
                ask(raw, op="detokenize", tokens=[97] * 2000)
            async with client.connect(endpoint) as hearth:
                await until(lambda: any(unread.cut for unread in served._control.outbox._unread.values()))
                assert served._control.outbox._total <= 200_000
                assert await hearth.tokenize("abc") == [97, 98, 99]


FLOOD = """
import json, sys, zmq
raw = zmq.Context().socket(zmq.DEALER)
raw.linger = 0
raw.connect(sys.argv[1])
for number in range(int(sys.argv[2])):
    raw.send(json.dumps({"op": "generate", "id": f"many {number}", "tokens": [20], "max_tokens": 3}).encode())
while True:
    reply = json.loads(raw.recv())
    print(reply["id"], reply.get("code") or reply["reason"], flush=True)
"""


@contextmanager
def flooding(endpoint: str, count: int) -> Iterator[Any]:
    """Another process that asks for so many answers; what it prints, a line at a time."""
    command = [sys.executable, "-c", FLOOD, endpoint, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = process.stdout

        async def line() -> str:
            return (await trio.to_thread.run_sync(lines.readline)).rstrip()

        try:
            yield line
        finally:
            process.kill()


async def test_a_full_queue_has_room_for_another_client(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, slow_start=60, queue=4, sessions=1) as (endpoint, fake, _),
        client.connect(endpoint) as hearth,
        client.connect(endpoint) as other,
    ):
        with flooding(endpoint, 5) as line:
            assert await line() == "many 4 busy"
            await until_waiting(other, 4)
            reasons = []

            async def one() -> None:
                _, done = await collect(hearth, protocol.Generate(tokens=[20], max_tokens=3))
                reasons.append(done.reason)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(one)
                assert await line() == "many 3 busy"
                assert (await other.status()).stats.waiting == 4
                fake.hurry.set()
            assert reasons == ["length"]
            assert sorted([await line() for _ in range(3)]) == [f"many {number} length" for number in range(3)]


async def test_operations_that_wait_take_no_places_and_end_with_their_client(tmp_path: Path) -> None:
    async with serving(tmp_path, slow_start=60) as (endpoint, _, served), client.connect(endpoint) as hearth:
        with dealer(endpoint) as raw:
            for number in range(100):
                ask(raw, op="tokenize", id=str(number), text="abc")
            await until(lambda: sum(map(len, served._control.in_progress.values())) >= 100)
            assert await hearth.plan() == {"bytes": 0}
        await until(lambda: not served._control.in_progress)
        assert len(served._control._places.waiting) == len(served._control._places.bytes) == 0


async def test_waiting_for_warmth_ends_with_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    async def warm(self: Any, select: protocol.Selection, *, wait: bool, progress: Any) -> dict[str, Any]:
        said.append("begun")
        try:
            await trio.sleep_forever()
        finally:
            said.append("ended")

    monkeypatch.setattr(fake_hearth.Hearth, "warm", warm)
    async with serving(tmp_path) as (endpoint, _, served):
        with dealer(endpoint) as raw:
            ask(raw, op="warm", wait=True)
            await until(lambda: said)
        await until(lambda: said == ["begun", "ended"])
        await until(lambda: not served._control.in_progress)


async def test_of_who_only_comes_by_nothing_is_kept(tmp_path: Path) -> None:
    async with serving(tmp_path) as (endpoint, _, served), client.connect(endpoint) as hearth:
        for number in range(200):
            if number % 10:
                with socket.socket(socket.AF_UNIX) as raw:
                    raw.connect(endpoint.removeprefix("ipc://"))
            else:
                with dealer(endpoint) as speaker:
                    ask(speaker, op="status")
                    await trio.to_thread.run_sync(speaker.poll, 2000)
        await hearth.status()
        peers = served._control._peers
        await until(lambda: len(peers) == len(peers._known) == 1)
