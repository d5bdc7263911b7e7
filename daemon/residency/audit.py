"""No silent no-op: what the metadata promises against what was found, and options that cannot take effect.

Owns the reason codes of residency. Looks once, at the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import protocol
from .text import gib

if TYPE_CHECKING:
    from hearthd.cyext.mapping import Mapping

    from .budget import Budget
    from .parts import Model, Options, Table

LOCK_SHARE = 0.7  # of the budget: what mlocked dense spans may take of it


def audit(
    model: Model, table: Table, mapping: Mapping, options: Options, now: Budget, sessions: int
) -> list[protocol.Warning_]:
    """Warnings with their reason codes; see the texts. sessions: bytes that they may take."""
    budget = now.bytes
    found: list[protocol.Warning_] = []

    def warn(code: str, message: str) -> None:
        found.append(protocol.Warning_(code=code, message=message))

    expert = np.asarray(table.expert)
    nbytes = np.asarray(table.nbytes)
    promised = int(model.hyper("expert_count") or 0)
    is_expert = expert >= 0
    if not is_expert.any():
        if promised:
            warn("experts-not-found",
                 f"the metadata promises {promised} experts per layer, but no tensor is named like one: "
                 "everything counts as dense")  # fmt: skip
        elif options.experts == "defer":
            warn("defer-no-experts", "nothing is deferred: the model has no experts")
    else:
        layers = sorted(set(np.asarray(table.layer)[is_expert].tolist()))
        parts = np.asarray(table.part)
        for layer in layers:
            mine = is_expert & (np.asarray(table.layer) == layer)
            kinds = len(set(parts[mine].tolist()))
            if promised and int(mine.sum()) != promised * kinds:
                warn("experts-incomplete",
                     f"layer {layer} has {int(mine.sum())} expert spans; {promised} experts with {kinds} tensors "
                     f"make {promised * kinds}")  # fmt: skip
                break
        if promised and table.n_expert != promised:
            warn("experts-count", f"the metadata promises {promised} experts per layer, {table.n_expert} were found")
    if mapping.blind:
        warn("residency-unknown",
             "what is resident is unknown: a model file is neither ours nor writable, and the kernel tells only its "
             "owner; warming works, its display does not")  # fmt: skip
    if not mapping.huge:
        warn("no-huge-blocks", "the kernel does not read files in 2 MiB folios here (transparent huge pages are off): "
             "warming costs more processor time")  # fmt: skip
    if mapping.touches:
        warn("populate-refused", "the system refuses MADV_POPULATE_READ (a kernel before 5.14, or a sandbox): pages "
             "are touched one by one, and warming costs more processor time")  # fmt: skip
    dense, experts = int(nbytes[~is_expert].sum()), int(nbytes[is_expert].sum())
    if dense > budget:
        warn("budget-below-dense",
             f"the budget of {gib(budget)} does not hold the dense spans ({gib(dense)}): every token will read "
             "from disk")  # fmt: skip
    elif dense + experts > budget and options.experts == "eager":
        warn("eager-over-budget",
             f"experts are to be populated at once, but only {gib(budget)} of {gib(dense + experts)} fit the budget")
    if sessions > now.sessions + max(budget - dense, 0):
        warn("sessions-over-budget",
             f"sessions as long as --context allows take {gib(sessions)}, of memory that leaves {gib(budget)} to the "
             f"model and {gib(now.sessions)} to them: fewer --sessions or a smaller --context fit")  # fmt: skip
    if options.warm == "off" and options.experts == "eager":
        warn("eager-without-warm", "experts are populated at the start, but --warm off does not map them again later")
    return found


def census(table: Table) -> dict[str, dict[str, int]]:
    """Bytes and spans per role."""
    expert = np.asarray(table.expert) >= 0
    nbytes = np.asarray(table.nbytes)
    return {
        "dense": {"spans": int((~expert).sum()), "bytes": int(nbytes[~expert].sum())},
        "expert": {"spans": int(expert.sum()), "bytes": int(nbytes[expert].sum())},
    }
