"""Panel: a map of the experts, layers down and experts across, shaded by how much of each is resident.

Owns scaling the map to the room there is. A full block means that everything under it is resident.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from hearthd.tui import marks, units
from hearthd.tui.collector import Snapshot
from hearthd.tui.panel import Panel
from rich.text import Text

_LABEL = 7  # "▸12-15 " before, percentage behind
_TAIL = 6
# Fewer layers than this in a line keep the map readable; a bigger model scrolls instead.
_MOST_LAYERS_PER_LINE = 8


# Share that one character of ResidencyNow.experts stands for; none for any other, as `?`.
_RESIDENT = {"#": 1.0} | {str(tenths): tenths / 10 for tenths in range(10)}


class ExpertPanel(Panel):
    TITLE = "Experts"

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._kept: tuple[tuple[object, ...], tuple[int, list[tuple[str, Text]]]] | None = None

    def title(self, snapshot: Snapshot) -> str:
        rows = _rows(snapshot)
        if not rows:
            return self.TITLE
        layers, columns, _ = _scale(rows, self._cells(), self.size.height - 1)
        experts = _most(rows) / columns
        few, many = math.floor(experts), math.ceil(experts)
        if (layers == 1 and many == 1) or self.size.width < 60:
            return self.TITLE
        return f"{self.TITLE} · {layers} × {few if few == many else f'{few}–{many}'} a mark"

    def note(self, snapshot: Snapshot, width: int) -> Text:
        text = Text()
        stats = snapshot.stats
        if stats is not None and stats.experts_total:
            text.append(f"{stats.experts_used}", marks.TEXT).append(f"/{stats.experts_total} used  ", marks.DIM)
        text.append_text(marks.shade_legend())
        return text if text.cell_len <= width else marks.shade_legend()

    def lines(self, snapshot: Snapshot, width: int, height: int) -> Sequence[Text]:
        rows = _rows(snapshot)
        if not rows:
            return [marks.span("no expert measured yet", marks.DIM)]
        running = snapshot.stats.layer if snapshot.stats is not None and snapshot.link == "up" else -1
        # The map comes once a second and the screen is drawn four times: the costly part is kept.
        key = (snapshot.residency, width, height)
        if self._kept is None or any(a is not b and a != b for a, b in zip(self._kept[0], key, strict=True)):
            self._kept = (key, self._map(rows, height))
        layers, lines = self._kept[1]
        here = running // layers
        return [
            marks.span("▸" if index == here else " ", marks.MAPPED)
            .append(f"{name:>{_LABEL - 2}} ", marks.TEXT if index == here else marks.DIM)
            .append_text(line)
            for index, (name, line) in enumerate(lines)
        ]

    def _map(self, rows: Sequence[str], height: int) -> tuple[int, list[tuple[str, Text]]]:
        """Layers a line; names and marks of the lines."""
        layers, columns, wide = _scale(rows, self._cells(), height)
        across = _most(rows)
        edges = [column * across // columns for column in range(columns + 1)]
        lines = []
        for first in range(0, len(rows), layers):
            group = rows[first : first + layers]
            last = first + len(group) - 1
            name = f"{first}-{last}" if last > first else str(first)
            shares = [[_RESIDENT.get(mark) for mark in row] for row in group]
            means = (_mean([share for row in shares for share in row[begin:end]]) for begin, end in pairwise(edges))
            line = marks.runs((mark * wide, style) for mark, style in map(marks.shade, means))
            known = [share for row in shares for share in row if share is not None]
            percent = units.share(sum(known), len(known)) if known else "?"
            line.append(f"{percent:>{_TAIL}}", marks.TEXT if known else marks.UNKNOWN)
            lines.append((name, line))
        return layers, lines

    def _cells(self) -> int:
        return max(4, self.scrollable_content_region.width - _LABEL - _TAIL)


def _rows(snapshot: Snapshot) -> list[str]:
    return [] if snapshot.residency is None else [row for row in snapshot.residency.experts if row]


def _most(rows: Sequence[str]) -> int:
    return max(len(row) for row in rows)


def _scale(rows: Sequence[str], cells: int, height: int) -> tuple[int, int, int]:
    """Layers under one line, marks across, characters a mark is wide."""
    across = _most(rows)
    layers = min(_MOST_LAYERS_PER_LINE, math.ceil(len(rows) / max(1, height)))
    columns = min(across, cells)
    return layers, columns, max(1, min(3, cells // columns))


def _mean(cell: Sequence[float | None]) -> float | None:
    """Whole only when all are known and whole; unknown when none is known."""
    known = [value for value in cell if value is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    return min(mean, 0.99) if len(known) < len(cell) else mean
