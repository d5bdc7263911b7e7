"""What an operation may be asked: every place that the kernels will read or write is held against what is there.

The kernels themselves check nothing. Owns the last look before a program is run; refuses (ValueError) an operation
whose numbers reach beyond its buffers, weights, streams or state, or divide by what does not divide. What the numbers
of each operation mean stands beside it in steps/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Matrix(NamedTuple):
    """A weight: rows x cols, as many of them as it has spans."""

    rows: int
    cols: int
    spans: int


@dataclass
class Program:
    """What there is. buffers: their widths; streams: heads and width of each; ropes: elements that each rotates;
    delta_tail: floats that a head of the delta rule keeps beside its matrix; tail, state: floats of a session."""

    buffers: list[int]
    weights: list[Matrix]
    streams: list[tuple[int, int]]
    ropes: list[int]
    layers: int
    experts: int
    used: int
    vocabulary: int
    delta_tail: Callable[[int, int], int]
    tail: int = 0
    state: int = 0


class Operation(NamedTuple):
    """One operation as Program.op takes it, with what its numbers refer to: None where it has none."""

    kind: str
    layer: int
    ins: list[int | None]
    outs: list[int | None]
    weights: list[Matrix | None]
    ints: Sequence[int]
    program: Program

    def fail(self, what: str) -> ValueError:
        return ValueError(f"{self.kind} of layer {self.layer}: {what}")

    def need(self, truth: bool, what: str) -> None:
        if not truth:
            raise self.fail(what)

    def width(self, values: Sequence[int | None], place: int) -> int:
        found = values[place] if place < len(values) else None
        if found is None:
            raise self.fail(f"operand {place} is missing")
        return found

    def matrix(self, place: int) -> Matrix:
        found = self.optional(place)
        if found is None:
            raise self.fail(f"weight {place} is missing")
        return found

    def optional(self, place: int) -> Matrix | None:
        return self.weights[place] if place < len(self.weights) else None

    def vector(self, place: int, least: int) -> None:
        """A weight that is read as floats, if it is there."""
        found = self.optional(place)
        self.need(found is None or found.rows * found.cols >= least, f"weight {place} has fewer than {least} values")

    def within(self, whole: int, pieces: int, width: int, stride: int, offset: int) -> None:
        """So many pieces lie in a row of `whole` values."""
        good = pieces > 0 and width > 0 and stride >= 0 and offset >= 0
        self.need(good and offset + (pieces - 1) * stride + width <= whole,
                  f"{pieces} pieces of {width}, {stride} apart, from {offset} on reach beyond {whole}")  # fmt: skip


def check(kind: str, layer: int, ins: Sequence[int], outs: Sequence[int], weights: Sequence[int], ints: Sequence[int],
          program: Program) -> None:  # fmt: skip
    """Raises ValueError; numbers of buffers and weights below 0 stand for none."""
    try:
        operation = Operation(
            kind, layer, [None if i < 0 else program.buffers[i] for i in ins],
            [None if i < 0 else program.buffers[i] for i in outs],
            [None if i < 0 else program.weights[i] for i in weights], ints, program,
        )  # fmt: skip
        operation.need(0 <= layer < max(program.layers, 1), f"there are {program.layers} layers")
        _CHECKS[kind](operation)
    except IndexError:
        raise ValueError(f"{kind} of layer {layer}: an operand that does not exist, or too few numbers") from None


def _embed(o: Operation) -> None:
    m = o.matrix(0)
    o.need(m.cols == o.width(o.outs, 0) and m.rows >= o.program.vocabulary, "the table is not one of the vocabulary")


def _norm(o: Operation) -> None:
    pieces, width, stride, offset = o.ints[:4]
    o.within(min(o.width(o.ins, 0), o.width(o.outs, 0)), pieces, width, stride, offset)
    o.vector(0, width)


def _matmul(o: Operation) -> None:
    to_logits, some = bool(o.ints[3]), False
    for k in range(4):
        m = o.optional(k)
        if m is None:
            break
        some = True
        rows = o.program.vocabulary if to_logits else o.width(o.outs, k)
        o.need((m.rows, m.cols) == (rows, o.width(o.ins, 0)), f"matrix {k} is {m.rows} x {m.cols}")
        o.vector(4 + k, m.rows)
    o.need(some, "there is no matrix")


def _heads_matmul(o: Operation) -> None:
    heads, rows, in_stride, in_offset, out_stride, out_offset, cols, pitch, first, turned = o.ints[:10]
    m = o.matrix(0)
    high, wide = (cols, rows) if turned else (rows, cols)
    o.within(m.rows, heads, high, pitch, first)
    o.need(m.cols == wide and m.rows == heads * pitch,
           f"{m.rows} x {m.cols} are not {heads} matrices of {high} x {wide}, {pitch} rows apart")  # fmt: skip
    o.within(o.width(o.ins, 0), heads, cols, in_stride, in_offset)
    o.within(o.width(o.outs, 0), heads, rows, out_stride, out_offset)


def _rope(o: Operation) -> None:
    number, heads, stride, offset = o.ints[:4]
    o.need(number >= 0, "there is no such rope")
    turned = o.program.ropes[number]
    o.need(turned > 0 and turned % 2 == 0, f"{turned} values are no pairs")
    o.within(o.width(o.ins, 0), heads, turned, stride, offset)


def _store(o: Operation) -> None:
    stream, heads, width, offset, stride, at = o.ints[:6]
    o.need(stream >= 0, "there is no such stream")
    has, wide = o.program.streams[stream]
    o.need(heads <= has and at >= 0 and at + width <= wide, f"a stream of {has} heads of {wide} cannot hold it")
    o.within(o.width(o.ins, 0), heads, width, stride, offset)


def _attend(o: Operation) -> None:
    heads, kv, dk, dv, window, keys, values, stride, offset = o.ints[:9]
    o.need(kv > 0 and heads % kv == 0, f"{kv} heads of keys cannot be shared by {heads}")
    o.need(window >= 0 and keys >= 0 and values >= 0, "there is no such window or stream")
    for stream, width in ((o.program.streams[keys], dk), (o.program.streams[values], dv)):
        o.need(stream[0] >= kv and stream[1] >= width > 0, f"a stream has {stream[0]} heads of {stream[1]}")
    o.within(o.width(o.ins, 0), heads, dk, stride, offset)
    o.within(o.width(o.outs, 0), heads, dv, dv, 0)
    o.vector(0, heads)


def _add(o: Operation) -> None:
    width = o.width(o.outs, 0)
    o.need(o.width(o.ins, 0) >= width and o.width(o.ins, 1) >= width, "what is added is narrower")


def _select(o: Operation) -> None:
    o.need(o.width(o.ins, 0) >= o.width(o.outs, 0), "what is selected is narrower")


def _scale(o: Operation) -> None:
    pieces, width = o.ints[0], o.width(o.outs, 0)
    o.need(pieces > 0 and width % pieces == 0 and o.width(o.ins, 0) >= width, f"{width} do not divide by {pieces}")
    o.need(o.ins[1] is None or o.width(o.ins, 1) >= pieces, "there are fewer factors than pieces")


def _activate(o: Operation) -> None:
    _, pieces, width, gate_offset, gate_stride, up_offset, up_stride = o.ints[:7]
    o.within(o.width(o.ins, 0), pieces, width, gate_stride, gate_offset)
    if o.ins[1] is not None:
        o.within(o.width(o.ins, 1), pieces, width, up_stride, up_offset)
    o.within(o.width(o.outs, 0), pieces, width, width, 0)


def _copy(o: Operation) -> None:
    pieces, width, offset, stride, to, to_stride = o.ints[:6]
    o.within(o.width(o.ins, 0), pieces, width, stride, offset)
    o.within(o.width(o.outs, 0), pieces, width, to_stride, to)


def _choice(o: Operation, experts: int) -> None:
    """The first numbers of route and lookahead."""
    used, gating, groups, groups_used = o.ints[:4]
    o.need(0 < experts <= o.program.experts, f"a router of {experts} experts")
    o.need(1 <= used <= min(experts, o.program.used), f"{used} of {experts} experts cannot be used")
    o.need(0 <= gating <= 2, f"gating {gating} is unknown")
    if groups > 1 and groups_used < groups:
        good = experts % groups == 0 and groups_used >= 1 and groups_used * (experts // groups) >= used
        o.need(good, f"{groups_used} of {groups} groups of {experts} experts")


def _route(o: Operation) -> None:
    experts = o.width(o.ins, 0)
    _choice(o, experts)
    o.need(min(o.width(o.outs, 0), o.width(o.outs, 1)) >= o.ints[0], "there is no room for the choice")
    o.vector(0, experts)


def _experts(o: Operation) -> None:
    used, experts = o.ints[0], o.program.experts
    up, down, gate = o.matrix(1), o.matrix(2), o.optional(0)
    o.need(1 <= used <= o.program.used, f"{used} experts cannot be used")
    o.need(min(o.width(o.ins, 1), o.width(o.ins, 2)) >= used, "fewer were chosen")
    for m in (gate, up, down):
        o.need(m is None or m.spans == experts, f"a matrix for each of {experts} experts is needed")
    o.need(gate is None or gate[:2] == up[:2], "gate and up differ")
    o.need(up.cols == o.width(o.ins, 0) and down.cols == up.rows, "the matrices do not follow each other")
    o.need(down.rows == o.width(o.outs, 0), "the output is of another width")
    for place, width in ((3, up.rows), (4, up.rows), (5, down.rows)):
        o.vector(place, experts * width)


def _lookahead(o: Operation) -> None:
    router = o.matrix(1)
    _choice(o, router.rows)
    o.need(router.cols == o.width(o.ins, 0) <= o.width(o.outs, 0), "the router is of another width")
    o.need(router.rows <= o.width(o.outs, 1), "there is no room for the logits")
    o.need(0 <= o.ints[5] < o.program.layers, "it looks ahead to no layer")
    for place, least in ((0, router.cols), (2, router.rows), (6, router.rows)):
        o.vector(place, least)
    for place in (3, 4, 5):
        m = o.optional(place)
        o.need(m is None or m.spans == o.program.experts, "experts are missing")


def _convolve(o: Operation) -> None:
    taps, tail = o.ints[:2]
    m, channels = o.matrix(0), o.width(o.ins, 0)
    o.need(taps > 0 and (m.rows, m.cols) == (channels, taps), f"{m.rows} x {m.cols} for {channels} channels")
    o.need(o.width(o.outs, 0) >= channels and 0 <= tail <= o.program.tail - (taps - 1) * channels, "no such tail")


def _decay(o: Operation) -> None:
    heads, alpha, alpha_stride, beta, beta_stride, group = o.ints[:6]
    o.need(group > 0 and heads > 0 and heads % group == 0, f"{heads} heads do not divide into groups of {group}")
    o.within(o.width(o.ins, 0), heads // group, group, alpha_stride, alpha)
    o.within(o.width(o.ins, 1), heads // group, group, beta_stride, beta)
    o.within(o.width(o.outs, 0), 2, heads, heads, 0)
    o.vector(0, heads)
    o.vector(1, heads)


def _delta(o: Operation) -> None:
    values, keys, dk, dv, state, _, tail = o.ints[:7]
    o.need(keys > 0 and values > 0 and values % keys == 0, f"{keys} heads of keys cannot be shared by {values}")
    o.need(dk > 0 and dv > 0 and o.width(o.ins, 0) >= 2 * keys * dk + values * dv, "the input is narrower")
    o.need(o.width(o.ins, 1) >= 2 * values and o.width(o.outs, 0) >= values * dv, "gates or output are narrower")
    o.need(0 <= state <= o.program.state - values * dk * dv, "there is no such state")
    o.need(0 <= tail <= o.program.tail - values * o.program.delta_tail(dk, dv), "there is no such tail")


_CHECKS: dict[str, Callable[[Operation], None]] = {
    "embed": _embed, "norm": _norm, "matmul": _matmul, "heads_matmul": _heads_matmul, "rope": _rope, "store": _store,
    "attend": _attend, "add": _add, "select": _select, "scale": _scale, "activate": _activate, "copy": _copy,
    "route": _route, "experts": _experts, "lookahead": _lookahead, "convolve": _convolve, "decay": _decay,
    "delta": _delta,
}  # fmt: skip
