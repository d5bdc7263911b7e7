"""Writes a GGUF file: header first, then tensors in order as pieces come, never holding more than one piece.

Owns the byte layout (ggml/docs/gguf.md, version 3) and that an unfinished file never stands under its final name.
"""
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from ..hyper import Metadata

ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS: dict[type, tuple[int, str]] = {bool: (7, "<?"), int: (4, "<I"), float: (6, "<f")}


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _array(values: list[Any]) -> bytes:
    if not values:
        raise ValueError("an empty array has no type")
    if isinstance(values[0], str):
        return struct.pack("<IQ", _STRING, len(values)) + b"".join(map(_string, values))
    kind, dtype = {bool: (7, "?"), int: (5, "<i4"), float: (6, "<f4")}[type(values[0])]
    return struct.pack("<IQ", kind, len(values)) + np.array(values, dtype).tobytes()


def encode_value(value: object) -> bytes:
    """Type and value: str, bool, int (u32; u64 beyond), float (f32), or a list of str, bool, int (i32) or float."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, list):
        return struct.pack("<I", _ARRAY) + _array(value)
    if type(value) is int and not 0 <= value < 1 << 32:
        return struct.pack("<Iq", 11, value)
    kind, layout = _SCALARS[type(value)]
    return struct.pack("<I", kind) + struct.pack(layout, value)


def encode_header(metadata: Metadata, tensors: Iterable[tuple[str, tuple[int, ...], int, int]]) -> bytes:
    """The header with its padding. tensors: (name, shape with columns first, type, bytes), laid out in this order."""
    infos, offset, count = [], 0, 0
    for name, shape, type_, nbytes in tensors:
        infos.append(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_, offset))
        offset += padded(nbytes)
        count += 1
    parts = [b"GGUF", struct.pack("<IQQ", 3, count, len(metadata))]
    parts += [_string(key) + encode_value(value) for key, value in metadata.items()]
    header = b"".join(parts + infos)
    return header + bytes(padded(len(header)) - len(header))


def padded(n: int) -> int:
    return (n + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that gets its name when it is complete, and vanishes when it is not."""
    partial = f"{os.fspath(path)}.partial"
    try:
        with open(partial, "wb", buffering=0) as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise
