"""The engine: a mapped model, its program and its teams, immutable after opening; sessions hold one sequence's state.

Owns the step. Does not decide what is resident, when to step or for whom.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hearthd.cyext import program as cy
from hearthd.cyext.populate_queue import PopulateQueue
from hearthd.cyext.spans import Spans
from hearthd.cyext.teams import Teams
from hearthd.daemon.model import architectures
from hearthd.daemon.model.gguf import ModelFile
from hearthd.daemon.model.graph import Graph, Tensors
from hearthd.daemon.model.hyper import Hyper
from hearthd.daemon.model.sampling import Choice, Sampler, choose
from hearthd.daemon.model.spans import SpanTable
from hearthd.daemon.model.turn import ContextFull, Interrupted, Outcome, Part, PoolUse, StepFailed
from numpy.typing import NDArray

WARM_BYTES = 64 << 20  # of free blocks that keep their memory for the next sessions
WARM_SECONDS = 2.0  # so long
COOLED_BLOCKS = 64  # that a step gives back at most: it has other things to do


class Session:
    """State of one sequence: its length in tokens, its blocks in the pool, its recurrent state."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
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
        if self.engine.recurrent and 0 < length < self.length:
            raise ValueError("recurrent state cannot go back")
        self.state.shrink(length)
        self.length = length

    def go_on(self, tokens: int) -> None:
        """A step has appended so many."""
        self.length += tokens
        self.state.settle(self.length)

    def go_back(self) -> None:
        """A step has failed: what it has appended is not kept."""
        if self._state is not None:
            self._state.shrink(self.length)

    def close(self) -> None:
        if self._state is not None:
            self._state.shrink(0)
            self._state = None


@dataclass(slots=True, eq=False)
class _Taken:
    """A part of the running step, and what comes of it. wanted: rows at its end whose logits are to be had; out: where
    they go, of a sampler's row `row` of the memory that samplers share."""

    session: Session
    tokens: NDArray[np.int32]
    wanted: int
    sampler: Sampler | None
    row: int = -1
    out: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None
    choice: Choice | None = None
    error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """The session is as before."""
        self.error, self.logits = error, None
        self.session.go_back()


