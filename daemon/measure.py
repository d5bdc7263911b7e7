"""Residency as the kernel tells it now, grouped for the `residency` and `experts` operations. Keeps nothing.

mapped: in this process's page table; cached: in the page cache only; deferred: in neither; unknown: not told.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def span_states(table: Any, mapping: Any) -> dict[str, np.ndarray]:
    """Bytes per span in each state, uint64 [n_span] each; they add up to the span's bytes."""
    arguments = (table.file, table.offset, table.nbytes)
    nbytes = table.nbytes.astype(np.uint64)
    zero = np.zeros(len(nbytes), np.uint64)
    mapped = np.minimum(np.asarray(mapping.mapped(*arguments)), nbytes)
    if mapping.blind:
        return {"mapped": mapped, "cached": zero, "deferred": zero, "unknown": nbytes - mapped}
    cached = np.maximum(np.minimum(np.asarray(mapping.cached(*arguments)), nbytes), mapped)
    return {"mapped": mapped, "cached": cached - mapped, "deferred": nbytes - cached, "unknown": zero}


def _row(states: dict[str, np.ndarray], chosen: np.ndarray, table: Any) -> dict[str, int]:
    row = {"total": int(table.nbytes[chosen].sum())}
    return row | {state: int(values[chosen].sum()) for state, values in states.items()}


def residency_rows(model: Any, table: Any, mapping: Any, spans: Any, by: str) -> dict[str, Any]:
    """`{"by", "rows"}`; rows by role, layer (and role), node, or tensor."""
    states = span_states(table, mapping)
    expert = table.expert >= 0
    rows: list[dict[str, Any]] = []
    if by == "tensor":
        order = np.unique(table.tensor)
        for tensor in order.tolist():
            name = table.names[tensor]
            rows.append({"tensor": name, "type": model.tensors[name].type_name,
                         **_row(states, np.flatnonzero(table.tensor == tensor), table)})  # fmt: skip
    elif by == "layer":
        for layer in np.unique(table.layer).tolist():
            for role, of_role in (("dense", ~expert), ("expert", expert)):
                if (chosen := np.flatnonzero((table.layer == layer) & of_role)).size:
                    rows.append({"layer": layer, "role": role, **_row(states, chosen, table)})
    elif by == "node":
        for file, nodes in sorted(mapping.numa_maps().items()):
            for node, mapped in sorted(nodes.items()):
                rows.append({"file": file, "node": node, "total": mapped, "mapped": mapped})
    else:
        for role, of_role in (("dense", ~expert), ("expert", expert)):
            rows.append({"role": role, **_row(states, np.flatnonzero(of_role), table)})
    reason = "the kernel does not tell about a file that is not ours" if mapping.blind else ""
    return {"by": by, "rows": rows, "unknown_reason": reason}


def expert_rows(table: Any, mapping: Any, counts: np.ndarray, layer: int | None) -> dict[str, Any]:
    """`{"layers": [{"layer", "counts", "resident"}]}`; resident: one character per expert, as in ResidencyNow."""
    states = span_states(table, mapping)
    known = states["mapped"] + states["cached"]
    layers = []
    for number in table.expert_layers():
        if layer is not None and number != layer:
            continue
        characters = []
        for expert in range(table.n_expert):
            ids = table.expert_spans(number, expert)
            total = int(table.nbytes[ids].sum())
            if int(states["unknown"][ids].sum()):
                characters.append("?")
            else:
                whole = int(known[ids].sum())
                characters.append("#" if whole == total else str(10 * whole // max(1, total)))
        row: dict[str, Any] = {"layer": number, "resident": "".join(characters)}
        row["counts"] = counts[number].tolist() if number < len(counts) else [0] * table.n_expert
        layers.append(row)
    return {"layers": layers}
