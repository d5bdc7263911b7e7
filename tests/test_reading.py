"""Bytes to requests: what is not quite a request is named, and the limits of one hold."""

from __future__ import annotations

import array
import json
import tracemalloc
from typing import Any

import pytest
import trio
import zmq
from hearthd.daemon import inbox, protocol, reading, schema
from hypothesis import given, settings
from hypothesis import strategies as st

from .conftest import ROOT

CODES = {"bad-json", "bad-field", "unknown-op", "version"}


def read(op: str | None = None, **fields: Any) -> Any:
    return reading.read(json.dumps({"op": op, **fields} if op else fields).encode())


def refused(found: Any) -> tuple[str, str]:
    assert isinstance(found, protocol.Error), found
    assert found.message and len(found.message) < 400
    return found.code, found.field


@pytest.mark.parametrize(
    ("request_", "field", "says"),
    [
        ({"op": "generate", "prompt": "a", "temperature": 0}, "temperature", "it is sampling.temperature"),
        ({"op": "generate", "sampling": {"max_tokens": 1}}, "sampling.max_tokens", "max_tokens is known"),
        ({"op": "generate", "promt": "a"}, "promt", "prompt is the nearest"),
        ({"op": "generate", "prompt": "a", "sampling": {"topk": 1}}, "sampling.topk", "sampling.top_k is the nearest"),
        ({"op": "generate", "temp": 1}, "temp", "sampling.temperature is the nearest"),
        ({"op": "generate", "sampling": {"temp": 1}}, "sampling.temp", "sampling.temperature is the nearest"),
        ({"op": "generate", "sampling": {"penalty": 1}}, "sampling.penalty", "sampling.repeat_penalty is the nearest"),
        ({"op": "warm", "layers": [1]}, "layers", "it is select.layers"),
        ({"op": "status", "colour": "red"}, "colour", "known: id, v"),
        ({"op": "generate"}, "prompt", "missing"),
        ({"op": "generate", "prompt": "a", "tokens": [1]}, "tokens", "exclude each other"),
        ({"op": "score"}, "text", "missing"),
        ({"op": "score", "text": "a", "logits_from": 1}, "logits_from", "not asked for"),
        ({"op": "tokenize"}, "text", "missing"),
        ({"op": "detokenize"}, "tokens", "missing"),
        ({"op": "cancel"}, "target", "missing"),
        ({"op": "chat"}, "messages", "missing"),
        ({"op": "chat", "messages": []}, "messages", "empty"),
        ({"op": "chat", "messages": ["a"]}, "messages[0]", "has to be an object, not text"),
        ({"op": "generate", "prompt": 5}, "prompt", "has to be text, not a whole number"),
        ({"op": "generate", "prompt": "a", "stop": "end"}, "stop", "has to be a list, not text"),
        ({"op": "generate", "prompt": "a", "stop": [""]}, "stop[0]", "empty"),
        ({"op": "generate", "prompt": "a", "stop": ["a" * 1025]}, "stop[0]", "longer than 1024 characters"),
        ({"op": "generate", "prompt": "a", "stop": ["a"] * 65}, "stop", "longer than 64"),
        ({"op": "generate", "prompt": "a", "max_tokens": 1.5}, "max_tokens", "a whole number, not a decimal number"),
        ({"op": "generate", "prompt": "a", "sampling": {"top_p": 1.1}}, "sampling.top_p", "at most 1"),
        ({"op": "generate", "prompt": "a", "sampling": {"seed": 1 << 64}}, "sampling.seed", "at most"),
        ({"op": "generate", "sampling": {"logit_bias": {"-1": 2}}}, "sampling.logit_bias", "a key has to be at"),
        ({"op": "generate", "sampling": {"logit_bias": {"a": 2}}}, "sampling.logit_bias", "a key has to be"),
        ({"op": "generate", "tokens": [5, -1]}, "tokens[1]", "at least 0"),
        ({"op": "residency", "by": "colour"}, "by", "one of role, layer, node, tensor"),
        ({"op": "warm", "select": {"experts": [0] * 4097}}, "select.experts", "longer than 4096"),
        ({"op": "status", "id": "é" * 129}, "id", "longer than 256 bytes"),
        ({"op": "status", "id": ["a"]}, "id", "a number or text, not a list"),
        ({"op": "status", "v": 0}, "v", "at least 1"),
    ],
)
def test_a_bad_field_is_named_for_people(request_: dict[str, Any], field: str, says: str) -> None:
    found = reading.read(json.dumps(request_).encode())
    assert refused(found) == ("bad-field", field)
    assert says in found.message and found.message.startswith(field)


@pytest.mark.parametrize(
    "body",
    [
        b'{"op":"chat","messages":[{"content":"\\ud800"}]}',
        b'{"op":"chat","messages":[{"content":"\xff"}]}',
        b'{"op":"chat","messages":[{"content":1e999}]}',
        b'{"op":"chat","messages":[{"content":' + b"9" * 5000 + b"}]}",
        b'{"op":"chat","messages":[{"content":' + b"[" * 65 + b"]" * 65 + b"}]}",
        b'{"op":"chat","messages":[{"content":' + b"[" * 5000 + b"]" * 5000 + b"}]}",
        b'{"op":"generate","prompt":"a","sampling":{"temperature":NaN}}',
        b'{"op":"generate","prompt":"a","sampling":{"temperature":-Infinity}}',
        b'{"op":"generate","op":"chat","prompt":"a"}',
        b'{"op":{"op":"generate"}}',
        b'{"op":"generate","' + b"x" * 10000 + b'":1}',
        b"null",
    ],
)
def test_what_no_request_is_made_of(body: bytes) -> None:
    assert refused(reading.read(body))[0] in CODES


