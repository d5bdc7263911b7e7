"""Prompt and generation rates of the engine on a resident model, as llama-bench measures them, and those of many
sessions in the same steps, as llama-batched-bench does.

Owns the runs and their figures; builds an engine of its own and talks to no daemon.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from . import topology
from .model.turn import Part

if TYPE_CHECKING:
    from .model.engine import Session
    from .model.spans import SpanTable

PIECE = 4 << 20

Row = dict[str, str | int | float | list[float]]  # of the JSON that is told
Tell = Callable[[str], None]


def at_depth(what: str, depth: int) -> str:
    return f"{what} @ d{depth}" if depth else what


@dataclass(frozen=True)
class Test:
    """One line of the table: so many tokens read at once or generated one by one, after so many in the context."""

    prompt: int
    generate: int
    depth: int
    batch: int

    @property
    def name(self) -> str:
        return at_depth(f"pp{self.prompt}" if self.prompt else f"tg{self.generate}", self.depth)


@dataclass(frozen=True)
class Batch:
    """One line of the batch table: so many sessions, each with a prompt and as many tokens generated, after so many in
    its context. `batch` rows of prompts in a step at most."""

    sessions: int
    prompt: int
    generate: int
    depth: int
    batch: int

    @property
    def name(self) -> str:
        return at_depth(f"{self.sessions} x (pp{self.prompt} + tg{self.generate})", self.depth)

    @property
    def cached(self) -> int:
        """Tokens that all sessions hold at the end."""
        return self.sessions * (self.depth + self.prompt + self.generate)


@dataclass
class Result:
    """Tokens per second of each repetition."""

    test: Test
    isa: str
    threads: int
    samples: list[float] = field(default_factory=list)
    weight_bytes: float = 0.0  # a generated token's share of the weights; 0 for prompts

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        return (max(self.samples) - min(self.samples)) / self.median

    @property
    def weight_rate(self) -> float:
        """Bytes of weights per second."""
        return self.weight_bytes * self.median

    def as_dict(self) -> Row:
        row: Row = {
            "test": self.test.name,
            "n_prompt": self.test.prompt,
            "n_gen": self.test.generate,
            "n_depth": self.test.depth,
            "n_batch": self.test.batch,
            "isa": self.isa,
            "threads": self.threads,
            "samples": self.samples,
            "median": self.median,
            "min": min(self.samples),
            "max": max(self.samples),
            "spread": self.spread,
        }
        if self.weight_bytes:
            row["weight_bytes_per_token"] = self.weight_bytes
            row["weight_bytes_per_second"] = self.weight_rate
        return row


@dataclass
class BatchResult:
    """Seconds of each repetition: until all prompts were read, and from there until all had generated."""

    test: Batch
    isa: str
    threads: int
    prompts: list[float] = field(default_factory=list)
    generations: list[float] = field(default_factory=list)

    @property
    def prompt_seconds(self) -> float:
        return statistics.median(self.prompts)

    @property
    def generate_seconds(self) -> float:
        return statistics.median(self.generations)

    @property
    def seconds(self) -> float:
        return self.prompt_seconds + self.generate_seconds

    @property
    def prompt_rate(self) -> float:
        """Tokens per second of all sessions together; 0 where none were asked for. So are the others."""
        return _rate(self.test.sessions * self.test.prompt, self.prompt_seconds)

    @property
    def generate_rate(self) -> float:
        return _rate(self.test.sessions * self.test.generate, self.generate_seconds)

    @property
    def rate(self) -> float:
        return _rate(self.test.sessions * (self.test.prompt + self.test.generate), self.seconds)

    def as_dict(self) -> Row:
        """Names as in llama-batched-bench's JSON lines, where it has them."""
        return {
            "test": self.test.name,
            "pp": self.test.prompt,
            "tg": self.test.generate,
            "pl": self.test.sessions,
            "n_depth": self.test.depth,
            "n_batch": self.test.batch,
            "n_kv": self.test.cached,
            "isa": self.isa,
            "threads": self.threads,
            "t_pp": self.prompt_seconds,
            "speed_pp": self.prompt_rate,
            "t_tg": self.generate_seconds,
            "speed_tg": self.generate_rate,
            "t": self.seconds,
            "speed": self.rate,
            "samples_t_pp": self.prompts,
            "samples_t_tg": self.generations,
        }


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count else 0.0


def weight_bytes_per_token(table: SpanTable, used: int) -> float:
    """Bytes of weights that one generated token needs: dense spans, one row of the embedding, `used` experts a layer.

    Experts of a layer are of one size, so which of them are routed to does not matter.
    """
    sizes = np.asarray(table.nbytes, dtype=np.float64)
    expert = np.asarray(table.is_expert)
    total = float(sizes[~expert].sum())
    if "output.weight" in table.names:
        total -= float(sizes[table.dense("token_embd.weight")])
    if table.n_expert:
        total += float(sizes[expert].sum()) * used / table.n_expert
    return total


