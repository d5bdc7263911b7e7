"""Which spans an operation's selection means. Owns that translation only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import protocol

if TYPE_CHECKING:
    from .parts import Table


def select_spans(select: protocol.Selection, table: Table, heat: NDArray[np.float64]) -> NDArray[np.int32]:
    """Ids in table order. Empty selection: all experts; the parts of a selection narrow each other down; `dense` adds
    the dense spans (of the chosen layers), and alone means those. Numbers that do not exist select nothing."""
    layer, expert = np.asarray(table.layer), np.asarray(table.expert)
    here = np.ones(len(layer), bool) if select.layers is None else np.isin(layer, select.layers)
    by_expert = select.experts is not None or select.hottest is not None
    chosen = (expert >= 0) & here & (by_expert or not select.dense)
    if select.experts is not None:
        chosen &= np.isin(expert, select.experts)
    if select.hottest is not None and heat.size:
        rank = np.argsort(np.argsort(-heat, axis=1, kind="stable"), axis=1)
        inside = np.flatnonzero(chosen)
        chosen[inside] = rank[layer[inside], expert[inside]] < select.hottest
    if select.dense:
        chosen |= (expert < 0) & here
    return np.flatnonzero(chosen).astype(np.int32)
