"""The two lines at the top: which daemon, which model, and how far it has come.

Owns the words for being connected, away and paused.
"""

from __future__ import annotations

from hearthd.tui import marks, units
from hearthd.tui.collector import Snapshot
from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

# The way of a model, in the daemon's words.
_WAY = ("mapped", "serving-cold", "warming", "warm")


class Header(Widget):
    """Two lines, redrawn when their text differs."""

    content: reactive[Text] = reactive(Text())

    def __init__(self) -> None:
        super().__init__(id="header")
        self.snapshot: Snapshot | None = None
        self.paused_since: float | None = None

    def show(self, snapshot: Snapshot, paused_since: float | None) -> None:
        self.snapshot, self.paused_since = snapshot, paused_since
        self.compose_lines()

    def on_resize(self) -> None:
        self.compose_lines()

    def compose_lines(self) -> None:
        if self.snapshot is not None and self.size.width > 0:
            self.content = headlines(self.snapshot, self.size.width, self.paused_since)

    def render(self) -> Text:
        return self.content


def headlines(snapshot: Snapshot, width: int, paused_since: float | None) -> Text:
    return Text("\n").join((_who(snapshot, width), _how(snapshot, width, paused_since)))


def _who(snapshot: Snapshot, width: int) -> Text:
    """Model at the left, its shape where there is room, uptime and instruction set at the right."""
    status = snapshot.status
    left = marks.span("hearthtop ", f"bold {marks.MAPPED}")
    if status is None:
        return left.append(" no daemon yet", marks.DIM)
    model = status.model
    right = marks.span(status.isa, marks.DIM)
    if status.isa:
        right.append("  ")
    if snapshot.link == "up":
        right.append("up ", marks.DIM).append(units.duration(status.uptime), marks.TEXT)
    else:
        right.append("was up ", marks.DIM).append(units.duration(status.uptime), marks.DIM)
    room = width - left.cell_len - right.cell_len - 3
    facts = [units.size(model.bytes)]
    if model.experts:
        facts.append(f"{model.layers} layers × {model.experts} experts, {model.experts_used} used")
    if model.architecture:
        facts.append(model.architecture)
    if snapshot.status is not None and width >= 100:
        facts.append(f"context {model.context}")
    if width >= 140:
        facts.append(f"pid {status.pid}")
    name = units.shorten_middle(model.name or model.path, max(8, room))
    left.append(" ").append(name, marks.STRONG)
    for fact in facts:
        if left.cell_len + len(fact) + 3 + right.cell_len + 2 <= width:
            left.append(" · ", marks.FAINT).append(fact, marks.DIM)
    left.pad_right(width - left.cell_len - right.cell_len)
    return left.append_text(right)


def _how(snapshot: Snapshot, width: int, paused_since: float | None) -> Text:
    """The state on its way from mapped to warm; or since when nobody answers."""
    right = Text()
    if paused_since is not None:
        right.append(f" PAUSED {units.clock(paused_since)} ", f"reverse bold {marks.WARNING}")
    if snapshot.link != "up":
        left = _missing(snapshot, width - right.cell_len - 1)
    else:
        left = _way(snapshot)
        eta = snapshot.seconds_to_warm
        stats = snapshot.stats
        if stats is not None and stats.state == "warming" and paused_since is None:
            cells = min(40, width - left.cell_len - 24)
            if cells >= 8:
                right.append_text(marks.gauge(stats.warm_percent, 100, cells, marks.MAPPED))
            if eta is not None:
                right.append(" warm in ", marks.DIM).append(units.duration(eta), marks.TEXT)
        elif stats is not None and stats.state_note and paused_since is None:
            room = width - left.cell_len - 2
            if room >= 8:
                right.append(units.shorten(stats.state_note, room), marks.WARNING)
    left.pad_right(max(1, width - left.cell_len - right.cell_len))
    return left.append_text(right)


def _missing(snapshot: Snapshot, room: int) -> Text:
    waited = units.duration(snapshot.now - snapshot.since)
    if snapshot.link == "away":
        text = marks.span("● AWAY", f"bold {marks.ERROR}")
        text.append(f" since {units.clock(snapshot.since)}, {waited} ago · ").append("retrying ", marks.DIM)
    else:
        text = marks.span("○ waiting", f"bold {marks.WARNING}").append(f" {waited} for a daemon at ")
    return text.append(units.shorten_middle(snapshot.endpoint, max(8, room - text.cell_len)), marks.DIM)


def _way(snapshot: Snapshot) -> Text:
    stats = snapshot.stats
    state = stats.state if stats is not None else ""
    text = Text()
    if state not in _WAY:
        return text.append(f"● {state or 'connected'}", f"bold {marks.WARNING}")
    here = _WAY.index(state)
    for step, name in enumerate(_WAY):
        if step:
            text.append(" › ", marks.FAINT)
        if step == here:
            label = f"● {name}"
            if stats is not None and (name == "warming" or (stats.state_note and stats.warm_percent < 100)):
                label += f" {units.share(stats.warm_percent, 100)}"
            text.append(label, f"bold {marks.GOOD if name == 'warm' else marks.MAPPED}")
        else:
            text.append(name, marks.DIM if step < here else marks.FAINT)
    return text
