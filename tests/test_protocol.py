"""The control socket against what nobody should send: every message is answered, the daemon lives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hearthd.daemon import protocol
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

OPS = sorted(tag for tag in protocol.OPERATIONS if tag != "shutdown")
FIELDS = ("id", "v", "prompt", "tokens", "max_tokens", "sampling", "stop", "ignore_eos", "stream", "messages", "tools",
          "template_arguments", "text", "special", "bos", "logits", "by", "layer", "select", "wait", "release",
          "target")  # fmt: skip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
messages = st.fixed_dictionaries(
    {"op": st.sampled_from(OPS) | json_values},
    optional=dict.fromkeys(FIELDS, json_values) | {"nobody knows this": json_values},
).map(lambda message: json.dumps(message).encode())
requests = st.sampled_from(
    [
        {"op": "generate", "prompt": "abc", "max_tokens": 3},
        {"op": "score", "tokens": [1, 2, 3]},
        {"op": "status", "v": 1},
    ]
).map(lambda message: json.dumps(message).encode())
halves = st.tuples(requests, st.integers(1, 40)).map(lambda pair: pair[0][: -pair[1]] or b"{")
bodies = st.one_of(st.binary(max_size=200), messages, halves, requests)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A process that serves the fake engine to all tests of this module, and a socket on it."""
    from .conftest import daemons

    with daemons(tmp_path_factory.mktemp("fuzz")) as start:
        yield start(fake=True, env={"HEARTHD_LOG_LEVEL": "error"})


@pytest.fixture
def dealer(daemon: Any) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(daemon.endpoint)
        yield socket


def ask(socket: zmq.Socket[bytes], *frames: bytes) -> Any:
    """Send; the last reply (a stream's tokens are passed over)."""
    socket.send_multipart([b"", *frames])
    while True:
        assert socket.poll(10000), "no answer"
        reply = protocol.decode_reply(socket.recv_multipart()[1])
        if not isinstance(reply, protocol.TokenEvent | protocol.Progress):
            return reply


def alive(daemon: Any, socket: zmq.Socket[bytes]) -> bool:
    return daemon.process.poll() is None and isinstance(ask(socket, b'{"op":"status"}'), protocol.Result)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies)
def test_any_body_gets_an_answer(daemon: Any, dealer: zmq.Socket[bytes], body: bytes) -> None:
    reply = ask(dealer, body)
    if isinstance(reply, protocol.Error):
        assert reply.code != "failed", reply.message
        assert reply.message
    assert daemon.process.poll() is None


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(st.binary(max_size=50), min_size=0, max_size=6))
def test_any_frames_do_no_harm(daemon: Any, dealer: zmq.Socket[bytes], frames: list[bytes]) -> None:
    if frames:
        dealer.send_multipart(frames)
    for _ in range(10):
        dealer.send_multipart([b"", b'{"op":"status","id":"after"}'])
        while dealer.poll(10000):
            reply = protocol.decode_reply(dealer.recv_multipart()[-1])
            if reply.id == "after":
                return
    raise AssertionError("no answer")


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b"", "bad-json", ""),
        (b"\xff\xfe\x00", "bad-json", ""),
        (b"[1]", "bad-json", ""),
        (b"[" * 100000, "bad-json", ""),
        (b'{"op":"status"', "bad-json", ""),
        (b"{}", "unknown-op", "op"),
        (b'{"op":"dance"}', "unknown-op", "op"),
        (b'{"op":"generate","tokens":[1,"x"]}', "bad-field", "tokens[1]"),
        (b'{"op":"generate","sampling":{"top_k":"many"}}', "bad-field", "sampling.top_k"),
        (b'{"op":"generate","tokens":[99999999999999999999999]}', "bad-field", "tokens[0]"),
        (b'{"op":"generate","prompt":"a","sampling":{"temperature":-1}}', "bad-field", "sampling.temperature"),
        (b'{"op":"generate","prompt":"a","max_tokens":-1}', "bad-field", "max_tokens"),
        (b'{"op":"residency","by":"colour"}', "bad-field", "by"),
        (b'{"op":"warm","select":{"layers":[77]}}', "bad-field", "select.layers"),
        (b'{"op":"status","v":99}', "version", "v"),
        (b'{"op":"cancel","target":"nobody"}', "unknown-request", "target"),
    ],
)
def test_errors_name_what_is_wrong(
    daemon: Any, dealer: zmq.Socket[bytes], body: bytes, code: str, field: str
) -> None:
    reply = ask(dealer, body)
    assert isinstance(reply, protocol.Error)
    assert (reply.code, reply.field) == (code, field), reply.message
    assert alive(daemon, dealer)


def test_an_error_echoes_the_id(dealer: zmq.Socket[bytes]) -> None:
    assert ask(dealer, b'{"op":"generate","id":"mine","tokens":5}').id == "mine"


def test_a_huge_message_closes_only_its_connection(daemon: Any, dealer: zmq.Socket[bytes]) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(daemon.endpoint)
        socket.send(b'{"op":"tokenize","text":"' + b"a" * protocol.MESSAGE_LIMIT + b'"}')
        assert not socket.poll(200)
    assert alive(daemon, dealer)


def test_long_and_short_messages_of_a_client_are_read_in_order(dealer: zmq.Socket[bytes]) -> None:
    wrong = b'{"op":"tokenize","id":%d,"text":5}'  # answered when it is read
    padded = wrong[:-1] + b',"unknown":"' + b"a" * (1 << 20) + b'"}'
    for body in (padded % 1, wrong % 2, wrong % 3, padded % 4):
        dealer.send_multipart([b"", body])
    ids = []
    while len(ids) < 4:
        assert dealer.poll(10000)
        ids.append(protocol.decode_reply(dealer.recv_multipart()[1]).id)
    assert ids == [1, 2, 3, 4]


def test_a_message_of_many_frames_is_one_that_is_refused(dealer: zmq.Socket[bytes]) -> None:
    dealer.send_multipart([b"", *[b"{}"] * 5000])
    assert dealer.poll(10000)
    assert "frames" in protocol.decode_reply(dealer.recv_multipart()[1]).message
    assert isinstance(ask(dealer, b'{"op":"status"}'), protocol.Result)


def test_a_request_is_cancelled_by_its_number(dealer: zmq.Socket[bytes]) -> None:
    dealer.send_multipart([b"", b'{"op":"generate","id":7,"tokens":[5],"ignore_eos":true,"max_tokens":400}'])
    dealer.send_multipart([b"", b'{"op":"cancel","id":8,"target":7}'])
    last = {}
    while set(last) != {7, 8}:
        assert dealer.poll(10000)
        reply = protocol.decode_reply(dealer.recv_multipart()[1])
        last[reply.id] = reply
    assert last[7].reason in ("cancelled", "length")


def test_a_flood_is_answered_or_refused(daemon: Any, dealer: zmq.Socket[bytes]) -> None:
    for number in range(2000):
        dealer.send_multipart([b"", json.dumps({"op": "tokenize", "id": str(number), "text": "abc"}).encode()])
    seen = set()
    while len(seen) < 2000:
        assert dealer.poll(10000)
        seen.add(protocol.decode_reply(dealer.recv_multipart()[1]).id)
    assert alive(daemon, dealer)


def test_not_zeromq_at_all(daemon: Any, dealer: zmq.Socket[bytes]) -> None:
    import socket

    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\x00"):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(Path(daemon.endpoint.removeprefix("ipc://"))))
            raw.sendall(garbage)
    assert alive(daemon, dealer)
