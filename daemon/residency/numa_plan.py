"""Who reads which bytes: segments per team, the owner of every page, experts by node, what a mirror holds.

A segment is a byte range of a file that one team's threads read. Arithmetic on plain arrays: nothing is moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hearthd.cyext.program import Program

    from .parts import Table

PAGE = 4096
SLACK = 1.25  # how many more experts than its part a node may hold, so that uneven heat can be balanced

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Segments:
    """Sorted by file and begin, not overlapping: span, file int32; begin, end uint64 in the file; team int32."""

    span: Ids
    file: Ids
    begin: NDArray[np.uint64]
    end: NDArray[np.uint64]
    team: Ids

    def __len__(self) -> int:
        return len(self.span)

    @property
    def nbytes(self) -> NDArray[np.int64]:
        return (self.end - self.begin).astype(np.int64)


def row_segments(table: Table, program: Program) -> Segments:
    """Every span divided by rows as the program's teams read it (by heads where it is read so). What no product
    reads (norms, biases) is team 0's; an embedding that is only looked up is divided evenly."""
    teams = len(program.team_share(1))
    offset = np.asarray(table.offset, np.int64)
    spans, begins, ends, owners = [], [], [], []
    seen: set[tuple[int, int]] = set()
    read = np.zeros(len(offset), bool)

    def add(ids: Ids, begin: NDArray[np.int64], nbytes: int, team: int) -> None:
        spans.append(ids)
        begins.append(begin)
        ends.append(begin + nbytes)
        owners.append(np.full(len(ids), team, np.int32))

    for ids, at, rows, row_bytes, how, unit in program.matrices():
        if (key := (int(ids[0]), at)) in seen:
            continue  # the same rows, read in another operation as well
        seen.add(key)
        read[ids] = True
        parts = program.team_rows(rows)
        if how == "heads":
            parts = [(a * unit, b * unit) for a, b in program.team_share(rows // unit)]
        for team, (first, end) in enumerate(parts):
            if end > first:
                add(ids, offset[ids] + at + first * row_bytes, (end - first) * row_bytes, team)
    for span in np.flatnonzero(~read).tolist():
        nbytes = int(table.nbytes[span])
        one = np.array([span], np.int32)
        pages = program.team_share(nbytes // PAGE) if nbytes >= 64 * PAGE else [(0, 0)] * teams
        if pages[-1][1] == 0:
            add(one, offset[one], nbytes, 0)
            continue
        for team, (first, end) in enumerate(pages):
            length = (nbytes if team == teams - 1 else end * PAGE) - first * PAGE
            if length > 0:
                add(one, offset[one] + first * PAGE, length, team)
    return _sorted(table, np.concatenate(spans), np.concatenate(begins), np.concatenate(ends), np.concatenate(owners))


def whole(table: Table, segments: Segments, ids: Ids, team: Ids) -> Segments:
    """The same with these spans given to one team each as a whole."""
    keep = ~np.isin(segments.span, ids)
    begin = np.asarray(table.offset, np.int64)[ids]
    return _sorted(
        table,
        np.concatenate((segments.span[keep], ids)),
        np.concatenate((segments.begin[keep].astype(np.int64), begin)),
        np.concatenate((segments.end[keep].astype(np.int64), begin + np.asarray(table.nbytes, np.int64)[ids])),
        np.concatenate((segments.team[keep], team)),
    )


def _sorted(
    table: Table, span: Ids, begin: NDArray[np.int64], end: NDArray[np.int64], team: Ids
) -> Segments:
    file = np.asarray(table.file)[span]
    order = np.lexsort((begin, file))
    return Segments(span[order].astype(np.int32), file[order].astype(np.int32), begin[order].astype(np.uint64),
                    end[order].astype(np.uint64), team[order].astype(np.int32))  # fmt: skip


def owners_of_pages(segments: Segments, files: int) -> tuple[NDArray[np.int64], NDArray[np.uint64], Ids]:
    """(first, begin, owner) as cyext's placement.h wants them. A page that two segments share belongs to the one that
    its first read byte belongs to."""
    page = np.uint64(PAGE)
    firsts, begins, owners = [0], [], []
    for file in range(files):
        here = np.flatnonzero(segments.file == file)
        begin, end, team = segments.begin[here], segments.end[here], segments.team[here]
        down, up = begin // page * page, (begin + page - np.uint64(1)) // page * page
        start = up
        if len(here):
            free = np.ones(len(here), bool)
            free[1:] = end[:-1] <= down[1:]
            start = np.where(free, down, up)
            # A segment within one page that is another's owns nothing.
            keep = np.ones(len(here), bool)
            keep[:-1] = start[:-1] < start[1:]
            start, team = start[keep], team[keep]
            change = np.ones(len(team), bool)
            change[1:] = team[1:] != team[:-1]
            start, team = start[change], team[change]
            if start[0] > 0:
                start, team = np.concatenate(([np.uint64(0)], start)), np.concatenate(([np.int32(-1)], team))
        begins.append(start)
        owners.append(team)
        firsts.append(firsts[-1] + len(start))
    return (np.array(firsts, np.int64), np.concatenate(begins).astype(np.uint64),
            np.concatenate(owners).astype(np.int32))  # fmt: skip


def pages_of(segments: Segments) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(begin, bytes) of the pages that each segment owns, by the rule of `owners_of_pages`; bytes may be 0."""
    page = np.uint64(PAGE)
    down, up = segments.begin // page * page, (segments.begin + page - np.uint64(1)) // page * page
    free = np.ones(len(segments), bool)
    free[1:] = (segments.file[1:] != segments.file[:-1]) | (segments.end[:-1] <= down[1:])
    begin = np.where(free, down, up)
    end = (segments.end + page - np.uint64(1)) // page * page
    return begin, np.where(end > begin, end - begin, np.uint64(0))


def balance(heat: NDArray[np.float64], teams: Sequence[float], nbytes: NDArray[np.float64] | None = None) -> Ids:
    """Owner of every expert, int32 [layers, experts], so that what each team computes is in proportion to its size.

    heat: [layers, experts] how often each expert is used (all equal where nothing is known); teams: their sizes. The
    hottest goes first to the team with the least to do in that layer, counting a little of what it has in all layers;
    no team holds more than SLACK of its part of a layer's experts. Longest processing time first (Graham 1969).
    """
    layers, experts = heat.shape
    size = np.asarray(teams, float) / sum(teams)
    most = np.maximum(np.ceil(experts * size * SLACK), 1)
    if len(size) > 1 and most.sum() < experts:
        most[:] = experts
    owner = np.zeros((layers, experts), np.int32)
    total = np.zeros(len(size))
    for layer in range(layers):
        row = heat[layer] if heat[layer].sum() > 0 else np.ones(experts)
        row = row / row.sum() + 1e-6  # cold experts count for their memory
        load, held = np.zeros(len(size)), np.zeros(len(size))
        for expert in np.argsort(-row, kind="stable").tolist():
            after = (load + row[expert]) / size + 0.1 * total / size / (layer + 1) + 1e-9 * held
            after[held >= most] = np.inf
            team = int(np.argmin(after))
            owner[layer, expert] = team
            load[team] += row[expert]
            held[team] += 1
        total += load
    return owner


def load(owner: Ids, heat: NDArray[np.float64], teams: Sequence[float]) -> float:
    """max/mean of what the teams compute of the experts, by their sizes. 1.0 is even."""
    size = np.asarray(teams, float) / sum(teams)
    done = np.array([heat[owner == team].sum() for team in range(len(size))]) / size
    return float(done.max() / done.mean()) if done.sum() else 1.0


def mirrored(table: Table, heat: NDArray[np.float64], budget: int) -> Ids:
    """Spans that get copies on every node, in the order of their copying: dense ones first, then whole experts, hottest
    first, while `budget` bytes last."""
    nbytes = np.asarray(table.nbytes, np.int64)
    expert, layer = np.asarray(table.expert), np.asarray(table.layer)
    dense = np.flatnonzero(expert < 0)
    dense = dense[np.cumsum(nbytes[dense]) <= budget]
    left = budget - int(nbytes[dense].sum())
    ids = np.flatnonzero(expert >= 0)
    if not len(ids) or left <= 0:
        return dense.astype(np.int32)
    number = layer[ids].astype(np.int64) * int(table.n_expert) + expert[ids]
    warmth = heat[layer[ids], expert[ids]] if heat.size else np.zeros(len(ids))
    order = np.lexsort((number, -warmth))
    ids, number = ids[order], number[order]
    # All parts of an expert or none: they are sorted side by side.
    edges = np.concatenate(([True], number[1:] != number[:-1]))
    size = np.add.reduceat(nbytes[ids], np.flatnonzero(edges))
    fits = np.cumsum(size) <= left
    return np.concatenate((dense, ids[fits[np.cumsum(edges) - 1]])).astype(np.int32)
