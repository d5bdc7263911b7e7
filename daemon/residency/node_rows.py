"""Bytes by the node whose memory holds them, where no pages are owned by teams. Asks the kernel, guesses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from hearthd.cyext.placement import page_counts
from numpy.typing import NDArray

from .ledger import Picture, by_role
from .numa_plan import PAGE

if TYPE_CHECKING:
    from hearthd.cyext.spans import Spans

KINDS = 64  # nodes that page_counts tells apart
WHY = "the kernel tells on which node a page lies only where it is mapped: what is merely cached may be on any"


def node_rows(nodes: Sequence[int], seen: Picture, spans: Spans) -> tuple[list[dict[str, Any]], str]:
    """Rows per node and role, as seen, and why bytes are unknown. nodes: those that have memory.

    With one node all that is in memory is there. With several, mapped pages are asked for one by one (move_pages); what
    is only cached is unknown, and that and what is deferred stand in a row without a node. Blocks.
    """
    if len(nodes) == 1:
        return [msgspec.to_builtins(row) | {"node": nodes[0]} for row in seen.rows()], seen.unknown_reason
    counts = page_counts(spans.home, seen.nbytes, KINDS)[:, :-1]
    total, held = seen.nbytes.astype(np.int64), seen.arena.astype(np.int64)
    if seen.unknown_reason:
        mapped = _divide(np.minimum(counts.sum(axis=1) * PAGE, total), counts)
        deferred = np.zeros_like(total)
    else:
        mapped = _divide(seen.mapped.astype(np.int64), counts)
        deferred = np.maximum(total - np.maximum(seen.resident.astype(np.int64), held), 0)
    apart = np.flatnonzero(held > mapped.sum(axis=1))
    arena = np.zeros_like(mapped)
    if len(apart):
        only = held[apart] - mapped[apart].sum(axis=1)
        arena[apart] = _divide(only, page_counts(spans.at[0][apart], total[apart], KINDS)[:, :-1])
    rows: list[dict[str, Any]] = []
    unknown_at_all = 0
    roles = by_role(seen.expert)
    for node in np.flatnonzero((mapped + arena).sum(axis=0)).tolist():
        for role, chosen in roles:
            here, there = int(mapped[chosen, node].sum()), int(arena[chosen, node].sum())
            locked = int(mapped[chosen & seen.locked, node].sum())
            if here + there:
                rows.append({"node": node, "role": role, "total": here + there, "mapped": here, "arena": there,
                             "cached": 0, "deferred": 0, "unknown": 0, "locked": locked})  # fmt: skip
    for role, chosen in roles:
        rest = int((total - mapped.sum(axis=1) - arena.sum(axis=1))[chosen].sum())
        nowhere = min(int(deferred[chosen].sum()), rest)
        unknown_at_all += rest - nowhere
        if rest:
            rows.append({"node": None, "role": role, "total": rest, "mapped": 0, "arena": 0, "cached": 0,
                         "deferred": nowhere, "unknown": rest - nowhere, "locked": 0})  # fmt: skip
    return rows, seen.unknown_reason or (WHY if unknown_at_all else "")


def _divide(nbytes: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes of each range [n] by node [n, nodes], as its pages lie; none of a range of which no page is known."""
    pages = counts.sum(axis=1, keepdims=True)
    parts = nbytes[:, None] * counts // np.maximum(pages, 1)
    known = np.flatnonzero(pages[:, 0])
    parts[known, counts[known].argmax(axis=1)] += nbytes[known] - parts[known].sum(axis=1)
    return np.asarray(parts)
