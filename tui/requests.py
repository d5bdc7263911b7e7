"""Panel: the requests in progress, one line each."""

from __future__ import annotations

from collections.abc import Sequence

from hearthd.daemon.protocol import RequestRow
from hearthd.tui import marks, units
from hearthd.tui.collector import Snapshot
from hearthd.tui.panel import Panel
from rich.text import Text

_PHASES = {"queued": marks.DIM, "prompt": marks.PROMPT, "generate": marks.GENERATE}
# Title, width, aligned right. The id takes what is left; the gauge is for wide screens.
_COLUMNS = (("op", 8, False), ("phase", 8, False), ("prompt", 13, True), ("generated", 11, True), ("rate", 11, True))
_TIME = 7
_GAUGE = 24


class RequestPanel(Panel):
    TITLE = "Requests"

    def title(self, snapshot: Snapshot) -> str:
        number = 0 if snapshot.stats is None else len(snapshot.stats.requests)
        return f"{self.TITLE} {number}" if number else self.TITLE

    def note(self, snapshot: Snapshot, width: int) -> Text:
        waiting = 0 if snapshot.stats is None else snapshot.stats.waiting
        return marks.span(f"{waiting}", marks.WARNING).append(" waiting", marks.DIM) if waiting else Text()

    def heads(self, snapshot: Snapshot, width: int) -> Sequence[Text]:
        ident, gauge = _room(width)
        text = Text(f"{'id':<{ident}}")
        for name, cells, right in _COLUMNS:
            text.append(f" {name:>{cells}}" if right else f" {name:<{cells}}")
        text.append(f" {'time':>{_TIME}}")
        if gauge:
            text.append("  progress")
        text.stylize(marks.DIM)
        return [text]

    def lines(self, snapshot: Snapshot, width: int, height: int) -> Sequence[Text]:
        if snapshot.stats is None or not snapshot.stats.requests:
            return [marks.span("none", marks.FAINT)]
        return [_line(row, width) for row in snapshot.stats.requests]


def _room(width: int) -> tuple[int, int]:
    """Cells for the id and for the gauge."""
    fixed = sum(cells + 1 for _, cells, _ in _COLUMNS) + _TIME + 1
    gauge = _GAUGE if width - fixed - _GAUGE - 2 >= 12 else 0
    return max(4, min(24, width - fixed - (gauge + 2 if gauge else 0))), gauge


def _line(row: RequestRow, width: int) -> Text:
    ident, gauge = _room(width)
    style = _PHASES.get(row.phase, marks.TEXT)
    text = marks.span(f"{units.shorten_middle(row.id, ident):<{ident}}", marks.TEXT)
    text.append(f" {units.shorten(row.op, 8):<8}", marks.DIM).append(f" {units.shorten(row.phase, 8):<8}", style)
    # Before the engine is there, a prompt has no tokens yet.
    prompt = f"{row.prompt_done}/{row.prompt_tokens}" if row.prompt_tokens else "—"
    text.append(f" {prompt:>13}", style if row.phase == "prompt" else marks.TEXT)
    written = f"{row.generated}/{row.max_tokens}" if row.max_tokens else "—"
    text.append(f" {written:>11}", style if row.phase == "generate" else marks.TEXT)
    rate = units.tokens(row.rate) if row.rate > 0 else "—"
    text.append(f" {rate:>11}", style).append(f" {units.duration(row.seconds):>{_TIME}}", marks.TEXT)
    if gauge:
        generating = row.phase == "generate"
        done, total = (row.generated, row.max_tokens) if generating else (row.prompt_done, row.prompt_tokens)
        text.append("  ").append_text(marks.gauge(done, total, gauge, style))
    return text
