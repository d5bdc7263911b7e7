"""The engine: a mapped model, its program and its teams, immutable after opening; sessions hold one sequence's state.

Owns the step. Does not decide what is resident, when to step or for whom.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from hearthd.cyext import program as cy
from hearthd.daemon.interrupt import Interrupt
from hearthd.daemon.model import architectures
from hearthd.daemon.model.graph import Graph, Tensors
from hearthd.daemon.model.hyper import Hyper

Want = Literal["none", "last", "all"]


class StepFailed(RuntimeError):
    """The step's requests fail, the daemon lives. span: number of the span that could not be read, or None."""

    def __init__(self, message: str, span: int | None = None) -> None:
        super().__init__(message)
        self.span = span


class Interrupted(RuntimeError):
    """The step was ended by its interrupt; its sessions are as they were before."""


class ContextFull(RuntimeError):
    """The KV pool has no room for the step's tokens."""


class Session:
    """State of one sequence: its length in tokens and its blocks in the KV pool."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._state: cy.State | None = engine.program.session()
        self.length = 0

    @property
    def state(self) -> cy.State:
        if self._state is None:
            raise ValueError("the session is closed")
        return self._state

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on. A model with recurrent state can only be truncated to 0."""
        if length > self.length:
            raise ValueError(f"{length} is beyond the session's {self.length} tokens")
        if self._engine.recurrent and 0 < length < self.length:
            raise ValueError("recurrent state cannot go back")
        self.state.shrink(length)
        self.length = length

    def close(self) -> None:
        if self._state is not None:
            self._state.shrink(0)
            self._state = None


