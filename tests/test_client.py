"""The client classes against a fake engine: streams, errors, daemons that are away or go away."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hearthd.daemon import client, protocol

from .conftest import daemons


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with daemons(tmp_path_factory.mktemp("client")) as start:
        yield start(fake=True, env={"FAKE_PAUSE": "0.002"})


def test_two_streams_on_one_client(daemon: Any) -> None:
    with client.Client(daemon.endpoint, timeout=10) as hearth:
        first = hearth.generate("abc", max_tokens=30)
        second = hearth.chat([{"role": "user", "content": "12"}], max_tokens=3, temperature=0)
        assert second.done.text == "345"
        assert "".join(event.text for event in first) == first.done.text
        assert len(first.done.tokens) == 30
        assert first.done.timings.generate_seconds > 0


def test_leaving_a_stream_ends_the_request(daemon: Any) -> None:
    with client.Client(daemon.endpoint, timeout=10) as hearth:
        for event in hearth.generate(tokens=[20], max_tokens=100000, ignore_eos=True):
            assert event.token == 21
            break
        while hearth.status().stats.requests:
            pass
        stream = hearth.generate(tokens=[20], max_tokens=100000, ignore_eos=True)
        next(iter(stream))
    with client.Client(daemon.endpoint, timeout=10) as hearth:
        while hearth.status().stats.requests:
            pass


def test_no_two_clients_of_a_process_name_requests_alike(daemon: Any) -> None:
    with client.Client(daemon.endpoint, timeout=10) as one, client.Client(daemon.endpoint, timeout=10) as other:
        first, second = one.generate("abc", max_tokens=3), other.generate("abc", max_tokens=3)
        assert first.id != second.id
        assert first.done.text == second.done.text


def test_cancel_gives_what_there_was(daemon: Any) -> None:
    with client.Client(daemon.endpoint, timeout=10) as hearth:
        stream = hearth.generate(tokens=[20], max_tokens=100000, ignore_eos=True)
        events = iter(stream)
        next(events)
        done = stream.cancel()
        assert done.reason == "cancelled" and done.tokens[0] == 21


def test_errors_have_classes(daemon: Any, tmp_path: Path) -> None:
    with client.Client(daemon.endpoint, timeout=10) as hearth:
        with pytest.raises(client.RequestError) as refused:
            list(hearth.generate("a", max_tokens=1, top_p=7.0))
        assert (refused.value.code, refused.value.field) == ("bad-field", "sampling.top_p")
        assert isinstance(hearth.request(protocol.Detokenize(tokens=[-1])), protocol.Error)
        with pytest.raises(client.RequestError):
            hearth.residency("colour")  # type: ignore[arg-type]
    with client.Client(daemon.endpoint, timeout=0.05) as hearth, pytest.raises(client.TimedOut):
        hearth.request(protocol.Generate(tokens=[20], max_tokens=100000, ignore_eos=True))
    with pytest.raises(client.Unreachable):
        client.Client(f"ipc://{tmp_path}/nobody.control")
    (tmp_path / "stale.control").touch()
    with pytest.raises(client.Unreachable):
        client.Client(f"ipc://{tmp_path}/stale.control", connect=0.1)


def test_a_daemon_that_dies_is_noticed(start_daemon: Callable[..., Any]) -> None:
    daemon = start_daemon(fake=True, env={"FAKE_PAUSE": "0.01"})
    with client.Client(daemon.endpoint) as hearth:
        events = iter(hearth.generate(tokens=[20], max_tokens=100000, ignore_eos=True))
        next(events)
        daemon.process.send_signal(signal.SIGKILL)
        with pytest.raises(client.Unreachable):
            list(events)


async def test_async_client_shared_by_tasks(daemon: Any) -> None:
    texts = {}
    with trio.fail_after(20):
        async with client.connect(daemon.endpoint) as hearth, trio.open_nursery() as nursery:

            async def one(prompt: str) -> None:
                async for event in hearth.stream(protocol.Generate(prompt=prompt, max_tokens=5)):
                    if isinstance(event, protocol.Done):
                        texts[prompt] = event.text

            for prompt in "adg":
                nursery.start_soon(one, prompt)
    assert texts == {"a": "bcdef", "d": "efghi", "g": "hijkl"}


async def test_async_cancellation_reaches_the_daemon(daemon: Any) -> None:
    with trio.fail_after(20):
        async with client.connect(daemon.endpoint) as hearth:
            async def endless() -> None:
                request = protocol.Generate(tokens=[20], max_tokens=100000, ignore_eos=True)
                async for _ in hearth.stream(request):
                    pass

            with trio.move_on_after(0.1):
                await endless()
            while (await hearth.status()).stats.requests:  # noqa: ASYNC110
                await trio.sleep(0.005)


async def test_async_client_without_a_daemon(tmp_path: Path) -> None:
    with pytest.raises(client.Unreachable):
        async with client.connect(f"ipc://{tmp_path}/nobody.control"):
            pass
