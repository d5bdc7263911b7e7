"""Messages that nobody should send: requests made by the protocol's own types and then spoilt, and bytes of any kind.

Owns what is sent, by a seed; knows the fields from the package's types, so that new ones are spoilt too. `shutdown` is
never among them.
"""

from __future__ import annotations

import json
import random
import types
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
from hearthd.daemon import protocol

BLOCK = 1000  # messages of one seed
KINDS = [kind for kind in typing.get_args(protocol.AnyRequest) if kind is not protocol.Shutdown]
TEXTS = ("", "a", "abc", "r1", "once upon a time", "\x00", "\u2028", "日本", "\U0001f600", "x" * 300, "null", "-1",
         "{}", "<|im_start|>", "\\", '"', "role", "layer", "greedy")  # fmt: skip
NUMBERS = (0, 1, -1, 2, 3, 7, 16, 63, 64, 65, 100, 255, 256, 639, 640, 4096, 1 << 16, 1 << 24, (1 << 31) - 1, 1 << 31,
           (1 << 32) - 1, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64, -(1 << 31), -(1 << 63), 10**40)  # fmt: skip
REALS = (0.0, -0.0, 0.5, 1.0, 1.5, -1.5, 1e-300, 5e-324, 1e308, -1e308, 0.1, 1e22, 3.0000000000000001)
PIECES = (b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u", b"\\ud800", b"null", b"true", b"-", b"1e999",
          b"1e-999", b"NaN", b"Infinity", b"0x1", b"00", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\x00",
          b"\xef\xbb\xbf", b"/**/", b'"op":', b'"id":', b'"tokens":[', b'"sampling":{', b'"v":2',
          b"99999999999999999999999999")  # fmt: skip


class Bodies:
    """Endless messages; those of block N of a seed are the same every time. largest: bytes of a message, at most about.

    tokens: most that a request that turns out right may generate: a living daemon would be busy with nothing else.
    """

    def __init__(self, seed: int, *, largest: int = 1 << 20, tokens: int | None = None) -> None:
        self._seed, self._largest, self._tokens = seed, largest, tokens

    def block(self, number: int) -> Iterator[bytes]:
        """BLOCK messages."""
        chance = random.Random(f"{self._seed}/{number}")
        pool = [self._request(chance) for _ in range(40)]
        for at in range(BLOCK):
            way = chance.random()
            if way < 0.45:
                body = self._request(chance)
                pool[at % len(pool)] = body
            elif way < 0.95:
                body = _spoilt(chance, chance.choice(pool))
            else:
                body = chance.randbytes(chance.randrange(200))
            if chance.random() < 0.0005:
                body = _large(chance, self._largest)
            yield body if b"shutdown" not in body else b"{}"

    def _request(self, chance: random.Random) -> bytes:
        kind = chance.choice(KINDS)
        fields = msgspec.structs.fields(kind)
        told: dict[str, Any] = {"op": kind.__struct_config__.tag}
        for field in fields:
            if chance.random() < 0.35:
                right = chance.random() < 0.9
                told[field.encode_name] = _of(chance, field.type) if right else _any(chance)
        if chance.random() < 0.1:
            told[chance.choice(TEXTS)] = _any(chance)
        if chance.random() < 0.05:
            told["op"] = _any(chance)
        if self._tokens is not None and "max_tokens" not in told and "stream" in kind.__struct_fields__:
            told["max_tokens"] = chance.randrange(self._tokens + 1)
        pairs = list(told.items())
        if chance.random() < 0.2:
            chance.shuffle(pairs)
        return json.dumps(dict(pairs), ensure_ascii=chance.random() < 0.5).encode(errors="replace")


def frames(chance: random.Random, body: bytes) -> list[bytes]:
    """A message around a body: mostly as REQ and DEALER send it, else in any other way."""
    way = chance.random()
    if way < 0.7:
        return [b"", body]
    if way < 0.85:
        return [body]
    return chance.choice(
        ([b""], [b"", b""], [b"", b"", body], [body, b""], [b"x", body], [b"", body, b""], [b""] * 50 + [body],
         [chance.randbytes(5)] * chance.randrange(1, 9), [body] * 3, [body, body], [b"", chance.randbytes(300), body])
    )  # fmt: skip


