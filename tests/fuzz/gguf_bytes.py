"""GGUF headers with every byte under control: read, changed, written back in front of data that stays where it is.

Owns the layout (ggml/docs/gguf.md, version 3), written anew so that neither the reader under test nor its writer is
trusted, and can say what no honest writer would: a key twice, an array whose length is a lie.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
SCALARS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
INTEGERS = (U8, I8, U16, I16, U32, I32, U64, I64)
FLOATS = (F32, F64)
NAMES = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64")
FILLER = b"fuzz.filler"  # a key nobody reads, as long as is needed for the data to begin where it did
ROOM = 1 << 16  # bytes for a header to grow; one that grows further gets a file of its own


class List(NamedTuple):
    """An array: type of its elements, the elements, and the length that is written (None: the true one)."""

    element: int
    values: Sequence[Any]
    told: int | None = None


def bounds(kind: int) -> tuple[int, int]:
    """Lowest and highest value of an integer type."""
    bits = 8 * struct.calcsize("<" + SCALARS[kind])
    return (0, (1 << bits) - 1) if kind in (U8, U16, U32, U64) else (-(1 << bits - 1), (1 << bits - 1) - 1)


def string(value: bytes, told: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if told is None else told) + value


def encode(kind: int, value: Any) -> bytes:
    """A value without its type. A string is bytes; an array a List."""
    if kind == STRING:
        return string(value)
    if kind != ARRAY:
        return struct.pack("<" + SCALARS[kind], value)
    head = struct.pack("<IQ", value.element, len(value.values) if value.told is None else value.told)
    if value.element in SCALARS:
        return head + struct.pack(f"<{len(value.values)}{SCALARS[value.element]}", *value.values)
    return head + b"".join(encode(value.element, inner) for inner in value.values)


@dataclass(frozen=True)
class Key:
    """One metadata entry: name, type of the value, and the value's bytes without the type."""

    name: bytes
    kind: int
    raw: bytes

    @classmethod
    def of(cls, name: bytes, kind: int, value: Any) -> Key:
        return cls(name, kind, encode(kind, value))

    @cached_property
    def value(self) -> Any:
        """int, float, bytes of a string, or a List."""
        return _value(self.raw, 0, self.kind)[0]

    def encoded(self) -> bytes:
        return string(self.name) + struct.pack("<I", self.kind) + self.raw

    def __str__(self) -> str:
        value = self.value
        shown = f"[{len(value.values)} x {NAMES[value.element]}]" if self.kind == ARRAY else repr(value)[:60]
        return f"{NAMES[self.kind]} {shown}"


class Tensor(NamedTuple):
    """An entry of the directory; the offset counts from where the data begins."""

    name: bytes
    shape: tuple[int, ...]
    kind: int
    offset: int

    def encoded(self) -> bytes:
        return string(self.name) + struct.pack(f"<I{len(self.shape)}QIQ", len(self.shape), *self.shape, self.kind,
                                               self.offset)  # fmt: skip


@dataclass(frozen=True)
class File:
    """One GGUF file: keys and tensors, and where its data lies."""

    path: Path
    keys: tuple[Key, ...]
    tensors: tuple[Tensor, ...]
    data: int  # offset of the data in `path`

    def start(self) -> int:
        """Where the data begins in a copy: behind the header and its room."""
        return (self.data + ROOM + 4095) // 4096 * 4096

    def header(self) -> bytes:
        """The bytes before the data: `start()` of them, or more when that is too few."""
        count = len(self.keys) + 1
        front = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), count)
        front += b"".join(key.encoded() for key in self.keys)
        back = b"".join(tensor.encoded() for tensor in self.tensors)
        filler = Key.of(FILLER, ARRAY, List(U8, b"")).encoded()
        missing = max(0, self.start() - len(front) - len(filler) - len(back))
        whole = front + Key.of(FILLER, ARRAY, List(U8, bytes(missing))).encoded() + back
        return whole + bytes(-len(whole) % 32)

    def with_keys(self, keys: Sequence[Key]) -> File:
        return replace(self, keys=tuple(keys))

    def with_tensors(self, tensors: Sequence[Tensor]) -> File:
        return replace(self, tensors=tuple(tensors))


def read(path: Path) -> File:
    """The header of an honest file."""
    raw = path.read_bytes()
    tensors, keys = struct.unpack_from("<QQ", raw, 8)
    at = 24
    found: list[Key] = []
    for _ in range(keys):
        name, at = _value(raw, at, STRING)
        (kind,) = struct.unpack_from("<I", raw, at)
        end = _value(raw, at + 4, kind)[1]
        found.append(Key(name, kind, raw[at + 4 : end]))
        at = end
    directory: list[Tensor] = []
    for _ in range(tensors):
        name, at = _value(raw, at, STRING)
        (dimensions,) = struct.unpack_from("<I", raw, at)
        *shape, type_, offset = struct.unpack_from(f"<{dimensions}QIQ", raw, at + 4)
        directory.append(Tensor(name, tuple(shape), type_, offset))
        at += 4 + 8 * dimensions + 12
    alignment = next((key.value for key in found if key.name == b"general.alignment"), 32)
    return File(path, tuple(found), tuple(directory), (at + alignment - 1) // alignment * alignment)


def _value(raw: bytes, at: int, kind: int) -> tuple[Any, int]:
    """A value and where it ends."""
    if kind == STRING:
        (length,) = struct.unpack_from("<Q", raw, at)
        return raw[at + 8 : at + 8 + length], at + 8 + length
    if kind != ARRAY:
        layout = "<" + SCALARS[kind]
        return struct.unpack_from(layout, raw, at)[0], at + struct.calcsize(layout)
    element, told = struct.unpack_from("<IQ", raw, at)
    at += 12
    if element in SCALARS:
        layout = f"<{min(told, (len(raw) - at) // struct.calcsize(SCALARS[element]))}{SCALARS[element]}"
        return List(element, struct.unpack_from(layout, raw, at)), at + struct.calcsize(layout)
    values: list[Any] = []
    while len(values) < told and at < len(raw):
        inner, at = _value(raw, at, element)
        values.append(inner)
    return List(element, values), at
