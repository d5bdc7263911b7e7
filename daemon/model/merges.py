"""Merging neighbouring symbols by cost: the inner step of SentencePiece, whose vocabularies are small.

Owns the order of merges (lowest cost first, leftmost among equals) and nothing about vocabularies. Byte-level BPE has
the same step in cyext/bpe.c.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import pairwise

NEVER = float("inf")
Cost = Callable[[str, str], float]  # of merging two neighbours; NEVER where they do not merge

# Up to here rescanning a list beats keeping a heap; beyond it the scan would be quadratic.
_SCAN_LIMIT = 96


def merge(symbols: list[str], cost: Cost) -> list[str]:
    """Merge `symbols` until no neighbours merge; `symbols` is used up."""
    return _scan(symbols, cost) if len(symbols) <= _SCAN_LIMIT else _queue(symbols, cost)


def _scan(symbols: list[str], cost: Cost) -> list[str]:
    costs = [cost(left, right) for left, right in pairwise(symbols)]
    while costs:
        best = min(costs)
        if best == NEVER:
            break
        at = costs.index(best)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        del costs[at]
        if at:
            costs[at - 1] = cost(symbols[at - 1], symbols[at])
        if at < len(costs):
            costs[at] = cost(symbols[at], symbols[at + 1])
    return symbols


def _queue(symbols: list[str], cost: Cost) -> list[str]:
    count = len(symbols)
    after = list(range(1, count + 1))  # `count` is the end
    before = list(range(-1, count - 1))
    # An entry is stale when the two symbols no longer make up its length: symbols only grow, so that suffices.
    heap = [
        (price, at, len(left) + len(right))
        for at, (left, right) in enumerate(pairwise(symbols))
        if (price := cost(left, right)) != NEVER
    ]
    heapify(heap)
    while heap:
        _, at, length = heappop(heap)
        right = after[at]
        if not symbols[at] or right == count or len(symbols[at]) + len(symbols[right]) != length:
            continue
        merged = symbols[at] = symbols[at] + symbols[right]
        symbols[right] = ""
        follower = after[at] = after[right]
        if follower < count:
            before[follower] = at
            if (price := cost(merged, symbols[follower])) != NEVER:
                heappush(heap, (price, at, length + len(symbols[follower])))
        leader = before[at]
        if leader >= 0 and (price := cost(symbols[leader], merged)) != NEVER:
            heappush(heap, (price, leader, len(symbols[leader]) + length))
    return [symbol for symbol in symbols if symbol]
