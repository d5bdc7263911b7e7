"""Residency: what lies where, what comes next, and what it costs.

    residency = Residency(model, table, mapping, spans, queue, engine_or_None, config)
    residency.begin()                       # dense spans are queued at once, before anything else is ready
    residency.attach(engine)
    await nursery.start(residency.run)      # ledger, budget, heat, warmer and keeper until cancelled
"""

from .house import Residency

__all__ = ["Residency"]
