"""A panel: a rule with a title, fixed heads, and lines that scroll under them.

Owns sticky heads, scrolling and repainting only when a line has changed. What the lines say is its subclasses' matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from hearthd.tui import marks
from hearthd.tui.collector import Snapshot
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.geometry import Size
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip


class Panel(ScrollView, can_focus=True):
    """Subclasses give `title`, `lines` and perhaps `heads` and `note`; each from one Snapshot and a size in cells."""

    TITLE: ClassVar[str] = ""
    AGES: ClassVar[bool] = True  # what it shows is old, and dimmed, while the daemon is away

    snapshot: reactive[Snapshot | None] = reactive(None, repaint=False)

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._painted: list[Strip] = []
        self._fixed = 1

    # What subclasses say -------------------------------------------------------------------------------------------

    def note(self, snapshot: Snapshot, width: int) -> Text:
        """What stands at the right end of the rule."""
        return Text()

    def title(self, snapshot: Snapshot) -> str:
        return self.TITLE

    def heads(self, snapshot: Snapshot, width: int) -> Sequence[Text]:
        return ()

    def lines(self, snapshot: Snapshot, width: int, height: int) -> Sequence[Text]:
        """`height` is the room under rule and heads; more lines than that scroll."""
        return ()

    # Painting ------------------------------------------------------------------------------------------------------

    def show(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.compose_lines()

    def on_resize(self) -> None:
        self.compose_lines()

    def on_focus(self) -> None:
        self.compose_lines()

    def on_blur(self) -> None:
        self.compose_lines()

    def compose_lines(self) -> None:
        """Draws the snapshot into strips; asks for a repaint only when one of them differs."""
        snapshot = self.snapshot
        # The style sheet keeps a column free for the scroll bar, so that nothing moves when it appears.
        width = self.scrollable_content_region.width
        if snapshot is None or width <= 0 or self.size.height <= 0:
            return
        heads = list(self.heads(snapshot, width))
        room = max(0, self.size.height - 1 - len(heads))
        body = list(self.lines(snapshot, width, room))
        away = self.AGES and snapshot.link != "up"
        strips = [self._rule(snapshot, width, away)]
        for text in [*heads, *body]:
            strips.append(_strip(text, width, away))
        fixed = 1 + len(heads)
        if strips != self._painted or fixed != self._fixed:
            taller = len(strips) != len(self._painted)
            self._painted, self._fixed = strips, fixed
            self.virtual_size = Size(0, len(strips))
            self.refresh(layout=taller and self.styles.auto_dimensions)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return max(1, len(self._painted))

    def _rule(self, snapshot: Snapshot, width: int, away: bool) -> Strip:
        line = "━" if self.has_focus else "─"
        title = f" {self.title(snapshot)} "
        note = self.note(snapshot, max(0, width - len(title) - 6))
        if away:
            note = marks.span(note.plain, marks.DIM)
        edge = marks.MAPPED if self.has_focus else marks.FAINT
        text = marks.span(line, edge).append(title, marks.STRONG if self.has_focus else f"bold {marks.TEXT}")
        if note.cell_len and text.cell_len + note.cell_len + 5 <= width:
            gap = width - text.cell_len - note.cell_len - 3
            text.append(line * gap, edge).append(" ").append_text(note).append(" ").append(line, edge)
        else:
            text.append(line * max(0, width - text.cell_len), edge)
        return _strip(text, width, False)

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        background = self.rich_style
        index = y if y < self._fixed else y + self.scroll_offset.y
        if index >= len(self._painted):
            return Strip.blank(width, background)
        return self._painted[index].apply_style(background).adjust_cell_length(width, background)


def _strip(text: Text, width: int, away: bool) -> Strip:
    """Segments of one line. Numbers of a daemon that is away are dimmed, not removed."""
    base = Style.parse(marks.TEXT)
    dim = Style.parse(f"not bold {marks.DIM}") if away else None
    segments = []
    plain = text.plain
    spans = sorted({0, len(plain), *(s.start for s in text.spans), *(s.end for s in text.spans)})
    for start, end in pairwise(spans):
        if start >= len(plain) or start == end:
            continue
        style = base
        for span in text.spans:
            if span.start <= start and end <= span.end:
                style += Style.parse(span.style) if isinstance(span.style, str) else span.style
        if dim is not None:
            style += dim
        segments.append(Segment(plain[start:end], style))
    return Strip(segments).simplify().crop(0, width)
