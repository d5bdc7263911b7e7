"""A model opened with everything that a step needs, and what tests ask of it."""

import numpy as np
from hearthd.cyext.mapping import Mapping
from hearthd.cyext.populate_queue import PopulateQueue
from hearthd.cyext.spans import Spans
from hearthd.daemon.model.engine import Engine
from hearthd.daemon.model.gguf import open_model
from hearthd.daemon.model.spans import SpanTable
from hearthd.daemon.model.turn import Part


class Opened:
    """A model opened with everything that a step needs."""

    def __init__(self, path, *, threads=2, isa=None, deferred=False, **rest):
        self.model = open_model(path)
        self.table = SpanTable.build(self.model)
        self.mapping = Mapping(self.model.paths)
        t = self.table
        self.spans = Spans(self.mapping, t.file, t.offset, t.nbytes, t.layer)
        self.queue = PopulateQueue(self.spans, workers=2) if deferred else None
        self.engine = Engine(self.model, t, self.spans, self.queue, teams=[[-1] * threads], isa=isa, **rest)

    def __enter__(self):
        return self.engine

    def __exit__(self, *exception):
        self.engine.close()
        if self.queue is not None:
            self.queue.close()


def stepped(engine, *parts):
    """One step of (session, tokens, want): the logits of each, None where none were wanted. Raises the first error."""
    outcomes = engine.step([Part(*part) for part in parts])
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return [outcome.logits for outcome in outcomes]


def logits_of(engine, tokens, chunk=None):
    session = engine.new_session()
    chunk = chunk or len(tokens)
    parts = [stepped(engine, (session, tokens[i : i + chunk], "all"))[0] for i in range(0, len(tokens), chunk)]
    return np.concatenate(parts), session


def greedy(engine, session, logits, n):
    out = []
    for _ in range(n):
        token = int(logits.argmax())
        out.append(token)
        (step,) = stepped(engine, (session, np.array([token], np.int32), "last"))
        logits = step[0]
    return out


def nmse(found, exact):
    return float(np.median(((found - exact) ** 2).sum(1) / (exact**2).sum(1)))
