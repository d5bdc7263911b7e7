"""Panel: which bytes of the model are where, per node and role, and how the deferred ones went down.

Shows the daemon's measured states as they are; what is unknown stays unknown.
"""

from __future__ import annotations

from collections.abc import Sequence

from hearthd.daemon.protocol import Bytes
from hearthd.tui import marks, units
from hearthd.tui.collector import Snapshot
from hearthd.tui.panel import Panel
from rich.text import Text

_ROLES = {"dense": "dense", "expert": "experts"}
_PLOT = 8  # cells of the history at least


class ResidencyPanel(Panel):
    TITLE = "Residency"

    @property
    def short(self) -> bool:
        return self.app.size.height < 32

    def note(self, snapshot: Snapshot, width: int) -> Text:
        return marks.legend()

    def lines(self, snapshot: Snapshot, width: int, height: int) -> Sequence[Text]:
        now = snapshot.residency
        if now is None or not now.rows:
            if snapshot.link == "connecting":
                return [marks.span("start one with hearthd MODEL, or name another with --control", marks.DIM)]
            reason = now.unknown_reason if now is not None else ""
            return [marks.span(reason or "nothing measured yet", marks.DIM)]
        nodes = sorted({row.node for row in now.rows})
        if self.short and len(nodes) > 1:
            lines = [_pair(node, now.rows, width) for node in nodes]
        else:
            lines = [_row(row, width, len(nodes) > 1) for row in sorted(now.rows, key=_order)]
        if now.unknown_reason:
            lines.append(marks.span("unknown: ", marks.UNKNOWN).append(now.unknown_reason, marks.TEXT))
        if not self.short:
            lines += _placement(snapshot, nodes)
        return lines + self._deferred(snapshot, width)

    def _deferred(self, snapshot: Snapshot, width: int) -> list[Text]:
        assert snapshot.residency is not None
        rows = snapshot.residency.rows
        deferred = sum(row.deferred for row in rows)
        unknown = sum(row.unknown for row in rows)
        if unknown and unknown == sum(row.total for row in rows):
            amount = marks.span(f"{'?':>9}", marks.UNKNOWN)
        else:
            # What the kernel does not tell of may be deferred as well.
            least = f"≥{units.size(deferred)}" if unknown else units.size(deferred)
            amount = marks.span(f"{least:>9}", f"bold {marks.DEFERRED}")
        facts = [marks.span("deferred ", marks.DIM).append_text(amount)]
        budget = snapshot.residency.budget_bytes
        apart = sum(row.arena for row in rows)
        extra = [("resident ", sum(map(_resident, rows)))]
        if apart:
            extra.append(("in arena ", apart))
        if budget:
            extra.append(("budget   ", budget))
        locked = sum(row.locked for row in rows)
        if locked:
            extra.append(("locked   ", locked))
        evicted = sum(row.evicted_recently for row in rows)
        if evicted:
            extra.append(("evicted  ", evicted))
        for name, value in extra:
            facts.append(marks.span(name, marks.DIM).append(f"{units.size(value):>9}", marks.TEXT))
        if self.short:
            if placement := _placement_in_short(snapshot):
                facts[0].append("  ").append_text(placement)
            elif apart:
                facts[0].append("  in arena ", marks.DIM).append(f"{units.size(apart):>9}", marks.ARENA)
        pool = _pool(snapshot)
        if pool and facts[0].cell_len + pool.cell_len + _PLOT + 14 <= width:
            facts[0].append_text(pool)
        left_width = facts[0].cell_len
        plot_rows = 1 if self.short else max(3, len(facts))
        cells = max(_PLOT, width - left_width - 2 - 12)
        window = snapshot.histories.window
        columns = snapshot.histories.deferred.columns(cells, window, snapshot.now)
        top = max((value for value in columns if value is not None), default=0.0)
        plot = marks.plot(columns, plot_rows, top, marks.DEFERRED)
        span = snapshot.histories.deferred.span(cells, window)
        if plot_rows == 1:
            labels = [f" {units.duration(span)}"]
        else:
            labels = [f" {units.size(top)}", *[""] * (plot_rows - 2), " 0 B"]
            labels[plot_rows // 2] = f" last {units.duration(span)}" if plot_rows > 2 else ""
        lines = []
        for index in range(plot_rows):
            line = facts[index].copy() if index < len(facts) else Text()
            line.pad_right(left_width + 2 - line.cell_len)
            lines.append(line.append_text(plot[index]).append(labels[index], marks.DIM))
        return lines


def _pool(snapshot: Snapshot) -> Text:
    """`  pool 31 of 512`: blocks that sessions hold, of those that there are."""
    stats = snapshot.stats
    if stats is None or not stats.pool_blocks:
        return Text()
    style = marks.WARNING if stats.pool_used >= stats.pool_blocks else marks.TEXT
    text = marks.span("  pool ", marks.DIM).append(units.count(stats.pool_used), style)
    return text.append(f" of {units.count(stats.pool_blocks)}", marks.DIM)


def _order(row: Bytes) -> tuple[int, str]:
    return row.node, row.role


def _amounts(row: Bytes) -> tuple[int, ...]:
    """In the order of marks.STATES."""
    return row.mapped, row.arena, row.cached, row.deferred, row.unknown


def _resident(row: Bytes) -> int:
    """Bytes that no disk has to give: an arena's as well, whatever the page cache has of them."""
    return row.mapped + row.arena + row.cached


def _row(row: Bytes, width: int, several: bool) -> Text:
    """`dense  ████░░░░  3.95 GiB of  7.90 GiB  50 %`, with the node in front when there are several."""
    text = Text()
    if several:
        text.append(f"node {row.node} ", marks.DIM)
    text.append(f"{_ROLES[row.role]:<8} ", marks.TEXT)
    resident = _resident(row)
    known = row.unknown < row.total or not row.total
    tail = marks.span(f" {units.size(resident) if known else '?':>9}", marks.STRONG if resident else marks.DIM)
    tail.append(f" of {units.size(row.total):>9}", marks.DIM)
    tail.append(f" {_share(row):>6}", marks.TEXT if known else marks.UNKNOWN)
    text.append_text(marks.bar(_amounts(row), max(4, width - text.cell_len - tail.cell_len)))
    return text.append_text(tail)


def _share(row: Bytes) -> str:
    """Resident part of the total; `≥` in front where some of it is unknown, `?` where all is."""
    if row.total and row.unknown >= row.total:
        return "?"
    return ("≥" if row.unknown else "") + units.share(_resident(row), row.total)


def _pair(node: int, rows: Sequence[Bytes], width: int) -> Text:
    """One line for a node of a small screen: dense and experts side by side."""
    text = marks.span(f"node {node} ", marks.DIM)
    cells = {row.role: row for row in rows if row.node == node}
    dense, expert = cells.get("dense"), cells.get("expert")
    small = max(4, (width - 48) // 3)
    for role, given, room in (("dense ", dense, small), (" experts ", expert, width - 48 - small)):
        text.append(role, marks.TEXT)
        row = given or Bytes()
        resident = _resident(row)
        text.append_text(marks.bar(_amounts(row), max(4, room)))
        text.append(f"{units.size(resident):>10}", marks.STRONG if resident else marks.DIM)
        if role.strip() == "experts":
            text.append(f" {_share(row):>5}", marks.TEXT)
    return text


def _placement(snapshot: Snapshot, nodes: Sequence[int]) -> list[Text]:
    """How well the pages lie, where the daemon measures it: local reads per node, pages on the wrong node."""
    stats, residency = snapshot.stats, snapshot.residency
    if stats is None or residency is None or len(nodes) < 2:
        return []
    text = Text()
    if stats.local_share:
        text.append("local reads", marks.DIM)
        for node, part in enumerate(stats.local_share):
            style = marks.GOOD if part >= 0.99 else marks.WARNING
            text.append(f"  node {node} ", marks.DIM).append(units.share(part, 1.0), style)
    wrong = [row.wrong_node for row in residency.rows if row.wrong_node is not None]
    if wrong:
        text.append("  · " if text else "", marks.FAINT).append("on the wrong node ", marks.DIM)
        text.append(units.size(sum(wrong)), marks.WARNING if sum(wrong) else marks.GOOD)
    return [text] if text else []


def _placement_in_short(snapshot: Snapshot) -> Text:
    """As `_placement`, of the worst node only."""
    stats, residency = snapshot.stats, snapshot.residency
    text = Text()
    if stats is not None and len(stats.local_share) > 1:
        worst = min(stats.local_share)
        style = marks.GOOD if worst >= 0.99 else marks.WARNING
        text.append("local reads ≥ ", marks.DIM).append(units.share(worst, 1.0), style)
    wrong = [row.wrong_node for row in residency.rows if row.wrong_node is not None] if residency else []
    if wrong:
        text.append("  " if text else "").append("wrong node ", marks.DIM)
        text.append(units.size(sum(wrong)), marks.WARNING if sum(wrong) else marks.GOOD)
    return text