class Bench:
    """A model opened, mapped and read into memory for measuring. Raises ModelError, OSError, ValueError.

    context: tokens of a session at most; batch: rows of a step at most; sessions: at a time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        context: int,
        batch: int,
        sessions: int = 1,
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        from hearthd.cyext.mapping import Mapping
        from hearthd.cyext.spans import Spans
        from hearthd.daemon.model import architectures
        from hearthd.daemon.model.engine import Engine
        from hearthd.daemon.model.gguf import open_model

        self.model = open_model(path)
        self.table = architectures.check(self.model).table
        self.mapping = Mapping(self.model.paths)
        self.warm()
        machine = topology.read()
        cpus = sum(len(core) for node in machine.nodes for core in node.cores)
        count = threads if threads is not None else machine.threads
        if not 1 <= count <= cpus:
            raise ValueError(f"{count} threads: this process may use {cpus} processors")
        spans = Spans(self.mapping, self.table.file, self.table.offset, self.table.nbytes, self.table.layer)
        self.engine = Engine(
            self.model,
            self.table,
            spans,
            teams=(machine.one_team(count),),
            context=context,
            sequences=sessions,
            batch=batch,
            isa=isa,
        )
        if self.engine.context < context:
            raise ValueError(f"{context} tokens exceed the model's context of {self.engine.context}")
        self._random = np.random.default_rng(1)

    def warm(self) -> None:
        """Every byte of the model mapped and, where the limits allow, locked, so that no measure waits for the disk."""
        for file, size in enumerate(self.model.sizes):
            for offset in range(0, size, PIECE):
                self.mapping.populate(file, offset, min(PIECE, size - offset))
            try:
                self.mapping.lock(file, 0, size)
            except OSError:
                return

    def _tokens(self, count: int) -> NDArray[np.int32]:
        return self._random.integers(0, self.engine.hyper.n_vocab, count, dtype=np.int32)

    def _append(self, sessions: Sequence[Session], count: int, batch: int) -> None:
        """Random tokens to each session, session by session, in steps of at most `batch` rows; logits of each one's
        last, as whoever continues would want."""
        parts: list[Part] = []
        room = batch
        for session in sessions:
            tokens = self._tokens(count)
            while len(tokens):
                taken, tokens = tokens[:room], tokens[room:]
                parts.append(Part(session, taken, "none" if len(tokens) else "last"))
                room -= len(taken)
                if not room:
                    self._step(parts)
                    parts, room = [], batch
        if parts:
            self._step(parts)

    def _step(self, parts: list[Part]) -> None:
        for outcome in self.engine.step(parts):
            if outcome.error is not None:
                raise outcome.error

    def run(self, test: Test, repetitions: int, progress: Tell | None = None) -> Result:
        """A warm-up, then the repetitions, each from the same depth. One token a step where tokens are generated."""
        result = Result(test, self.engine.isa, self.engine.threads)
        if test.generate:
            result.weight_bytes = weight_bytes_per_token(self.table, self.engine.hyper.n_expert_used)
        count = test.prompt or test.generate
        sessions = [self.engine.new_session()]
        try:
            self._append(sessions, test.depth, test.batch)
            for turn in range(-1, repetitions):
                start = time.perf_counter()
                if test.prompt:
                    self._append(sessions, count, test.batch)
                else:
                    for _ in range(count if turn >= 0 else 1):
                        self._append(sessions, 1, 1)
                seconds = time.perf_counter() - start
                if turn >= 0:
                    result.samples.append(count / seconds)
                    if progress:
                        progress(f"{test.name}, batch {test.batch}: {count / seconds:.2f} t/s")
                self._rewind(sessions, test)
        finally:
            _close(sessions)
        return result

    def run_batch(self, test: Batch, repetitions: int, progress: Tell | None = None) -> BatchResult:
        """A warm-up, then the repetitions. A step of generation has a row of every session, as far as it holds so many.

        Seconds of the prompts: until every session has read its own; steps carry rows of several where they end.
        """
        result = BatchResult(test, self.engine.isa, self.engine.threads)
        sessions = [self.engine.new_session() for _ in range(test.sessions)]
        try:
            self._append(sessions, test.depth, test.batch)
            for turn in range(-1, repetitions):
                start = time.perf_counter()
                self._append(sessions, test.prompt, test.batch)
                between = time.perf_counter()
                for _ in range(test.generate if turn >= 0 else min(test.generate, 1)):
                    self._append(sessions, 1, self.engine.batch)
                end = time.perf_counter()
                if turn >= 0:
                    result.prompts.append(between - start)
                    result.generations.append(end - between)
                    if progress:
                        rates = f"{_rate(test.sessions * test.prompt, between - start):.2f} + "
                        rates += f"{_rate(test.sessions * test.generate, end - between):.2f} t/s"
                        progress(f"{test.name}: {rates}")
                self._rewind(sessions, test)
        finally:
            _close(sessions)
        return result

    def _rewind(self, sessions: Sequence[Session], test: Test | Batch) -> None:
        again = self.engine.recurrent and test.depth
        for session in sessions:
            session.truncate(0 if again else test.depth)
        if again:
            self._append(sessions, test.depth, test.batch)

    def close(self) -> None:
        self.engine.close()
        self.mapping.close()


def _close(sessions: Sequence[Session]) -> None:
    for session in sessions:
        session.close()


def tests_of(
    prompts: Sequence[int], generations: Sequence[int], depths: Sequence[int], batches: Sequence[int]
) -> Iterator[Test]:
    """Depth by depth: prompts for each batch size, generations once (a step of one token has no batch to size)."""
    for depth in depths:
        for batch in batches:
            yield from (Test(count, 0, depth, batch) for count in prompts if count)
        yield from (Test(0, count, depth, max(batches)) for count in generations if count)


def batches_of(
    prompts: Sequence[int],
    generations: Sequence[int],
    depths: Sequence[int],
    batches: Sequence[int],
    sessions: Sequence[int],
) -> Iterator[Batch]:
    """Depth by depth, prompt by prompt: all numbers of sessions, so that what they cost stands one above the other."""
    for depth in depths:
        for batch in batches:
            for prompt in prompts:
                for generate in generations:
                    if prompt or generate:
                        yield from (Batch(many, prompt, generate, depth, batch) for many in sessions)