class Engine:
    """Runs steps. One at a time; step() may be called from any thread.

    model, table: as opened; spans, queue: their hd_spans and populate queue (None: nothing is deferred). teams:
    processors of each team's threads; nodes: the kernel's NUMA node of each, when there are several. context: tokens
    of the longest sequence; sequences: how many of that length the KV pool holds. Raises ModelError when the
    architecture is unknown or a tensor does not fit the hyperparameters.
    """

    def __init__(
        self,
        model: Any,
        table: Any,
        spans: Any,
        queue: Any = None,
        *,
        teams: Sequence[Sequence[int]] = ((-1,),),
        context: int = 4096,
        sequences: int = 4,
        batch: int = 512,
        isa: str | None = None,
        spin: int = 2000,
        nodes: Sequence[int] = (),
    ) -> None:
        self._model = model
        self._table = table
        self._queue = queue
        self._lock = threading.Lock()
        self._closing = False
        self.hyper: Hyper
        module, self.hyper = architectures.describe(model)
        h = self.hyper
        self.context = min(context, h.n_context_train) if h.n_context_train else context
        self.batch = batch
        self._spin = spin
        self.teams = cy.Teams(teams, spin)
        self.program = cy.Program(
            spans, queue, self.teams, isa, batch, h.n_layer, h.n_expert, max(h.n_expert_used, 1), h.n_vocab
        )
        if len(nodes) > 1:
            self.program.set_nodes(nodes)
        graph = Graph(self.program, self.context)
        module.graph(h, module.tensors(h, Tensors(model, table, self.program)), graph)
        graph.finish()
        self.recurrent = self.program.state_floats > 0
        self.program.finish(self.context * sequences)
        self.threads = sum(len(team) for team in teams)
        self.isa: str = self.program.isa
        self.steps = 0
        self.rows = 0

    # --- sessions and steps ---

    def new_session(self) -> Session:
        return Session(self)

    def step(
        self, batch: Sequence[tuple[Session, np.ndarray, Want]], interrupt: Interrupt | None = None
    ) -> list[np.ndarray | None]:
        """Append tokens (int32) to sessions; logits float32 [n, n_vocab] of the last or all of them where wanted.

        Blocking, without the GIL. All or nothing: when it raises, every session is as before, or
        closed where its model keeps recurrent state and the step had begun. `interrupt` ends this step alone.
        """
        interrupt = interrupt or Interrupt()
        with self._lock:
            if self._closing or not interrupt.begin(self.program.stop):
                raise Interrupted("the step was interrupted before it began")
            try:
                return self._step(batch)
            finally:
                interrupt.over()

    def _step(self, batch: Sequence[tuple[Session, np.ndarray, Want]]) -> list[np.ndarray | None]:
        tokens = np.concatenate([np.asarray(t, dtype=np.int32) for _, t, _ in batch])
        if len(tokens) > self.batch:
            raise ValueError(f"{len(tokens)} rows in a step of at most {self.batch}")
        positions = np.concatenate([np.arange(s.length, s.length + len(t), dtype=np.int32) for s, t, _ in batch])
        owner = np.concatenate([np.full(len(t), k, dtype=np.int32) for k, (_, t, _) in enumerate(batch)])
        for session, new, _ in batch:
            if session.length + len(new) > self.context:
                raise ContextFull(f"{session.length + len(new)} tokens exceed the context of {self.context}")
            if not session.state.reserve(session.length + len(new)):
                self._shrink(batch)
                raise ContextFull("the KV pool is full")
        selected: list[int] = []
        counts = []
        at = 0
        for _, new, want in batch:
            n = len(new)
            first = at + n if want == "none" or n == 0 else at if want == "all" else at + n - 1
            selected.extend(range(first, at + n))
            counts.append(at + n - first)
            at += n
        logits = np.empty((len(selected), self.hyper.n_vocab), dtype=np.float32)
        try:
            self.program.run(
                tokens, positions, owner, [s.state for s, _, _ in batch], np.array(selected, dtype=np.int32), logits
            )
        except cy.Failed as error:
            self._shrink(batch, ran=True)
            raise self._explain(error) from None
        self.steps += 1
        self.rows += len(tokens)
        result: list[np.ndarray | None] = []
        at = 0
        for (session, new, _), n in zip(batch, counts, strict=True):
            session.length += len(new)
            result.append(logits[at : at + n] if n else None)
            at += n
        return result

    def _shrink(self, batch: Sequence[tuple[Session, np.ndarray, Want]], *, ran: bool = False) -> None:
        for session, _, _ in batch:
            if ran and self.recurrent:
                session.close()  # its state has moved on with some of the rows and cannot go back
            else:
                session.state.shrink(session.length)

    def _explain(self, error: cy.Failed) -> Exception:
        if error.kind == "stopped":
            return Interrupted("the step was interrupted")
        if error.kind == "memory":
            return StepFailed("out of memory")
        if error.span < 0:
            return StepFailed("a read of mapped memory failed outside the model")
        found = self._queue.error(error.span) if self._queue is not None else None
        return StepFailed(self._table.failure(error.span, found, self._model.paths), error.span)

    def trim(self) -> None:
        """Give back the memory of the step's buffers until the next step."""
        with self._lock:
            self.program.trim()

    def own_experts(self, owner: np.ndarray | None) -> None:
        """From the next step on whole experts belong to teams: int32 [n_layer, n_expert]; None: every matrix is divided
        by rows."""
        with self._lock:
            self.program.set_split(1 if owner is None else 2, owner)

    def use_processors(self, teams: Sequence[Sequence[int]]) -> None:
        """From the next step on these processors' threads, as many teams as before. Blocks while a step runs; answers
        stay the same, bit for bit. Raises MemoryError where no threads are to be had: then the old ones go on."""
        made = cy.Teams(teams, self._spin, self.teams.shares)
        with self._lock:
            old, self.teams = self.teams, made
            self.program.set_teams(made)
            self.threads = sum(len(team) for team in teams)
        old.close()

    # --- what it is, and what it learnt ---

    @property
    def layer(self) -> int:
        return self.program.layer

    @property
    def expert_counts(self) -> np.ndarray:
        """uint64 [n_layer, n_expert]: how many tokens were routed where since the start. A live view."""
        return self.program.expert_counts

    @property
    def expert_touched(self) -> np.ndarray:
        """uint64 [n_layer, 3]: steps; experts used and experts there were, summed over them. A live view."""
        return self.program.expert_touched

    @property
    def kv_bytes_per_token(self) -> int:
        return int(self.program.block_bytes) // cy.KV_BLOCK

    def set_lookahead(self, read: bool, every: int = 16) -> None:
        self.program.set_lookahead(read, every)

    @property
    def lookahead(self) -> dict[str, Any]:
        """Counts since the start; recall: share of the used experts that were guessed."""
        counts = self.program.lookahead()
        used, guessed = counts["used"], counts["guessed"]
        counts["recall"] = counts["right"] / used if used else None
        counts["precision"] = counts["right"] / guessed if guessed else None
        return counts

    def close(self) -> None:
        """Ends the running step; no other begins."""
        self._closing = True
        self.program.stop(True)
        with self._lock:
            self.teams.close()