def _of(chance: random.Random, kind: Any, depth: int = 0) -> Any:
    """A value of a field's type, mostly within its limits."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _of(chance, inner[0], depth)
    if origin in (typing.Union, types.UnionType):
        return _of(chance, chance.choice(inner), depth)
    if origin is typing.Literal:
        return chance.choice(inner)
    if origin is list:
        return [_of(chance, inner[0], depth + 1) for _ in range(chance.choice((0, 1, 1, 2, 5, 30)))]
    if origin is dict:
        if depth < 2 and chance.random() < 0.7:  # a message of a chat
            return {"role": chance.choice(("user", "assistant", "system", "tool")), "content": chance.choice(TEXTS)}
        return {chance.choice(TEXTS): _any(chance) for _ in range(chance.randrange(4))}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {
            field.encode_name: _of(chance, field.type, depth + 1)
            for field in msgspec.structs.fields(kind)
            if chance.random() < 0.4
        }
    if kind is bool:
        return chance.random() < 0.5
    if kind is int:
        return chance.randrange(640) if chance.random() < 0.8 else chance.choice(NUMBERS)
    if kind is float:
        return chance.choice((0, 0.0, 0.5, 1, 1.0)) if chance.random() < 0.6 else chance.choice(REALS)
    if kind is str:
        return chance.choice(TEXTS)
    return _any(chance) if kind is Any else None


def _any(chance: random.Random, depth: int = 0) -> Any:
    """A JSON value of any kind."""
    way = chance.randrange(8 if depth < 3 else 5)
    if way < 5:
        return (None, chance.random() < 0.5, chance.choice(NUMBERS), chance.choice(REALS), chance.choice(TEXTS))[way]
    if way < 7:
        return [_any(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(TEXTS): _any(chance, depth + 1) for _ in range(chance.randrange(4))}


def _spoilt(chance: random.Random, body: bytes) -> bytes:
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(len(body) + 1)
        way = chance.randrange(6)
        if way == 0:
            body = body[:at] + chance.choice(PIECES) + body[at:]
        elif way == 1:
            body = body[:at] + body[at + chance.choice((1, 1, 2, 8)) :]
        elif way == 2:
            body = body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :]
        elif way == 3:
            body = body[:at]
        elif way == 4:
            end = min(len(body), at + chance.randrange(1, 40))
            body = body[:end] + body[at:end] * chance.choice((1, 1, 3, 20)) + body[end:]
        else:
            body = body[:at] + chance.choice(PIECES) + body[at + 1 :]
    return body


def _large(chance: random.Random, largest: int) -> bytes:
    """One of the ways to be long."""
    size = chance.randrange(1000, max(largest, 1001))
    return chance.choice(
        (
            lambda: b"[" * size,
            lambda: b'{"op":' * (size // 6),
            lambda: b'{"op":"generate","tokens":[' + b"1," * (size // 2) + b"1]}",
            lambda: b'{"op":"tokenize","text":"' + b"a" * size + b'"}',
            lambda: b'{"op":"tokenize","text":"' + b"\\u0061" * (size // 6) + b'"}',
            lambda: b'{"op":"generate","prompt":"a","max_tokens":1,"stop":["' + b"ab" * (size // 2) + b'"]}',
            lambda: b'{"op":"status","id":"' + b"i" * size + b'"}',
            lambda: b'{"op":"detokenize","tokens":[' + b"99999999999," * (size // 12) + b"0]}",
            lambda: b'{"op":"chat","messages":[' + b'{"role":"user"},' * (size // 16) + b"{}]}",
            lambda: b'{"op":"status",' + b'"a":1,' * (size // 6) + b'"a":1}',
            lambda: b'{"op":"score","tokens":[' + b"1" * size + b"]}",
            lambda: b" " * size + b'{"op":"status"}',
            lambda: chance.randbytes(size),
        )
    )()
