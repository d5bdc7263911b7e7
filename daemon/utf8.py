"""Texts and messages that every reader can decode, though names of files are bytes. Owns how a stray byte is written.

Python keeps bytes of a file's name that are not UTF-8 as lone surrogates (PEP 383). JSON, terminals and the service
manager take none; such a byte is shown as `\\xff`. What opens the file keeps the name as it is.
"""

from __future__ import annotations

import re

import msgspec

_encoder = msgspec.json.Encoder()


def plain(text: str) -> str:
    """The text, encodable: stray bytes as `\\xff`, other lone surrogates as `\\ud800`."""
    if text.isascii():
        return text
    shown = re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", text)
    return shown.encode("utf-8", "backslashreplace").decode()


def json(value: object) -> bytes:
    """JSON of anything that msgspec encodes; only a value with stray bytes in it pays for the look at its texts."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return _encoder.encode(_plain(msgspec.to_builtins(value)))


def _plain(value: object) -> object:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
