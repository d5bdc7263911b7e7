"""From the calls of an architecture to the operations of a program: what is added, what is moved, who shares a buffer.

Owns what holds for every architecture. Knows no operation's meaning beyond whether rows see each other in it.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from hearthd.daemon.model.calls import Call, Value

if TYPE_CHECKING:
    from hearthd.daemon.model.parts import Operations

# Operations whose rows neither see each other nor where they stand in the sequence.
ROW_BY_ROW = frozenset({"norm", "matmul", "heads_matmul", "add", "scale", "activate", "copy", "route", "experts"})


def lower(calls: list[Call], program: Operations) -> None:
    """Append to the program what the calls say, lookahead and early selection included."""
    add_lookahead(calls)
    select_early(calls)
    append(calls, program)


def add_lookahead(calls: list[Call]) -> None:
    """Before each layer's experts: the next layer's router on this layer's state (norm, matmul, route)."""
    routes = [c for c in calls if c.kind == "route"]
    experts = {c.ins[1]: c for c in calls if c.kind == "experts"}
    for here, after in itertools.pairwise(routes):
        pattern, now = _router(after), _router(here)
        use = experts.get(after.outs[0])
        place = experts.get(here.outs[0])
        if pattern is None or now is None or use is None or place is None:
            continue
        norm, matmul = pattern
        state = now[0].ins[0]
        assert state is not None
        normed, logits = Value(state.width), Value(after.ins[0].width)  # type: ignore[union-attr]
        call = Call(
            "lookahead",
            here.layer,
            [state],
            [normed, logits],
            weights=[norm.weights[0], matmul.weights[0], after.weights[0], *use.weights[:3], *matmul.weights[4:5]],
            ints=[*after.ints, after.layer],
            floats=[after.floats[0], norm.floats[0]],
        )
        calls.insert(calls.index(place), call)


def select_early(calls: list[Call]) -> None:
    """Move the selection of the rows that want logits up to where rows last see each other: what follows the last
    layer's attention is done for these alone, and the rest of a prompt uses none of that layer's experts."""
    select = next((call for call in calls if call.kind == "select"), None)
    if select is None or select.ins[0] is None:
        return
    place = {call: at for at, call in enumerate(calls)}
    users: dict[Value, list[Call]] = {}
    for call in calls:
        for value in call.values():
            users.setdefault(value, []).append(call)
    late = {select}
    wanted = {select.ins[0]: None}  # in order
    for call in reversed(calls[: place[select]]):
        after = (user for out in call.outs for user in users[out] if place[user] > place[call])
        if call.kind in ROW_BY_ROW and not wanted.keys().isdisjoint(call.outs) and late.issuperset(after):
            late.add(call)
            wanted |= dict.fromkeys(value for value in call.ins if value is not None)
    chosen: dict[Value, Value] = {}
    for value in wanted:
        early = [call for call in users[value] if value in call.outs and call not in late]
        if early:
            chosen[value] = Value(value.width, selected=True)
            made = Call("select", early[-1].layer, [value], [chosen[value]], selected=True)
            calls.insert(calls.index(early[-1]) + 1, made)
        else:
            value.selected = True
    late.remove(select)
    for call in late:
        call.selected = True
    chosen[select.outs[0]] = chosen.get(select.ins[0], select.ins[0])
    for call in [*late, *calls[calls.index(select) + 1 :]]:
        call.ins = [chosen.get(value, value) if value is not None else None for value in call.ins]
        call.outs = [chosen.get(value, value) for value in call.outs]
    calls.remove(select)


def append(calls: list[Call], program: Operations) -> None:
    """Give every value a buffer that no living value has, and append the operations to the program."""
    last: dict[Value, int] = {}
    for at, call in enumerate(calls):
        for value in call.values():
            last[value] = at
    free: dict[int, list[int]] = {}
    for at, call in enumerate(calls):
        for out in call.outs:
            if out.buffer < 0:
                pool = free.get(out.width, [])
                out.buffer = pool.pop() if pool else program.buffer(out.width)
        if not all(math.isfinite(f) for f in call.floats):
            raise ValueError(f"{call.kind} of layer {call.layer}: {call.floats} are not all finite")
        program.op(
            call.kind,
            call.layer,
            ins=[-1 if v is None else v.buffer for v in call.ins],
            outs=[v.buffer for v in call.outs],
            weights=[-1 if w is None else w.number for w in call.weights],
            ints=call.ints,
            floats=call.floats,
            selected=call.selected and call.kind != "select",
        )
        for value in call.values():
            if last[value] == at:
                free.setdefault(value.width, []).append(value.buffer)


def _router(route: Call) -> tuple[Call, Call] | None:
    """The norm and the matmul that made a route's logits."""
    matmul = route.ins[0].made_by if route.ins[0] else None
    if matmul is None or matmul.kind != "matmul" or len(matmul.outs) != 1:
        return None
    norm = matmul.ins[0].made_by if matmul.ins[0] else None
    if norm is None or norm.kind != "norm" or norm.changes:
        return None
    return norm, matmul
