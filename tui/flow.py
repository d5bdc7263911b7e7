"""Panels of what flows: tokens through the model, bytes from the disk into memory."""

from __future__ import annotations

from collections.abc import Sequence

from hearthd.daemon.protocol import Stats
from hearthd.tui import marks, units
from hearthd.tui.collector import Curve, Snapshot
from hearthd.tui.panel import Panel
from rich.text import Text

CLASSES = ("demand", "routed", "lookahead", "cursor", "sweep")
_LABEL = 10
_VALUE = 12
_TALL = 12  # lines of a Populate panel that shows a bar for each class


def _history(
    snapshot: Snapshot, curve: Curve, *, label: str, value: str, peak: str, style: str, width: int, rows: int
) -> list[Text]:
    """A labelled value and its plot of `rows` lines; `peak` is put under the value when there is a second row."""
    cells = max(4, width - _LABEL - _VALUE - 1)
    columns = curve.columns(cells, snapshot.histories.window, snapshot.now)
    top = max((v for v in columns if v is not None), default=0.0)
    plot = marks.plot(columns, rows, top, style)
    lines = []
    for row in range(rows):
        line = Text()
        if row == 0:
            line.append(f"{label:<{_LABEL}}", marks.TEXT).append(f"{value:>{_VALUE}}", f"bold {style}")
        elif row == 1:
            line.append(" " * _LABEL).append(f"{peak:>{_VALUE}}", marks.DIM)
        elif row == rows - 1:
            span = units.duration(curve.span(cells, snapshot.histories.window))
            line.append(" " * _LABEL).append(f"{'last ' + span:>{_VALUE}}", marks.DIM)
        line.pad_right(_LABEL + _VALUE + 1 - line.cell_len)
        lines.append(line.append_text(plot[row]))
    return lines


def _peak(curve: Curve) -> float:
    return max(curve.values, default=0.0)


