"""The line that says what the start did with the model's bytes. Words only: all numbers are handed to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .ledger import Picture
from .text import gib
from .warmer import Warmer

if TYPE_CHECKING:
    from .parts import Options


def said_at_start(census: dict[str, Any], seen: Picture, warmer: Warmer, options: Options, budget: int) -> str:
    """`dense 7.90 GiB populated in 4.02 s, experts deferred 115 GiB, warming in background (budget 51.2 GiB)`"""
    dense, experts = census["dense"]["bytes"], census["expert"]["bytes"]
    seconds = warmer.progress()["dense_seconds"]
    parts = [f"dense {gib(dense)} " + (f"populated in {seconds:.2f} s" if seconds else "being populated")]
    if not experts:
        parts.append("no experts")
    elif options.experts == "eager":
        parts.append(f"experts {gib(experts)} populated at once")
    elif not seen.measured_at:
        parts.append(f"experts {gib(experts)}, not measured yet")
    elif seen.unknown_reason:
        parts.append(f"experts {gib(experts)}, how much of them is deferred is unknown")
    else:
        chosen = warmer.expert >= 0
        parts.append(f"experts deferred {gib(experts - int(seen.resident[chosen].sum()))}")
    how = {"off": "not warming", "before-ready": "warming before ready"}.get(options.warm, "")
    how = how or "warming in background"
    if options.warm == "auto" and not warmer.fits(budget):
        how = f"warming {warmer.scope}"
    return ", ".join(parts) + f", {how} (budget {gib(budget)})"