def test_an_id_is_text_or_a_number_and_stays_what_it_was() -> None:
    for id in ("mine", 7, 0, 1.5, "é" * 128):
        assert read("status", id=id) == protocol.Status(id=id)
        assert reading.first_id(json.dumps({"op": "tokenize", "id": id, "text": "a" * 5000}).encode()) == id
        found = read("generate", id=id)
        assert refused(found) == ("bad-field", "prompt")
        assert found.id == id and type(found.id) is type(id)
    assert reading.first_id(b'{"op":"tokenize","text":"{\\"id\\":5","id":6}') == ""


def test_what_is_within_the_limits_is_taken() -> None:
    chat = {"messages": [{"role": "user", "content": "x" * 300000, "more": [[1.5e-300] * 10] * 10}]}
    assert read("chat", **chat) == protocol.Chat(**chat)
    text = '\\"\n[1,2' * 100000
    assert read("tokenize", text=text) == protocol.Tokenize(text=text)
    assert read("generate", prompt="").prompt == ""
    assert read("generate", tokens=[]).tokens == []


def test_many_tokens_are_read_by_pieces_and_faults_are_named_as_in_few() -> None:
    tokens = [token * 7919 % 150000 for token in range(30000)]
    for op in ("generate", "score", "detokenize"):
        found = read(op, id=3, tokens=tokens)
        assert type(found) is protocol.OPERATIONS[op] and found.id == 3
        assert type(found.tokens) is array.array and found.tokens.tolist() == tokens
    for last, field in (
        ("-1]}", "tokens[30000]"), ("1.5]}", "tokens[30000]"), ('"a,b"]}', "tokens[30000]"),
        ("[[1,2]]]}", "tokens[30000]"), ('1],"x":1}', "x"), ("1],}", ""), ("]}", ""),
    ):  # fmt: skip
        body = f'{{"op":"detokenize","tokens":{json.dumps(tokens)[:-1]}, {last}'
        assert refused(reading.read(body.encode())) == ("bad-field" if field else "bad-json", field)


def test_a_message_of_too_many_values_is_refused_before_it_is_decoded() -> None:
    lists = b'{"op":"chat","id":"a","messages":[' + b"[]," * 1_200_000 + b"[]]}"
    tracemalloc.start()
    found = reading.read(lists)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused(found) == ("bad-field", "") and found.id == "a"
    assert peak < 1 << 20
    within = b'{"op":"detokenize","tokens":[' + b"1," * (protocol.TOKENS_LIMIT + 10) + b"1]}"
    assert refused(reading.read(within)) == ("bad-field", "tokens")


@pytest.mark.parametrize(
    "content",
    [b"[" + b"{}," * protocol.PARTS_LIMIT + b"0]", b"[" + b"1.234567890123456789e-300," * 10500 + b"0]",
     b" " * protocol.STRUCTURE_LIMIT + b"0"],
)  # fmt: skip
def test_a_chat_is_made_of_texts(content: bytes) -> None:
    for op in (b'"chat"', b'"ch\\u0061t"'):
        found = reading.read(b'{"op":' + op + b',"messages":[{"role":"user","content":' + content + b"}]}")
        assert refused(found) == ("bad-field", "messages")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: json.dumps({"op": text}).encode()))
def test_any_bytes_are_a_request_or_an_error(body: bytes) -> None:
    found = reading.read(body)
    assert isinstance(found, protocol.Request) or refused(found)[0] in CODES


async def test_what_waits_to_be_read_is_bounded_and_keeps_its_order() -> None:
    read: list[Any] = []
    text = b'{"op":"tokenize","id":%d,"text":"' + b"a" * (protocol.TEXT_LIMIT - 1) + b'"}'
    bodies = [text % 1, text % 2, b'{"op":"status","id":3}', text % 4, text % 5]
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            box = inbox.Inbox(nursery, lambda letter, found: read.append((letter.peer, found)))
            for peer, body in [(b"a", body) for body in bodies] + [(b"b", b'{"op":"status","id":6}'), (b"c", text % 7)]:
                box.put(inbox.Letter(peer, peer.decode(), [peer], zmq.Frame(body)))
            # Nobody waits behind another client, and more than two long ones are more than one client may have waiting.
            assert [found.id for peer, found in read if peer != b"a"] == [6]
            assert [(found.code, found.id) for peer, found in read if peer == b"a"] == [("busy", 4), ("busy", 5)]
            del read[:]
            box.forget(b"c")
        assert [(peer, found.id) for peer, found in read] == [(b"a", 1), (b"a", 2), (b"a", 3)]


def test_readme_shows_the_types() -> None:
    """Print `schema.operations()` and `schema.fields()` into the README when the types change."""
    readme = (ROOT / "README.md").read_text()
    for made in (schema.operations(), schema.fields()):
        missing = [line for line in made.splitlines() if line not in readme.splitlines()]
        assert not missing
    for code in CODES | {"busy", "too-long"}:
        assert f"`{code}`" in readme


def test_the_schema_names_every_field() -> None:
    made = schema.schema()
    assert json.loads(json.dumps(made)) == made
    requests = [made["$defs"][kind.__name__] for kind in protocol.OPERATIONS.values()]
    for kind, found in zip(protocol.OPERATIONS.values(), requests, strict=True):
        assert set(found["properties"]) == {"op", *kind.__struct_fields__}
        assert found["additionalProperties"] is False
        assert all("description" in found["properties"][field] for field in kind.__struct_fields__)
