"""The protocol's types as a JSON Schema, and as the tables that the README shows. Made from the types alone."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from . import protocol

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """A schema of requests. Under `$defs` also of replies, of what `status` answers in `data`, and of telemetry."""
    kinds: dict[str, Any] = {
        "request": protocol.AnyRequest,
        "reply": protocol.AnyReply,
        "status": protocol.StatusData,
        "telemetry": protocol.AnyTelemetry,
    }
    roots, parts = msgspec.json.schema_components(kinds.values(), ref_template="#/$defs/{name}")
    return {
        "$schema": DIALECT,
        "title": f"hearthd's control protocol, version {protocol.VERSION}",
        "$ref": "#/$defs/request",
        "$defs": {**dict(zip(kinds, roots, strict=True)), **parts},
    }


def operations() -> str:
    """Every operation, in Markdown."""
    rows = [f"| `{name}` | {(kind.__doc__ or '').rstrip('.')} |" for name, kind in protocol.OPERATIONS.items()]
    return "\n".join(["| `op` | what it does |", "| --- | --- |", *rows]) + "\n"


def fields() -> str:
    """Every field of every request, in Markdown; what several operations have alike stands in one line."""
    shared = {field.name for field in _fields(protocol.Request)}
    holders: dict[tuple[str, str], list[str]] = {row: ["all"] for row in _rows(protocol.Request)}
    for name, kind in protocol.OPERATIONS.items():
        for row in _rows(kind, without=shared):
            holders.setdefault(row, []).append(f"`{name}`")
    lines = [f"| `{name}` | {', '.join(names)} | {rest} |" for (name, rest), names in holders.items()]
    return "\n".join(["| field | of | type | default | meaning |", "| --- | --- | --- | --- | --- |", *lines]) + "\n"


def _fields(kind: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    return typing.cast(inspect.StructType, inspect.type_info(kind)).fields


def _rows(
    kind: type[msgspec.Struct], prefix: str = "", without: typing.Container[str] = ()
) -> Iterator[tuple[str, str]]:
    """Name of a field, and the rest of its line; a kind's own fields come before those that it has from a wider one."""
    for field in sorted(_fields(kind), key=lambda field: field.name not in kind.__annotations__):
        if field.name in without:
            continue
        found, meaning = field.type, ""
        while isinstance(found, inspect.Metadata):
            meaning = meaning or (found.extra_json_schema or {}).get("description", "")
            found = found.type
        if isinstance(found, inspect.StructType):
            yield from _rows(found.cls, prefix=f"{field.name}.")
        else:
            yield f"{prefix}{field.name}", f"{_type(found)} | {_default(field)} | {meaning}"


def _type(found: inspect.Type) -> str:
    match found:
        case inspect.Metadata():
            return _type(found.type)
        case inspect.UnionType():
            return " or ".join(_type(one) for one in found.types if not isinstance(one, inspect.NoneType))
        case inspect.StrType():
            return "text" + (f", at most {found.max_length} characters" if found.max_length else "")
        case inspect.IntType() | inspect.FloatType():
            name = "integer" if isinstance(found, inspect.IntType) else "number"
            if found.le is None or found.le >= 1 << 31:
                return name
            return f"{name}, {found.ge} to {found.le}"
        case inspect.BoolType():
            return "boolean"
        case inspect.ListType():
            number = f"{found.min_length} to {found.max_length}" if found.min_length else f"at most {found.max_length}"
            return f"list of {number}: {_type(found.item_type)}"
        case inspect.DictType(value_type=inspect.FloatType() as value, key_type=inspect.IntType() as key):
            return f"object of at most {found.max_length}: {_type(value)}; keys: {_type(key)}"
        case inspect.LiteralType():
            return ", ".join(f"`{value}`" for value in found.values)
    return "object"


def _default(field: inspect.Field) -> str:
    if field.required:
        return "required"
    if field.default_factory is not msgspec.NODEFAULT:
        return f"`{msgspec.json.encode(field.default_factory()).decode()}`"
    return "none" if field.default in (None, "") else f"`{msgspec.json.encode(field.default).decode()}`"