class ThroughputPanel(Panel):
    TITLE = "Throughput"

    def note(self, snapshot: Snapshot, width: int) -> Text:
        stats = snapshot.stats
        if stats is None:
            return Text()
        read = marks.span(units.count(stats.prompt_tokens), marks.TEXT).append(" read  ", marks.DIM)
        written = marks.span(units.count(stats.generated_tokens), marks.TEXT).append(" written", marks.DIM)
        return read + written if read.cell_len + written.cell_len <= width else written

    def lines(self, snapshot: Snapshot, width: int, height: int) -> Sequence[Text]:
        stats = snapshot.stats or Stats()
        rows = max(1, min(4, height // 2))
        lines: list[Text] = []
        for label, now, curve, style in (
            ("prompt", stats.prompt_rate, snapshot.histories.prompt, marks.PROMPT),
            ("generate", stats.generate_rate, snapshot.histories.generate, marks.GENERATE),
        ):
            value = units.tokens(now) if snapshot.link == "up" else "—"
            peak = f"peak {units.tokens(_peak(curve))}"
            lines += _history(
                snapshot, curve, label=label, value=value, peak=peak, style=style, width=width, rows=rows
            )
        return lines


class PopulatePanel(Panel):
    TITLE = "Populate"

    def note(self, snapshot: Snapshot, width: int) -> Text:
        stats = snapshot.stats
        if stats is None:
            return Text()
        if self.size.height < _TALL:
            return marks.span("warm ", marks.DIM).append(units.rate(stats.warm_rate), marks.MAPPED)
        return marks.span(units.size(stats.populated_bytes), marks.TEXT).append(" since the start", marks.DIM)

    def lines(self, snapshot: Snapshot, width: int, height: int) -> Sequence[Text]:
        stats = snapshot.stats
        if stats is None:
            return [marks.span("nothing heard yet", marks.DIM)]
        tall = height >= _TALL - 1
        disk = units.rate(stats.populate_rate) if snapshot.link == "up" else "—"
        curve = snapshot.histories.populate
        peak = f"peak {units.size(_peak(curve))}/s"
        lines = _history(
            snapshot, curve, label="disk", value=disk, peak=peak, style=marks.DISK, width=width, rows=2 if tall else 1
        )
        if tall:
            lines.append(self._warming(snapshot, stats))
            lines += _queue_bars(stats, width)
        else:
            lines.append(_queue_line(stats))
        lines.append(_faults(stats))
        lines.append(_lookahead(stats))
        if tall:
            lines.append(_process(stats))
        return lines

    def _warming(self, snapshot: Snapshot, stats: Stats) -> Text:
        text = marks.span(f"{'warm':<{_LABEL}}", marks.TEXT)
        text.append(f"{units.rate(stats.warm_rate):>{_VALUE}}", f"bold {marks.MAPPED}")
        text.append(f"  {units.size(stats.warm_bytes)}", marks.TEXT)
        eta = snapshot.seconds_to_warm
        if stats.state_note:
            text.append(f"  {stats.state_note}", marks.WARNING)
        elif stats.state == "warm":
            text.append("  all of it", marks.GOOD)
        elif eta is not None:
            text.append("  left ", marks.DIM).append(units.duration(eta), marks.TEXT)
        return text


def _depths(stats: Stats) -> list[tuple[str, int]]:
    return list(zip(CLASSES, [*stats.queue_depths, 0, 0, 0, 0, 0], strict=False))


def _queue_line(stats: Stats) -> Text:
    """All classes in one line, each by its first letter."""
    text = marks.span(f"{'queue':<{_LABEL - 2}}", marks.TEXT)
    for name, depth in _depths(stats):
        text.append(name[0].upper(), marks.DIM).append(f"{units.count(depth, 4):<5}", _depth_style(name, depth))
    return text


def _queue_bars(stats: Stats, width: int) -> list[Text]:
    depths = _depths(stats)
    most = max(depth for _, depth in depths)
    cells = max(4, width - _LABEL - _VALUE - 1)
    lines = []
    for name, depth in depths:
        text = marks.span(f"{name:<{_LABEL}}", marks.TEXT)
        amount = units.count(depth) + (" span " if depth == 1 else " spans")
        text.append(f"{amount:>{_VALUE}} ", _depth_style(name, depth))
        filled = 0 if depth == 0 else max(1, round(cells * depth / most))
        text.append("▪" * filled, _depth_style(name, depth))
        lines.append(text)
    return lines


def _depth_style(name: str, depth: int) -> str:
    if depth == 0:
        return marks.FAINT
    # Somebody waits for a demand: the only depth that is bad news in itself.
    return f"bold {marks.WARNING}" if name == "demand" else marks.TEXT


def _faults(stats: Stats) -> Text:
    text = marks.span("faults/token  ", marks.TEXT)
    major = stats.faults_major_per_token
    text.append(f"{major:.2f}", f"bold {marks.WARNING}" if major >= 1 else f"bold {marks.TEXT}")
    text.append(" major  ", marks.DIM).append(f"{stats.faults_minor_per_token:.1f}", marks.TEXT)
    return text.append(" minor", marks.DIM)


def _lookahead(stats: Stats) -> Text:
    text = marks.span(f"{'lookahead':<{_LABEL}}", marks.TEXT)
    if stats.lookahead_recall is None:
        return text.append("not measured", marks.DIM)
    text.append(units.share(stats.lookahead_recall, 1.0), f"bold {marks.TEXT}").append(" recall  ", marks.DIM)
    return text.append(units.size(stats.lookahead_wasted_bytes), marks.TEXT).append(" wasted", marks.DIM)


def _process(stats: Stats) -> Text:
    text = marks.span(f"{'daemon':<{_LABEL}}", marks.TEXT)
    text.append(f"{stats.cpu_percent:.0f} %", f"bold {marks.TEXT}").append(" cpu  ", marks.DIM)
    return text.append(units.size(stats.private_bytes), marks.TEXT).append(" private", marks.DIM)
