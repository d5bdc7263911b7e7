"""The commands of hearthctl, grouped by what they need. Here: what they share; no command and no policy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..client import Client


class Add(Protocol):
    """How a group registers a command."""

    def __call__(self, name: str, help: str, run: object, *, json: bool = False) -> argparse.ArgumentParser: ...


class CommandError(Exception):
    """A command that cannot be done; with the exit code if it is not 1."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def connect(given: argparse.Namespace) -> Client:
    """The client that the common flags describe."""
    from ..client import Client

    return Client(given.control, keys=given.keys, timeout=given.timeout)


def print_json(data: object) -> None:
    """One document, indented; numpy and msgspec values welcome."""
    import msgspec

    from ..utf8 import json

    sys.stdout.write(msgspec.json.format(json(data), indent=2).decode() + "\n")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they need; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    columns = list(zip(*cells, strict=True)) if cells else [()] * len(head)
    right = [bool(column) and all(cell[:1].isdigit() or cell in ("", "-") for cell in column) for column in columns]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()

    return "\n".join([line(head), *map(line, cells)])


def token_list(text: str) -> list[int]:
    """`1,2,3` or `1 2 3`; `-` reads standard input. For argparse."""
    if text == "-":
        text = read_stdin()
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a list of token ids") from None


def number_list(text: str) -> list[int]:
    """`0,3,8-11`. For argparse."""
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            these = range(int(first), int(last) + 1) if dash else [int(first)]
            if not these:
                raise argparse.ArgumentTypeError(f"{part[:40]!r} counts down: {last}-{first}")
            found += these
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a list such as 0,3,8-11") from None
    return found


def read_stdin() -> str:
    """All of standard input. Raises CommandError when it is not UTF-8, whatever the locale says of it."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise CommandError(f"standard input is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}",
                           2) from None  # fmt: skip


def utf8(text: str) -> str:
    """A text of the command line itself. Raises CommandError for bytes that are not UTF-8 (surrogates in Python)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CommandError(f"the command line has a text that is not UTF-8: {text[:40]!a}", 2) from None
    return text


def text_or_stdin(text: str | None) -> str:
    """The argument; `-`, or nothing where a pipe is there, means standard input, less the one newline at its end that
    `echo` and every editor put there: a model would continue after it, on another line.
    """
    if text == "-" or (text is None and not sys.stdin.isatty()):
        return read_stdin().removesuffix("\n")
    return utf8(text or "")


def text_or_tokens(text: str | None, tokens: Sequence[int] | None) -> str | None:
    """The text; None beside token ids. Raises CommandError when both are given."""
    if tokens is None:
        return text_or_stdin(text)
    if text is not None:
        raise CommandError("a text and --tokens exclude each other", 2)
    return None
