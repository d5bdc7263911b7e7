"""Prompt and generation rates of the engine on a resident model, as llama-bench measures them.

Owns the runs and their figures; builds an engine of its own and talks to no daemon.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import topology
from .model.turn import Part

PIECE = 4 << 20


@dataclass(frozen=True)
class Test:
    """One line of the table: so many tokens read at once or generated one by one, after so many in the context."""

    prompt: int
    generate: int
    depth: int
    batch: int

    @property
    def name(self) -> str:
        what = f"pp{self.prompt}" if self.prompt else f"tg{self.generate}"
        return f"{what} @ d{self.depth}" if self.depth else what


@dataclass
class Result:
    """Tokens per second of each repetition."""

    test: Test
    isa: str
    threads: int
    samples: list[float] = field(default_factory=list)
    weight_bytes: float = 0.0  # a generated token's share of the weights; 0 for prompts

    def as_dict(self) -> dict[str, Any]:
        middle = statistics.median(self.samples)
        row: dict[str, Any] = {
            "test": self.test.name,
            "n_prompt": self.test.prompt,
            "n_gen": self.test.generate,
            "n_depth": self.test.depth,
            "n_batch": self.test.batch,
            "isa": self.isa,
            "threads": self.threads,
            "samples": self.samples,
            "median": middle,
            "min": min(self.samples),
            "max": max(self.samples),
            "spread": (max(self.samples) - min(self.samples)) / middle,
        }
        if self.weight_bytes:
            row["weight_bytes_per_token"] = self.weight_bytes
            row["weight_bytes_per_second"] = self.weight_bytes * middle
        return row


def weight_bytes_per_token(table: Any, used: int) -> float:
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
    """A model opened, mapped and read into memory for measuring. Raises ModelError, OSError, ValueError."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        context: int,
        batch: int,
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
            sequences=1,
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

    def _tokens(self, count: int) -> np.ndarray:
        return self._random.integers(0, self.engine.hyper.n_vocab, count, dtype=np.int32)

    def _append(self, session: Any, count: int, batch: int) -> None:
        """Random tokens in steps of at most `batch`; logits of the very last, as whoever continues would want."""
        tokens = self._tokens(count)
        for start in range(0, count, batch):
            part = tokens[start : start + batch]
            self.engine.step([Part(session, part, "last" if start + len(part) == count else "none")])

    def run(self, test: Test, repetitions: int, progress: Callable[[str], None] | None = None) -> Result:
        """A warm-up, then the repetitions, each from the same depth. One token a step where tokens are generated."""
        result = Result(test, self.engine.isa, self.engine.threads)
        if test.generate:
            result.weight_bytes = weight_bytes_per_token(self.table, self.engine.hyper.n_expert_used)
        count = test.prompt or test.generate
        session = self.engine.new_session()
        try:
            if test.depth:
                self._append(session, test.depth, test.batch)
            for turn in range(-1, repetitions):
                start = time.perf_counter()
                if test.prompt:
                    self._append(session, count, test.batch)
                else:
                    for _ in range(count if turn >= 0 else 1):
                        self._append(session, 1, 1)
                seconds = time.perf_counter() - start
                if turn >= 0:
                    result.samples.append(count / seconds)
                    if progress:
                        progress(f"{test.name}, batch {test.batch}: {count / seconds:.2f} t/s")
                self._rewind(session, test)
        finally:
            session.close()
        return result

    def _rewind(self, session: Any, test: Test) -> None:
        if self.engine.recurrent and test.depth:
            session.truncate(0)
            self._append(session, test.depth, test.batch)
        else:
            session.truncate(test.depth)

    def close(self) -> None:
        self.engine.close()
        self.mapping.close()


def tests_of(
    prompts: Sequence[int], generations: Sequence[int], depths: Sequence[int], batches: Sequence[int]
) -> Iterator[Test]:
    """Depth by depth: prompts for each batch size, generations once (a step of one token has no batch to size)."""
    for depth in depths:
        for batch in batches:
            yield from (Test(count, 0, depth, batch) for count in prompts if count)
        yield from (Test(0, count, depth, max(batches)) for count in generations if count)
