"""Merging as it is defined, without any haste: the measure of the compact vocabularies."""

from itertools import pairwise

NEVER = float("inf")


def merge(symbols, cost):
    """Join neighbours, the cheapest first, the leftmost among equals, until every pair costs NEVER."""
    symbols = list(symbols)
    while len(symbols) > 1:
        costs = [cost(left, right) for left, right in pairwise(symbols)]
        best = min(costs)
        if best == NEVER:
            break
        at = costs.index(best)
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
    return symbols
