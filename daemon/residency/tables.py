"""What a picture of the ledger and heat know, as rows for people and clients. Measures nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .heat import Heat
from .ledger import Picture, by_role
from .placement import Placement

if TYPE_CHECKING:
    from .parts import Table


def rows_by(by: str, seen: Picture, table: Table, placement: Placement | None) -> dict[str, Any]:
    """Rows by role, layer, node or tensor, as they were when the picture was made."""
    if by == "node" and placement is not None:
        rows, reason = placement.by_node(seen)
        return {"by": by, "rows": rows, "unknown_reason": reason}
    keys: NDArray[np.int32]
    name: Callable[[int], str]
    if by == "layer":
        keys, name = seen.layer, str
    elif by == "tensor":
        names = table.names
        keys, name = np.asarray(table.tensor), lambda key: str(names[key])
    else:
        rows = [msgspec.to_builtins(row) for row in seen.rows()]
        return {"by": by, "rows": rows, "unknown_reason": seen.unknown_reason}
    rows = []
    for key in np.unique(keys).tolist():
        for role, chosen in by_role(seen.expert):
            mask = (keys == key) & chosen
            if mask.any():
                rows.append(msgspec.to_builtins(seen.row(mask, 0, role)) | {by: name(key)})
    return {"by": by, "rows": rows, "unknown_reason": seen.unknown_reason}


def experts(layer: int | None, seen: Picture, heat: Heat) -> dict[str, Any]:
    """Per layer: heat of each expert (share of the layer's choices), what is resident, effective number."""
    lines = seen.expert_lines(*heat.counts.shape)
    effective = heat.effective()
    counts = heat.counts
    total = counts.sum(axis=1)
    chosen = range(len(lines)) if layer is None else [layer] if 0 <= layer < len(lines) else []
    used, reason = heat.verdict()
    return {
        "used": used, "reason": reason,
        "layers": [
            {"layer": i, "resident": lines[i], "effective": round(float(effective[i]), 2),
             "heat": [round(float(c / total[i]), 5) if total[i] else 0.0 for c in counts[i]]}
            for i in chosen
        ],
    }  # fmt: skip
