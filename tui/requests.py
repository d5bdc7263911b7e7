"""Panel: the requests in progress, one line each, and the steps that carry them."""

from __future__ import annotations

from collections.abc import Sequence

from hearthd.daemon.protocol import RequestRow, Stats
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
        stats = snapshot.stats or Stats()
        number = max(len(stats.requests), stats.sessions + stats.waiting)  # of many, only some have a line
        return f"{self.TITLE} {number}" if number else self.TITLE

    def note(self, snapshot: Snapshot, width: int) -> Text:
        stats = snapshot.stats or Stats()
        waits = Text()
        if stats.waiting:
            waits.append(f"{stats.waiting}", marks.WARNING).append(" waiting", marks.DIM)
        steps = _steps(stats)
        if not steps or not waits:
            return steps or waits
        both = steps.append("  ").append_text(waits)
        return both if both.cell_len <= width else waits

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


def _steps(stats: Stats) -> Text:
    """`5.1 steps/s of 96 prompt + 4 answer rows`: means of a step; nothing while no step runs."""
    text = Text()
    if stats.steps_rate <= 0:
        return text
    text.append(units.mean(stats.steps_rate), marks.TEXT).append(" steps/s of ", marks.DIM)
    kinds = ((stats.prompt_rows, " prompt", marks.PROMPT), (stats.answer_rows, " answer", marks.GENERATE))
    parts = [marks.span(units.mean(rows), style).append(kind, marks.DIM) for rows, kind, style in kinds if rows > 0]
    one = [units.mean(rows) for rows, *_ in kinds if rows > 0] == ["1"]
    text.append_text(marks.span(" + ", marks.DIM).join(parts) if parts else Text("no"))
    return text.append(" row" if one else " rows", marks.DIM)


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
