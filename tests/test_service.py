"""The daemon around a fake engine: answers, fairness, cancelling, vanished clients, draining."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import zmq
from hearthd.daemon import client, config, protocol, service

from . import fake_hearth


@asynccontextmanager
async def serving(path: Path, *, pause: float = 0.0, slow_start: float = 0.0, **settings: Any) -> AsyncIterator[Any]:
    """A service in this process; yields (endpoint, fake hearth, service)."""
    endpoint = f"ipc://{path}/s.control"
    made = config.Config(model="fake", control=endpoint, drain_seconds=0.2, **settings)
    hearths: list[fake_hearth.Hearth] = []

    def open_hearth(given: config.Config) -> fake_hearth.Hearth:
        hearths.append(fake_hearth.Hearth(given, pause, slow_start))
        return hearths[-1]

    served = service.Service(made, open_hearth, "test")
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(served.run)
            yield endpoint, hearths[0], served
            served.stop("the test is over")


async def collect(hearth: client.AsyncClient, request: protocol.Generate) -> tuple[list[int], protocol.Done]:
    tokens, done = [], None
    async for event in hearth.stream(request):
        if isinstance(event, protocol.Done):
            done = event
        else:
            tokens.append(event.token)
    assert done is not None
    return tokens, done


async def until_requests(hearth: client.AsyncClient, some: bool) -> None:
    """Until the daemon has some request in progress, or none."""
    while bool((await hearth.status()).stats.requests) != some:  # noqa: ASYNC110
        await trio.sleep(0.005)


async def until_waiting(hearth: client.AsyncClient, count: int) -> None:
    while (await hearth.status()).stats.waiting != count:  # noqa: ASYNC110
        await trio.sleep(0.005)


async def test_every_operation_answers(tmp_path: Path) -> None:
    async with serving(tmp_path) as (endpoint, _, _), client.connect(endpoint) as hearth:
        status = await hearth.status()
        assert status.control == endpoint and status.telemetry.endswith("s.telemetry")
        assert status.warnings[0].code == "fake"
        assert await hearth.tokenize("abc") == [97, 98, 99]
        assert await hearth.detokenize([104, 105]) == "hi"
        tokens, done = await collect(hearth, protocol.Generate(prompt="abc", max_tokens=4))
        assert tokens == done.tokens == [100, 101, 102, 103]
        assert (done.text, done.reason) == ("defg", "length")
        assert done.timings.prompt_tokens == 3 and done.timings.generated == 4
        assert done.timings.ttft_seconds > 0
        _, done = await collect(hearth, protocol.Chat(messages=[{"role": "user", "content": "12"}], max_tokens=2))
        assert done.text == "34"
        data, body = await hearth.score([10, 11, 13], logits=True)
        assert data["logprobs"][0] is None and data["logprobs"][1] == pytest.approx(0, abs=1e-4)
        assert body is not None and len(body) == 4 * 3 * fake_hearth.VOCABULARY
        for operation in (hearth.residency(), hearth.experts(), hearth.plan(), hearth.defer(), hearth.pin()):
            assert isinstance(await operation, dict)
        assert await hearth.warm() == {"spans": 0}


async def test_plain_req_client(tmp_path: Path) -> None:
    async with serving(tmp_path) as (endpoint, _, _):

        def ask() -> list[Any]:
            with zmq.Context() as context, context.socket(zmq.REQ) as socket:
                socket.connect(endpoint)
                answers = []
                for message in (
                    {"op": "status"},
                    {"op": "generate", "prompt": "a", "max_tokens": 2},
                    {"op": "generate", "prompt": "a", "id": 7, "stop": ["b"]},
                    {"op": "generate", "prompt": "a", "stream": True},
                    {"op": "warm", "stream": True},
                ):
                    socket.send_json(message)
                    answers.append(socket.recv_json())
                return answers

        status, done, empty, *streams = await trio.to_thread.run_sync(ask)
        assert status["event"] == "result" and status["data"]["protocol"] == protocol.VERSION
        assert done["event"] == "done" and done["text"] == "bc"
        assert (empty["id"], empty["reason"], empty["text"], empty["tokens"]) == (7, "stop-string", "", [98])
        assert [(answer["code"], answer["field"]) for answer in streams] == [("bad-field", "stream")] * 2


async def test_generation_ends_where_it_should(tmp_path: Path) -> None:
    async with serving(tmp_path, context=40) as (endpoint, _, _), client.connect(endpoint) as hearth:
        _, done = await collect(hearth, protocol.Generate(tokens=[250], max_tokens=50))
        assert done.reason == "stop" and done.tokens == [251, 252, 253, 254, 255]
        _, done = await collect(hearth, protocol.Generate(tokens=[250], max_tokens=8, ignore_eos=True))
        assert done.reason == "length" and done.tokens[-2:] == [1, 2]
        _, done = await collect(hearth, protocol.Generate(prompt="abc", max_tokens=30, stop=["zz", "ghi"]))
        assert (done.reason, done.text) == ("stop-string", "def")
        _, done = await collect(hearth, protocol.Generate(tokens=[100] * 30, max_tokens=100))
        assert done.reason == "context" and done.timings.generated == 11
        _, done = await collect(hearth, protocol.Generate(prompt="abc", max_tokens=0))
        assert (done.reason, done.tokens) == ("length", [])
        with pytest.raises(client.RequestError, match=r"41 tokens.* 40") as refused:
            await collect(hearth, protocol.Generate(tokens=[1] * 41))
        assert refused.value.code == "too-long"
        with pytest.raises(client.RequestError, match="256") as refused:
            await collect(hearth, protocol.Generate(tokens=[1, 256]))
        assert refused.value.field == "tokens[1]"


async def test_a_stream_adds_up_to_its_text(tmp_path: Path) -> None:
    """Also the text that only the end completes: the beginning of a stop string that did not come."""
    async with serving(tmp_path, context=40) as (endpoint, fake, _), client.connect(endpoint) as hearth:

        async def ends(reason: str, text: str, **fields: Any) -> None:
            shown, done = [], None
            async for event in hearth.stream(protocol.Generate(**fields)):
                if isinstance(event, protocol.Done):
                    done = event
                    continue
                shown.append(event)
                if reason == "cancelled" and len(shown) == 3:
                    await hearth.cancel("me")
            assert done is not None and done.reason == reason
            assert "".join(event.text for event in shown) == done.text
            assert [event.token for event in shown if event.token is not None] == done.tokens
            assert done.text.startswith(text) and all(event.token is not None for event in shown[:-1])

        await ends("length", "defg", prompt="abc", max_tokens=4, stop=["fgz"])
        await ends("stop", "\xfb\xfc\xfd\xfe\xff", tokens=[250], stop=["\xfe\xff!"])
        await ends("stop-string", "de", prompt="abc", stop=["fgz", "fgh"])
        await ends("stop-string", "", prompt="abc", stop=["d"])
        await ends("context", "e", tokens=[100] * 30, max_tokens=100, stop=["mno!"])
        fake.engine.pause = 0.01
        await ends("cancelled", "EFG", id="me", prompt="BCD", max_tokens=30, stop=["EFGHIJKLMNOPQRSTUVWXYZ[!"])


async def test_clients_take_turns(tmp_path: Path) -> None:
    async with serving(tmp_path, pause=0.002) as (endpoint, fake, _), client.connect(endpoint) as hearth:
        order: list[str] = []

        async def one(name: str, prompt: list[int], count: int) -> None:
            request = protocol.Generate(tokens=prompt, max_tokens=count, ignore_eos=True)
            _, done = await collect(hearth, request)
            assert len(done.tokens) == count
            order.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "long prompt", [20] * 200, 100)
            await trio.sleep(0.01)
            nursery.start_soon(one, "short", [30], 5)
        assert order == ["short", "long prompt"]
        assert max(count for _, count in fake.engine.steps) == fake.engine.batch


async def test_a_full_queue_says_busy(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, pause=0.005, sessions=1, queue=2) as (endpoint, _, _),
        client.connect(endpoint) as hearth,
    ):
        codes: list[str] = []

        async def one() -> None:
            try:
                _, done = await collect(hearth, protocol.Generate(tokens=[20], max_tokens=10))
                codes.append(done.reason)
            except client.RequestError as error:
                codes.append(error.code)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(one)
        assert "busy" in codes and codes.count("length") >= 2


async def test_a_client_that_cancels_its_ended_request_ends_no_other_client_s(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, pause=0.002) as (endpoint, _, _),
        client.connect(endpoint) as one,
        client.connect(endpoint) as two,
        trio.open_nursery() as nursery,
    ):
        await collect(one, protocol.Generate(id="1", tokens=[20], max_tokens=1, ignore_eos=True))
        ends: list[str] = []

        async def other() -> None:
            request = protocol.Generate(id="1", tokens=[20], max_tokens=60, ignore_eos=True)
            ends.append((await collect(two, request))[1].reason)

        nursery.start_soon(other)
        await until_requests(two, True)
        with pytest.raises(client.RequestError, match="no request '1'"):
            await one.cancel("1")
        while not ends:  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert ends == ["length"]


async def test_cancel_ends_an_answer_and_a_waiting_one(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, pause=0.01, sessions=1) as (endpoint, fake, _),
        client.connect(endpoint) as hearth,
        client.connect(endpoint) as other,
    ):
        reasons = {}

        async def one(id: str) -> None:
            request = protocol.Generate(id=id, tokens=[20], max_tokens=10000, ignore_eos=True)
            _, done = await collect(hearth, request)
            reasons[id] = done.reason

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "first")
            await trio.sleep(0.03)
            nursery.start_soon(one, "second")
            await trio.sleep(0.03)
            assert [row.phase for row in (await other.status()).stats.requests] == ["generate", "queued"]
            await other.cancel("second")
            await other.cancel("first")
        assert reasons == {"first": "cancelled", "second": "cancelled"}
        with pytest.raises(client.RequestError) as refused:
            await other.cancel("first")
        assert refused.value.code == "unknown-request"
        assert fake.engine.open_sessions == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_vanishes_is_noticed(tmp_path: Path, stream: bool) -> None:
    async with serving(tmp_path, pause=0.005) as (endpoint, fake, _), client.connect(endpoint) as hearth:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.connect(endpoint)
        request = {"op": "generate", "tokens": [20], "max_tokens": 100000, "ignore_eos": True, "stream": stream}
        socket.send(json.dumps(request).encode())
        await until_requests(hearth, True)
        context.destroy(linger=0)
        await until_requests(hearth, False)
        assert fake.engine.open_sessions == 0
        told = [event.message for event in (await hearth.status()).events if event.code == "client-gone"]
        assert told == ["a client went away: 1 request dropped"]


async def test_a_reader_that_sleeps_is_dropped_and_nobody_else_notices(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        endpoint, _, _ = await stack.enter_async_context(serving(tmp_path, context=1 << 20, sessions=8))
        context = zmq.Context()
        stack.callback(context.destroy, linger=0)
        socket = context.socket(zmq.DEALER)
        socket.rcvhwm = 10
        socket.rcvbuf = 4096
        socket.rcvtimeo = 15000  # a thread that waits for ever would outlive the test
        socket.connect(endpoint)
        request = {"op": "generate", "tokens": [20], "max_tokens": 1000000, "ignore_eos": True, "stream": True}
        socket.send(json.dumps(request).encode())
        async with client.connect(endpoint) as hearth:
            await until_requests(hearth, True)
            _, done = await collect(hearth, protocol.Generate(tokens=[20], max_tokens=20))
            assert len(done.tokens) == 20
            await until_requests(hearth, False)

        def read_to_the_end() -> dict[str, Any]:
            while True:
                reply = json.loads(socket.recv())
                if reply["event"] != "token":
                    return reply

        reply = await trio.to_thread.run_sync(read_to_the_end)
        assert (reply["event"], reply["code"]) == ("error", "slow-reader")


async def test_a_failed_step_ends_its_request_only(tmp_path: Path) -> None:
    async with serving(tmp_path) as (endpoint, fake, _), client.connect(endpoint) as hearth:
        await collect(hearth, protocol.Generate(tokens=[20], max_tokens=1))  # then there is an engine
        fake.engine.fail_token = 7
        with pytest.raises(client.RequestError, match="ffn_gate_exps") as failed:
            await collect(hearth, protocol.Generate(tokens=[5], max_tokens=10))
        assert failed.value.code == "failed"
        _, done = await collect(hearth, protocol.Generate(tokens=[20], max_tokens=3))
        assert done.reason == "length" and fake.engine.open_sessions == 0


async def test_requests_wait_for_the_engine(tmp_path: Path) -> None:
    async with serving(tmp_path, slow_start=0.1) as (endpoint, fake, _), client.connect(endpoint) as hearth:
        assert (await hearth.status()).isa == ""
        fake.warnings.append(protocol.Warning_(code="late", message="found while the engine was made"))
        _, done = await collect(hearth, protocol.Generate(tokens=[20], max_tokens=3))
        assert done.reason == "length"
        told = [event.code for event in (await hearth.status()).events]
        assert told.count("late") == told.count("fake") == 1


async def test_requests_before_the_engine_are_seen_counted_and_ended(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, slow_start=60, queue=4, sessions=1) as (endpoint, fake, _),
        client.connect(endpoint) as hearth,
        client.connect(endpoint) as other,
    ):
        ends: dict[str, str] = {}

        async def one(request: protocol.Generation) -> None:
            try:
                _, done = await collect(hearth, request)
                ends[request.id] = done.reason
            except client.RequestError as error:
                ends[request.id] = error.code

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, protocol.Generate(id="first", tokens=[20], max_tokens=3))
            messages = [{"role": "user", "content": "12"}]
            nursery.start_soon(one, protocol.Chat(id="chat", messages=messages, max_tokens=2))
            with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
                socket.connect(endpoint)
                for op in ("score", "generate"):
                    socket.send(json.dumps({"id": f"lost {op}", "op": op, "tokens": [1, 2]}).encode())
                await until_waiting(other, 4)
                stats = (await other.status()).stats
                seen = {row.id: (row.op, row.phase, row.max_tokens) for row in stats.requests}
                assert seen == {
                    "first": ("generate", "queued", 3), "chat": ("chat", "queued", 2),
                    "lost score": ("score", "queued", 0), "lost generate": ("generate", "queued", 256),
                }  # fmt: skip
                await one(protocol.Generate(id="fifth", tokens=[20], max_tokens=3))
                assert ends == {"fifth": "busy"}
                socket.close(linger=0)
            await until_waiting(other, 2)
            assert (await other.status()).events[-1].message == "a client went away: 2 requests dropped"
            await other.cancel("chat")
            fake.hurry.set()
        assert ends == {"fifth": "busy", "chat": "cancelled", "first": "length"}
        assert not (await other.status()).stats.requests


async def test_a_stop_before_the_engine_answers_those_who_wait(tmp_path: Path) -> None:
    async with serving(tmp_path, slow_start=60) as (endpoint, _, served), client.connect(endpoint) as hearth:
        reasons = []

        async def one() -> None:
            reasons.append((await collect(hearth, protocol.Generate(tokens=[20], max_tokens=3)))[1].reason)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await until_requests(hearth, True)
            served.stop("now")
        assert reasons == ["stopping"]


async def test_a_stop_in_mid_step_ends_the_step_and_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path, pause=600) as (endpoint, _, served), client.connect(endpoint) as hearth:
        reasons = []

        async def one() -> None:
            reasons.append((await collect(hearth, protocol.Generate(tokens=[20], max_tokens=3)))[1].reason)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)
            while not served._scheduler.running:  # noqa: ASYNC110
                await trio.sleep(0.005)
            served.stop("now")
        assert reasons == ["stopping", "stopping"]


async def test_a_running_answer_goes_on_while_long_prompts_and_scores_come(tmp_path: Path) -> None:
    async with serving(tmp_path, pause=0.002) as (endpoint, fake, _), client.connect(endpoint) as hearth:
        others: list[str] = []

        async def prompt() -> None:
            await collect(hearth, protocol.Generate(tokens=[20] * 400, max_tokens=1))
            others.append("prompt")

        async def score() -> None:
            data, _ = await hearth.score([20] * 400)
            assert len(data["logprobs"]) == 400
            others.append("score")

        async with trio.open_nursery() as nursery:
            request = protocol.Generate(tokens=[30], max_tokens=400, ignore_eos=True)
            nursery.start_soon(collect, hearth, request)
            await until_requests(hearth, True)
            nursery.start_soon(prompt)
            nursery.start_soon(score)
        assert sorted(others) == ["prompt", "score"]
        answer = fake.engine.steps[0][0]  # its session
        alone = [number for number, (session, _) in enumerate(fake.engine.steps) if session == answer]
        between = max(b - a for a, b in itertools.pairwise(alone))
        assert between <= 3  # the parts of one step: its own row and those of the other two


async def test_telemetry_and_late_subscribers(tmp_path: Path) -> None:
    async with serving(tmp_path) as (endpoint, _, _):

        def listen() -> set[str]:
            with zmq.Context() as context, context.socket(zmq.SUB) as socket:
                socket.connect(endpoint.replace(".control", ".telemetry"))
                socket.subscribe(b"")
                topics = set()
                while topics != {"stats", "residency", "event"}:
                    assert socket.poll(3000)
                    topic, body = socket.recv_multipart()
                    message = protocol.decode_telemetry(body)
                    assert message.__struct_config__.tag == topic.decode()
                    topics.add(topic.decode())
                return topics

        await trio.to_thread.run_sync(listen)
        async with client.connect(endpoint) as hearth:
            assert [event.code for event in (await hearth.status()).events] == ["fake", "serving"]


class Warming:
    """A residency that comes as far as it is told."""

    percent = 0

    async def run(self) -> None:
        await trio.sleep_forever()

    def stats(self) -> dict[str, Any]:
        state = "warm" if self.percent == 100 else "warming" if self.percent else "serving-cold"
        note = "1.00 MiB unreadable (Input/output error)" if self.percent == 100 else ""
        return {"state": state, "warm_percent": self.percent - (0.5 if note else 0.0), "state_note": note}


async def test_the_service_manager_is_told_how_far_it_has_warmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hearth(fake_hearth.Hearth):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.residency: Any = Warming()

    monkeypatch.setattr(fake_hearth, "Hearth", Hearth)
    monkeypatch.setattr(service, "REPORT_SECONDS", 0.005)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.settimeout(10)
        told: list[str] = []
        async with serving(tmp_path, slow_start=10.0) as (_, hearth, _):  # the engine is not there yet
            while not told or not told[-1].startswith("warm "):
                text = (await trio.to_thread.run_sync(manager.recv, 4096)).decode()
                told += [line.removeprefix("STATUS=") for line in text.splitlines() if line.startswith("STATUS=")]
                hearth.residency.percent = 25 * len(told)
            hearth.hurry.set()
    assert told == ["serving-cold", "warming 25 %", "warming 50 %", "warming 75 %",
                    "warm 99 %: 1.00 MiB unreadable (Input/output error)"]  # fmt: skip


def test_sigterm_ends_answers_with_a_reason(start_daemon: Callable[..., Any]) -> None:
    daemon = start_daemon("--drain-seconds", "0.1", fake=True, env={"FAKE_PAUSE": "0.01"})
    with client.Client(daemon.endpoint, timeout=10) as hearth:
        stream = hearth.generate(tokens=[20], max_tokens=100000, ignore_eos=True)
        assert next(iter(stream)).token == 21
        second = hearth.generate(tokens=[20], max_tokens=100000, ignore_eos=True)
        events = iter(second)
        next(events)
        daemon.process.send_signal(signal.SIGTERM)
        for _ in events:
            pass
        assert second.done.reason == "stopping"
    assert daemon.process.wait(10) == 0
    path = Path(daemon.endpoint.removeprefix("ipc://"))
    assert not path.exists()


def test_second_signal_forces(start_daemon: Callable[..., Any]) -> None:
    daemon = start_daemon("--drain-seconds", "600", fake=True, env={"FAKE_PAUSE": "0.01"})
    with client.Client(daemon.endpoint, timeout=10) as hearth:
        events = iter(hearth.generate(tokens=[20], max_tokens=100000, ignore_eos=True))
        next(events)
        daemon.process.send_signal(signal.SIGTERM)
        while True:
            try:
                list(hearth.generate(tokens=[20], max_tokens=1))
            except client.RequestError as error:
                assert error.code == "stopping"
                break
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(10) == 128 + signal.SIGTERM


def test_an_endpoint_in_use_is_not_stolen_and_a_killed_daemon_leaves_none(start_daemon: Callable[..., Any]) -> None:
    first = start_daemon(fake=True)
    with pytest.raises(AssertionError, match=r"exit 69[\s\S]*another hearthd"):
        start_daemon("--control", first.endpoint, fake=True)
    first.stop(signal.SIGKILL)
    assert Path(first.endpoint.removeprefix("ipc://")).exists()
    again = start_daemon("--control", first.endpoint, fake=True)
    with client.Client(again.endpoint) as hearth:
        assert hearth.status().pid == again.process.pid
        assert hearth.shutdown()["stopping"]
    assert again.process.wait(10) == 0
