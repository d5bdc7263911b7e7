"""What the ledger and heat know, as rows for people and clients. Measures nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .heat import Heat
from .ledger import Ledger
from .placement import Placement


def rows_by(by: str, ledger: Ledger, table: Any, placement: Placement | None) -> dict[str, Any]:
    """Rows by role, layer, node or tensor, as the ledger last measured."""
    if by == "node" and placement is not None:
        rows, reason = placement.by_node(ledger)
        return {"by": by, "rows": rows, "unknown_reason": reason}
    keys: NDArray[Any]
    name: Callable[[Any], str]
    if by == "layer":
        keys, name = ledger.layer, str
    elif by == "tensor":
        names = table.names
        keys, name = np.asarray(table.tensor), lambda key: str(names[key])
    else:
        rows = [msgspec.to_builtins(row) for row in ledger.rows()]
        return {"by": by, "rows": rows, "unknown_reason": ledger.unknown_reason}
    rows = []
    for key in np.unique(keys).tolist():
        for role, chosen in (("dense", ledger.expert < 0), ("expert", ledger.expert >= 0)):
            mask = (keys == key) & chosen
            if mask.any():
                rows.append(msgspec.to_builtins(ledger.row(mask, 0, role)) | {by: name(key)})
    return {"by": by, "rows": rows, "unknown_reason": ledger.unknown_reason}


def experts(layer: int | None, ledger: Ledger, heat: Heat) -> dict[str, Any]:
    """Per layer: heat of each expert (share of the layer's choices), what is resident, effective number."""
    lines = ledger.expert_lines(*heat.counts.shape)
    effective = heat.effective()
    total = heat.counts.sum(axis=1)
    chosen = range(len(lines)) if layer is None else [layer] if 0 <= layer < len(lines) else []
    used, reason = heat.verdict()
    return {
        "used": used, "reason": reason,
        "layers": [
            {"layer": i, "resident": lines[i], "effective": round(float(effective[i]), 2),
             "heat": [round(float(c / total[i]), 5) if total[i] else 0.0 for c in heat.counts[i]]}
            for i in chosen
        ],
    }  # fmt: skip
