"""The monitor's marks: palette, stacked bars, plots of a history, shades of a share.

Owns what a colour or a block character means. Every meaning has a pattern of its own, so that nothing is lost
without colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter

from rich.text import Text

# Ember for what is in memory, slate for what is not: the two ends of every scale on the screen.
MAPPED = "#e8a15a"
ARENA = "#d9bd6a"
CACHED = "#b08d5b"
DEFERRED = "#5f7f9e"
UNKNOWN = "#b48ac0"
TEXT = "#d8d4cb"
DIM = "#8f8c86"
FAINT = "#4a4d55"
PROMPT = "#86b6c6"
GENERATE = "#a3c08a"
DISK = "#c3a27c"
GOOD = "#a3c08a"
WARNING = "#e6c15f"
ERROR = "#e5776a"
STRONG = "bold #f0ece3"

# State, mark, style: in the order in which a bar is filled.
STATES = (
    ("mapped", "█", MAPPED),
    ("arena", "▚", ARENA),
    ("cached", "▓", CACHED),
    ("deferred", "░", DEFERRED),
    ("unknown", "?", UNKNOWN),
)

_EIGHTHS = " ▁▂▃▄▅▆▇█"
# Tenths of a share to a shade: a full block is only ever the whole, a point only ever nothing.
_SHADES = (("·", FAINT), ("░", "#6d7480"), ("▒", "#94826c"), ("▓", "#bb9060"), ("█", MAPPED))


def span(text: str, style: str) -> Text:
    """A piece of text in a style that does not spread to what is appended later, as Text's own style would."""
    return Text().append(text, style)


def runs(cells: Iterable[tuple[str, str]]) -> Text:
    """Marks with their styles; neighbours of one style become one piece, as thousands of cells are drawn at a time."""
    text = Text()
    for style, same in groupby(cells, key=itemgetter(1)):
        text.append("".join(mark for mark, _ in same), style)
    return text


def apportion(parts: Sequence[int], cells: int) -> list[int]:
    """Cells for each part, adding up to `cells`: largest remainders, but a part that exists gets at least one.

    All zeros give zeros.
    """
    total = sum(parts)
    if total <= 0 or cells <= 0:
        return [0] * len(parts)
    exact = [part * cells / total for part in parts]
    given = [math.floor(share) for share in exact]
    order = sorted(range(len(parts)), key=lambda i: (given[i] - exact[i], i))
    for i in order[: cells - sum(given)]:
        given[i] += 1
    for i, part in enumerate(parts):
        largest = max(range(len(parts)), key=lambda j: given[j])
        if part > 0 and given[i] == 0 and given[largest] > 1:
            given[i] += 1
            given[largest] -= 1
    return given


def bar(amounts: Sequence[int], cells: int) -> Text:
    """One stacked bar of `cells` characters, amounts in the order of STATES; an empty total is a row of spaces."""
    text = Text()
    for given, (_, mark, style) in zip(apportion(amounts, cells), STATES, strict=True):
        text.append(mark * given, style)
    text.pad_right(cells - text.cell_len)
    return text


def gauge(done: float, total: float, cells: int, style: str) -> Text:
    """A progress line: `━━━━╌╌╌╌`. Full only when done, empty only when nothing is."""
    if total <= 0:
        return span("╌" * cells, FAINT)
    filled = math.floor(cells * min(1.0, done / total))
    if done > 0:
        filled = max(1, filled)
    return span("━" * filled, style).append("╌" * (cells - filled), FAINT)


def plot(columns: Sequence[float | None], rows: int, top: float, style: str) -> list[Text]:
    """Block-character plot, `rows` lines, newest at the right, `top` at the upper edge.

    A column without a measurement stays blank; a measured zero is a line at the foot, any more is above it.
    """
    heights: list[int | None] = []
    for value in columns:
        if value is None:
            heights.append(None)
        elif value <= 0 or top <= 0:
            heights.append(1)
        else:
            heights.append(min(8 * rows, max(2, round(value / top * 8 * rows))))
    lines = []
    for row in range(rows - 1, -1, -1):
        levels = [0 if height is None else max(0, min(8, height - 8 * row)) for height in heights]
        cells = zip(levels, heights, strict=True)
        lines.append(runs((_EIGHTHS[level], FAINT if height == 1 else style) for level, height in cells))
    return lines


def shade(resident: float | None) -> tuple[str, str]:
    """Mark and style of a share between 0 and 1; None is unknown."""
    if resident is None:
        return "?", UNKNOWN
    if resident <= 0:
        return _SHADES[0]
    if resident >= 1:
        return _SHADES[4]
    return _SHADES[1 + min(2, int(resident * 3))]


def legend() -> Text:
    text = Text()
    for name, mark, style in STATES:
        text.append(mark * 2 if mark != "?" else mark, style).append(f" {name}  ", DIM)
    text.right_crop(2)
    return text


def shade_legend() -> Text:
    text = span("none ", DIM)
    for mark, style in _SHADES:
        text.append(mark, style)
    return text.append(" all", DIM)
