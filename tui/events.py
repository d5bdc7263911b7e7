"""Panel: standing warnings first, then what happened, newest first, each with its time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from hearthd.tui import marks, units
from hearthd.tui.collector import Snapshot
from hearthd.tui.panel import Panel
from rich.text import Text

# A letter beside the colour: the level must not hang on colour alone.
_LEVELS = {"info": (" ", marks.DIM), "warning": ("W", marks.WARNING), "error": ("E", marks.ERROR)}
_INDENT = 11


class EventPanel(Panel):
    TITLE = "Events"
    AGES = False

    def note(self, snapshot: Snapshot, width: int) -> Text:
        warnings = 0 if snapshot.status is None else len(snapshot.status.warnings)
        text = Text()
        if warnings:
            text.append(f"{warnings} warning{'s' if warnings > 1 else ''}", marks.WARNING)
        return text

    def lines(self, snapshot: Snapshot, width: int, height: int) -> Sequence[Text]:
        lines: list[Text] = []
        if snapshot.status is not None:
            for warning in snapshot.status.warnings:
                lines += _entry("in force", "warning", warning.code, warning.message, width)
        for event in snapshot.events:
            lines += _entry(units.clock(event.time), event.level, event.code, event.message, width)
        return lines or [marks.span("nothing yet", marks.FAINT)]


def _entry(when: str, level: str, code: str, message: str, width: int) -> list[Text]:
    """One entry, wrapped under its own text."""
    letter, style = _LEVELS.get(level, _LEVELS["info"])
    words = f"{code}: {message}" if code else message
    parts = textwrap.wrap(words, max(10, width - _INDENT)) or [""]
    first = marks.span(f"{when:<8} ", marks.DIM).append(f"{letter} ", f"bold {style}")
    if code and parts[0].startswith(f"{code}:"):
        first.append(code, style if level != "info" else marks.TEXT).append(parts[0][len(code) :], marks.TEXT)
    else:
        first.append(parts[0], marks.TEXT)
    return [first, *(Text(" " * _INDENT).append(part, marks.TEXT) for part in parts[1:])]
