"""The engine: a mapped model, its program and its teams, immutable after opening; sessions hold one sequence's state.

Owns the step. Does not decide what is resident, when to step or for whom.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from hearthd.cyext import program as cy
from hearthd.daemon.model import architectures
from hearthd.daemon.model.graph import Graph, Tensors
from hearthd.daemon.model.hyper import Hyper
from hearthd.daemon.model.sampling import Choice, choose
from hearthd.daemon.model.turn import ContextFull, Interrupted, Outcome, Part, StepFailed


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
        self.recurrent = self.program.recurrent
        self.program.finish(self.context * sequences)
        self.threads = sum(len(team) for team in teams)
        self.isa: str = self.program.isa
        self.steps = 0
        self.rows = 0

    # --- sessions and steps ---

    def new_session(self) -> Session:
        return Session(self)

    def step(self, parts: Sequence[Part]) -> list[Outcome]:
        """Append tokens to sessions; an outcome for each part.

        Blocking, without the GIL. Raises Interrupted when the engine closes.
        """
        with self._lock:
            if self._closing:
                raise Interrupted("the engine is closed")
            outcomes: dict[int, Outcome] = {}
            taken = []
            for number, part in enumerate(parts):
                try:
                    self._reserve(part)
                except ContextFull as error:
                    outcomes[number] = Outcome(error=error)
                else:
                    taken.append(number)
            if taken:
                outcomes |= zip(taken, self._step([parts[number] for number in taken]), strict=True)
        return [outcomes[number] for number in range(len(parts))]

    def _reserve(self, part: Part) -> None:
        session, length = part.session, part.session.length + len(part.tokens)
        if length > self.context:
            raise ContextFull(f"{length} tokens exceed the context of {self.context}")
        if not session.state.reserve(length):
            session.state.shrink(session.length)
            raise ContextFull("the KV pool is full")

    def _step(self, parts: list[Part]) -> list[Outcome]:
        tokens = np.concatenate([np.asarray(part.tokens, dtype=np.int32) for part in parts])
        if len(tokens) > self.batch:
            raise ValueError(f"{len(tokens)} rows in a step of at most {self.batch}")
        spans = [(part.session.length, len(part.tokens)) for part in parts]
        positions = np.concatenate([np.arange(start, start + n, dtype=np.int32) for start, n in spans])
        owner = np.repeat(np.arange(len(parts), dtype=np.int32), [n for _, n in spans])
        selected: list[int] = []
        counts = []
        at = 0
        for part in parts:
            n = len(part.tokens)
            first = at + n if part.want == "none" or n == 0 else at if part.want == "all" else at + n - 1
            selected.extend(range(first, at + n))
            counts.append(at + n - first)
            at += n
        logits = np.empty((len(selected), self.hyper.n_vocab), dtype=np.float32)
        try:
            self.program.run(
                tokens,
                positions,
                owner,
                [part.session.state for part in parts],
                np.array(selected, dtype=np.int32),
                logits,
            )
        except cy.Failed as error:
            self._shrink(parts)
            explained = self._explain(error)
            if isinstance(explained, Interrupted):
                raise explained from None
            return [Outcome(error=explained)] * len(parts)
        self.steps += 1
        self.rows += len(tokens)
        picks, result, at = [], [], 0
        for number, (part, n) in enumerate(zip(parts, counts, strict=True)):
            part.session.length += len(part.tokens)
            part.session.state.settle(part.session.length)
            result.append(Outcome(logits=logits[at : at + n] if n and part.sampler is None else None))
            if part.sampler is not None:
                picks.append((number, at + n - 1, part.sampler, part.session.length))
            at += n
        chosen = choose(self.teams, logits, [(row, sampler, at) for _, row, sampler, at in picks])
        for (number, *_), found in zip(picks, chosen, strict=True):
            result[number] = Outcome(choice=found) if isinstance(found, Choice) else Outcome(error=found)
        return result

    def _shrink(self, parts: Sequence[Part]) -> None:
        for session in (part.session for part in parts):
            session.state.shrink(session.length)

    def _explain(self, error: cy.Failed) -> Exception:
        if error.kind == "stopped":
            return Interrupted("the engine closes")
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