class Engine:
    """Runs steps. One at a time; step() may be called from any thread.

    model, table: as opened; spans, queue: their hd_spans and populate queue (None: nothing is deferred). teams:
    processors of each team's threads; nodes: the kernel's NUMA node of each, when there are several. context: tokens
    of the longest sequence; sequences: how many of that length the pool holds. Raises ModelError when the
    architecture is unknown or a tensor does not fit the hyperparameters.
    """

    def __init__(
        self,
        model: ModelFile,
        table: SpanTable,
        spans: Spans,
        queue: PopulateQueue | None = None,
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
        self.teams = Teams(teams, spin)
        self.program = cy.Program(
            spans, queue, self.teams, isa, batch, h.n_layer, h.n_expert, max(h.n_expert_used, 1), h.n_vocab
        )
        if len(nodes) > 1:
            self.program.set_nodes(nodes)
        graph = Graph(self.program, self.context)
        module.graph(h, module.tensors(h, Tensors(model, table, self.program)), graph)
        graph.finish()
        self.recurrent = self.program.recurrent
        # Each of the sequences has its whole context, whatever the others hold: blocks are not divided between them.
        self.program.finish(sequences * -(-self.context // cy.KV_BLOCK))
        self._warm_blocks = WARM_BYTES // max(self.program.pool.block_bytes, 1)
        self.threads = sum(len(team) for team in teams)
        self.isa: str = self.program.isa
        self.steps = 0
        self.rows = 0

    # --- sessions and steps ---

    def new_session(self) -> Session:
        return Session(self)

    def step(self, parts: Sequence[Part]) -> list[Outcome]:
        """Append tokens to sessions; an outcome for each part.

        Blocking, without the GIL. Raises Interrupted when the engine closes, ValueError for what nobody may ask: too
        many rows, tokens that are none, a session of another engine or of two parts.
        """
        with self._lock:
            if self._closing:
                raise Interrupted("the engine is closed")
            taken = [self._taken(part) for part in parts]
            if (rows := sum(len(each.tokens) for each in taken)) > self.batch:
                raise ValueError(f"{rows} rows in a step of at most {self.batch}")
            if len({each.session for each in taken}) < len(taken):
                raise ValueError("two parts of one session in a step")
            try:
                self._run(taken)
            except BaseException:
                for each in taken:
                    each.session.go_back()
                raise
            finally:
                self.program.pool.cool(WARM_SECONDS, self._warm_blocks, COOLED_BLOCKS)
        return [Outcome(each.logits, each.choice, each.error) for each in taken]

    def _taken(self, part: Part) -> _Taken:
        session = part.session
        if not isinstance(session, Session) or session.engine is not self:
            raise ValueError("a session of another engine")
        tokens = np.ascontiguousarray(part.tokens, dtype=np.int32)
        want = "last" if part.sampler is not None else part.want
        rows = 0 if want == "none" else len(tokens) if want == "all" else min(len(tokens), 1)
        return _Taken(session, tokens, rows, part.sampler)

    def _run(self, parts: list[_Taken]) -> None:
        for part in parts:
            self._reserve(part)
        running = [part for part in parts if part.error is None and len(part.tokens)]
        if not running:
            return
        try:
            self._lay_out(running)
            lost = self.program.run([(p.session.state, p.tokens, p.session.length, p.out) for p in running])
        except (cy.Failed, MemoryError) as error:
            failed = self._explain(error)
            if isinstance(failed, Interrupted):
                raise failed from None
            for part in running:
                part.fail(failed)
            return
        done = []
        for part, span in zip(running, lost, strict=True):
            if span >= 0:
                part.fail(self._unreadable(span))
                continue
            part.session.go_on(len(part.tokens))
            self.rows += len(part.tokens)
            done.append(part)
        self.steps += bool(done)
        self._choose([part for part in done if part.sampler is not None])

    def _reserve(self, part: _Taken) -> None:
        session, length = part.session, part.session.length + len(part.tokens)
        try:
            if length > self.context:
                part.error = ContextFull(f"{length} tokens exceed the context of {self.context}")
            elif not session.state.reserve(session.length, length):
                part.error = ContextFull("the pool is full")
        except MemoryError:
            part.fail(StepFailed("out of memory"))

    def _lay_out(self, parts: list[_Taken]) -> None:
        """Where logits go: those that are handed out have memory of their own, those of samplers share some."""
        draws = [part for part in parts if part.sampler is not None]
        if draws:
            scratch = self.program.scratch_logits(len(draws))
            for row, part in enumerate(draws):
                part.row, part.out = row, scratch[row : row + 1]
        for part in parts:
            if part.sampler is None and part.wanted:
                part.out = part.logits = np.empty((part.wanted, self.hyper.n_vocab), dtype=np.float32)

    def _choose(self, parts: list[_Taken]) -> None:
        if not parts:
            return
        picks = [(part.row, part.sampler, part.session.length) for part in parts if part.sampler is not None]
        rows = self.program.scratch_logits(parts[-1].row + 1)
        for part, found in zip(parts, choose(self.teams, rows, picks), strict=True):
            if isinstance(found, Choice):
                part.choice = found
            else:
                part.error = found

    def _explain(self, error: cy.Failed | MemoryError) -> Exception:
        if isinstance(error, MemoryError) or error.kind == "memory":
            return StepFailed("out of memory")
        if error.kind == "stopped":
            return Interrupted("the engine closes")
        if error.span < 0:
            return StepFailed("a read of mapped memory failed outside the model")
        return self._unreadable(error.span)

    def _unreadable(self, span: int) -> StepFailed:
        found = self._queue.error(span) if self._queue is not None else None
        return StepFailed(self._table.failure(span, found, self._model.paths), span)

    @property
    def pool(self) -> PoolUse:
        """The pool as it is now; its bytes as the kernel tells."""
        pool = self.program.pool
        return PoolUse(pool.blocks, pool.used, pool.warm, pool.block_bytes, pool.resident())

    def memory_taken(self) -> int:
        """Bytes of sessions and steps: pool and buffers as the kernel tells, recurrent states by their number."""
        program = self.program
        return program.pool.resident() + program.resident() + program.sessions_open * program.session_bytes

    def trim(self) -> None:
        """Give back the memory of the step's buffers until the next step, and that of the pool's free blocks."""
        with self._lock:
            self.program.trim()
            self.program.pool.cool()

    def own_experts(self, owner: np.ndarray | None) -> None:
        """From the next step on whole experts belong to teams: int32 [n_layer, n_expert]; None: every matrix is divided
        by rows."""
        with self._lock:
            self.program.set_split(1 if owner is None else 2, owner)

    def use_processors(self, teams: Sequence[Sequence[int]]) -> None:
        """From the next step on these processors' threads, as many teams as before. Blocks while a step runs; answers
        stay the same, bit for bit. Raises MemoryError where no threads are to be had: then the old ones go on."""
        made = Teams(teams, self._spin, self.teams.shares)
        with self._lock:
            old, self.teams = self.teams, made
            self.program.set_teams(made)
            self.threads = sum(len(team) for team in teams)
        old.close()

    # --- what it is, and what it learnt ---

    @property
    def n_vocab(self) -> int:
        return self.hyper.n_vocab

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
        return self.program.token_bytes

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
