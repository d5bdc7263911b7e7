"""Bytes to requests: what `protocol` declares, checked, with an error that a person understands. No sockets, no model.

`read` is pure and answers everything with a request or an Error. Decoding holds the GIL, so what is long is weighed
before it is decoded, a piece at a time: how many values it has, and how much of it is not inside of strings.
"""

from __future__ import annotations

import array
import functools
import math
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import Raw, Struct

from . import protocol

SMALL = 16 << 10  # bytes of a body that may be read on the event loop's thread: a fraction of a millisecond, 2 at worst
VALUES_LIMIT = protocol.TOKENS_LIMIT + 1000  # of a message, as the commas between them tell
MANY = 8 << 10  # token ids that are a list of Python's numbers
_PIECE = 64 << 10  # bytes that are weighed or decoded at a time, with the GIL

_NESTED = {"sampling": protocol.Sampling, "select": protocol.Selection}
_WORDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "array": "a list",
          "object": "an object", "null": "null"}  # fmt: skip


class _Head(Struct):
    """What an error has to know of a message whose rest may be anything."""

    id: Raw = Raw(b'""')
    op: Raw = Raw(b'""')


class _Misplaced(msgspec.ValidationError):
    """What is wrong with an element of a list that was decoded by pieces."""


def _float(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError("Number out of range")
    return value


# msgspec's own reading of untyped numbers takes 8 microseconds for one such as 1.234567890123456789e-300.
_requests = msgspec.json.Decoder(protocol.AnyRequest, float_hook=_float)
_heads = msgspec.json.Decoder(_Head)
_ids = msgspec.json.Decoder(protocol.Id)
_tokens = msgspec.json.Decoder(protocol.Tokens)
_texts = msgspec.json.Decoder(str)


def read(body: bytes) -> protocol.AnyRequest | protocol.Error:
    """The request, or the error that answers a body that is none. Raises nothing."""
    values = 0
    if len(body) > SMALL:
        weight = _weighed(body)
        if isinstance(weight, protocol.Error):
            return weight
        values = weight
    try:
        request = (_by_pieces(body) if values > MANY else None) or _requests.decode(body)
    except (ValueError, RecursionError) as error:  # all of msgspec's errors are ValueErrors, and so is broken UTF-8
        return _explained(body, error)
    return _fault(request) or request


def first_id(body: bytes) -> protocol.Id:
    """The id of a message that nobody will read, if it stands at its beginning; else an empty one."""
    start = re.match(
        rb'\s*\{(?:\s*"(?:op|v|stream)"\s*:\s*(?:"[a-z]*"|\d+|true|false)\s*,)*\s*"id"\s*:\s*("(?:[^"\\]|\\.)*"|[-+.eE\d]+)\s*[,}]',
        body[:2048],
    )
    return _id(start[1]) if start else ""


def _id(text: bytes | Raw) -> protocol.Id:
    """An id as it may be echoed; empty where it may not."""
    try:
        id = _ids.decode(text)
    except (ValueError, RecursionError):
        return ""
    return "" if _long(id) else id


def _text(text: Raw) -> str:
    """A value that should be text; what it is else, as it stands there."""
    try:
        return _texts.decode(text)
    except (ValueError, RecursionError):
        return bytes(memoryview(text)[:80]).decode(errors="replace")


def _long(id: protocol.Id) -> bool:
    return isinstance(id, str) and 4 * len(id) > protocol.ID_LIMIT and len(id.encode()) > protocol.ID_LIMIT


# -- what is long ------------------------------------------------------------------------------------------------------


def _weighed(body: bytes) -> protocol.Error | int:
    """How many values a body has, or the error for one that has too many, or too much for a template."""
    structure = values = 0
    for text in _outside(body):
        structure += len(text)
        values += text.count(b",")
        if values > VALUES_LIMIT:
            message = f"one message may have {protocol.TOKENS_LIMIT} values, this one has more"
            return protocol.Error(id=first_id(body), code="bad-field", message=message)
    if structure <= protocol.STRUCTURE_LIMIT and values <= protocol.PARTS_LIMIT:
        return values
    try:
        head = _heads.decode(body)
    except (ValueError, RecursionError) as error:
        return _explained(body, error)
    if _text(head.op) != "chat":
        return values
    if structure > protocol.STRUCTURE_LIMIT:
        message = f"a chat may have {protocol.STRUCTURE_LIMIT} bytes besides its texts, this one has {structure}"
    else:
        message = f"a chat may have {protocol.PARTS_LIMIT} values, this one has {values}"
    return protocol.Error(id=_id(head.id), code="bad-field", message=message, field="messages")


@functools.cache  # not at the start: READY waits for imports
def _long_requests() -> msgspec.json.Decoder[Any]:
    """Of the requests that have `tokens`, which stay as they came."""
    kinds = (protocol.Generate, protocol.Score, protocol.Detokenize)
    made = [msgspec.defstruct(kind.__name__, [("tokens", Raw, Raw())], bases=(kind,), kw_only=True) for kind in kinds]
    return msgspec.json.Decoder(typing.Union[tuple(made)])  # noqa: UP007  made of values, not of types


def _by_pieces(body: bytes) -> protocol.AnyRequest | None:
    """A request with many token ids, decoded so that others get the GIL in between; None for what is not quite that.

    Its `tokens` are an array of int32: a million of Python's numbers take 36 MB, and 50 ms of the GIL to be freed.
    """
    try:
        found = _long_requests().decode(body)
        text, tokens, start = bytes(found.tokens).strip(), array.array("i"), 1
        while start < len(text):
            end = text.find(b",", start + _PIECE)
            end = end if end >= 0 else len(text) - 1
            try:
                tokens.fromlist(_tokens.decode(b"[" + text[start:end] + b"]"))
            except msgspec.ValidationError as error:
                raise _Misplaced(_moved(str(error), len(tokens))) from None
            start = end + 1
    except _Misplaced:
        raise
    except (ValueError, TypeError, RecursionError):
        return None
    if text[:1] != b"[" or text[-1:] != b"]" or len(tokens) > protocol.TOKENS_LIMIT:
        return None
    kind = protocol.OPERATIONS[str(found.__struct_config__.tag)]
    fields = {field: getattr(found, field) for field in kind.__struct_fields__}
    return typing.cast(protocol.AnyRequest, kind(**fields | {"tokens": tokens}))


def _moved(error: str, by: int) -> str:
    """msgspec's words about a place in a piece of `tokens`, with the place in the whole."""
    return re.sub(r" - at `\$\[(\d+)\]`$", lambda found: f" - at `$.tokens[{int(found[1]) + by}]`", error)


def _outside(body: bytes) -> Iterator[bytes]:
    """What of a JSON text is not in its strings, piece by piece. Of what is no JSON: up to where it stops being it."""
    inside, start = False, 0
    while start < len(body):
        piece = body[start : start + _PIECE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2 and start + _PIECE < len(body):
            piece = piece[:-1]  # a backslash belongs to what follows it
        start += len(piece)
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        yield b"".join(parts[inside::2])
        inside ^= len(parts) % 2 == 0


# -- after decoding ----------------------------------------------------------------------------------------------------


def _fault(request: protocol.AnyRequest) -> protocol.Error | None:
    """What types cannot say."""
    if _long(request.id):
        request.id = ""
        return _refusal(request, "id", f"longer than {protocol.ID_LIMIT} bytes")
    if request.v > protocol.VERSION:
        message = f"this daemon speaks version {protocol.VERSION}, the message is of {request.v}"
        return _refusal(request, "v", message, "version")
    check = _CHECKS.get(type(request))
    return check(request) if check is not None else None


def _refusal(request: protocol.Request, field: str, message: str, code: str = "bad-field") -> protocol.Error:
    return protocol.Error(id=request.id, code=code, message=f"{field}: {message}", field=field)


def _text_or_tokens(request: protocol.Generate | protocol.Score) -> protocol.Error | None:
    name = "prompt" if isinstance(request, protocol.Generate) else "text"
    given = getattr(request, name) is not None
    if given == (request.tokens is not None):
        if given:
            return _refusal(request, "tokens", f"{name} and tokens exclude each other")
        return _refusal(request, name, "missing, and there are no tokens either")
    return None


def _score(request: protocol.Score) -> protocol.Error | None:
    if request.logits_from and not request.logits:
        return _refusal(request, "logits_from", "logits are not asked for")
    return _text_or_tokens(request)


def _depths(request: protocol.Chat) -> protocol.Error | None:
    for field in ("messages", "tools", "template_arguments"):
        if _deep(getattr(request, field)):
            return _refusal(request, field, f"lists and objects deeper than {protocol.DEPTH_LIMIT}")
    return None


def _target(request: protocol.Cancel) -> protocol.Error | None:
    if _long(request.target):
        return _refusal(request, "target", f"longer than {protocol.ID_LIMIT} bytes")
    return None


_CHECKS: dict[type, Callable[[Any], protocol.Error | None]] = {
    protocol.Generate: _text_or_tokens,
    protocol.Score: _score,
    protocol.Chat: _depths,
    protocol.Cancel: _target,
}


def _deep(value: object) -> bool:
    level: list[Any] = [value] if value else []
    for _ in range(protocol.DEPTH_LIMIT + 1):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


# -- errors for people -------------------------------------------------------------------------------------------------


def _explained(body: bytes, error: Exception) -> protocol.Error:
    """The error for a body that is no request, with its id if one can be read, naming the field at fault."""
    try:
        head = _heads.decode(body)
    except (ValueError, RecursionError) as wrong:
        return protocol.Error(id=first_id(body), code="bad-json", message=_not_json(wrong))
    id = _id(head.id)
    op = _text(head.op)
    if op not in protocol.OPERATIONS:
        named = f"{op!r:.80}" if op else "none"
        message = f"unknown operation {named}; known: {', '.join(sorted(protocol.OPERATIONS))}"
        return protocol.Error(id=id, code="unknown-op", message=message, field="op")
    if isinstance(error, RecursionError):
        message = f"lists and objects deeper than {protocol.DEPTH_LIMIT}"
        return protocol.Error(id=id, code="bad-field", message=message)
    if isinstance(error, UnicodeDecodeError) or type(error) is msgspec.DecodeError:
        return protocol.Error(id=id, code="bad-json", message=_not_json(error))
    # msgspec ends with "- at `$.sampling.top_k`" where it knows
    text, _, place = str(error).partition(" - at ")
    of_key = place.startswith("`key` in ")
    field, text = _plainly(protocol.OPERATIONS[op], place.removeprefix("`key` in ").strip("`$").lstrip("."), text)
    text = f"a key {text}" if of_key else text
    return protocol.Error(id=id, code="bad-field", message=f"{field}: {text}" if field else text, field=field)


def _not_json(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"not a message: lists and objects deeper than {protocol.DEPTH_LIMIT}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} in a string"
    if isinstance(error, msgspec.ValidationError):
        return f"not a message: a JSON object is expected, not {_words(str(error).rpartition(', got ')[2])}"
    return f"not JSON: {error}"


def _plainly(kind: type[protocol.Request], place: str, text: str) -> tuple[str, str]:
    """The field at fault and what is wrong with it, from msgspec's words."""
    if found := re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL):
        name = found[1][:80]
        return (f"{place}.{name}" if place else name), _unknown(kind, place, name)
    if found := re.fullmatch(r"Object missing required field `(.*)`", text):
        return (f"{place}.{found[1]}" if place else found[1]), "missing"
    if found := re.fullmatch(r"Expected (`.+`), got (`.+`)", text):
        got = "a decimal number" if found[2] == "`float`" else _words(found[2])
        return place, f"has to be {_words(found[1])}, not {got}"
    if found := re.fullmatch(r"Expected `\w+` (>=|<=) (\S+)", text):
        return place, f"has to be {'at least' if found[1] == '>=' else 'at most'} {found[2].removesuffix('.0')}"
    if found := re.fullmatch(r"Expected `(\w+)` of length (>=|<=) (\d+)", text):
        if found[2] == ">=":
            return place, "empty"
        return place, f"longer than {found[3]}" + " characters" * (found[1] == "str")
    if text.startswith("Invalid enum value"):
        return place, f"has to be one of {', '.join(_choices(kind, place))}"
    if text.endswith("out of range"):
        return place, "the number is out of range"
    return place, text[:200]


def _words(types: str) -> str:
    names = [name for name in types.strip("`").split(" | ") if name != "null" or types == "`null`"]
    if "float" in names and "int" in names:
        names.remove("int")
    return " or ".join(_WORDS.get(name, name) for name in names)


def _choices(kind: type[protocol.Request], place: str) -> tuple[str, ...]:
    return typing.get_args(typing.get_type_hints(kind)[place])


def _unknown(kind: type[protocol.Request], place: str, name: str) -> str:
    """What to say of a field that an operation does not have: where it belongs, or the nearest name."""
    import difflib

    paths = [(field, field) for field in kind.__struct_fields__]
    for outer, nested in _NESTED.items():
        if outer in kind.__struct_fields__:
            paths += [(field, f"{outer}.{field}") for field in nested.__struct_fields__]
    for field, path in paths:
        if field == name:
            return f"unknown in {place or 'this operation'}, {path} is known" if place else f"unknown, it is {path}"
    here = [field for field, path in paths if path == (f"{place}.{field}" if place else field)]
    anywhere = [field for field, _ in paths]
    begun = [[field for field in fields if field.startswith(name.lower())] for fields in (here, anywhere)]
    near = next((found for found in begun if len(found) == 1), [])
    for fields in (here, anywhere):
        near = near or difflib.get_close_matches(name.lower(), fields, n=1)
    if near:
        return f"unknown, {dict(paths)[near[0]]} is the nearest"
    return f"unknown; known: {', '.join(here)}"
