"""What sessions and steps take of memory beside the model: counted on an architecture's own graph, which nothing runs.

Owns the arithmetic. The engine's program has the same numbers once it is there (a test holds them together).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hearthd.cyext import program as cy

from . import architectures
from .gguf import ModelFile
from .graph import Graph, Tensors
from .hyper import Hyper
from .spans import SpanTable

PAGE = 4096
FLOAT, HALF = 4, 2  # bytes of a value in a buffer or in recurrent state, and in the pool
PACKED = 1.25  # bytes of a value as products read it; of 8-bit blocks with their scales, at most
COPIES = 2  # of recurrent state: as it is, and as the running step makes it


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes. token_bytes: of each token in the pool; blocks of block_bytes that the pool has; session_bytes: recurrent
    state of one session; step_bytes: buffers of a full step, at most."""

    sessions: int
    context: int
    token_bytes: int
    blocks: int
    block_bytes: int
    session_bytes: int
    step_bytes: int

    @property
    def bytes(self) -> int:
        """All of it, when every session is as long as it may be."""
        return self.blocks * self.block_bytes + self.sessions * self.session_bytes + self.step_bytes


def need(model: ModelFile, hyper: Hyper, table: SpanTable, *, context: int, sessions: int, batch: int) -> Need:
    """Of `model`, as `architectures.check` has found it to be; context: tokens of a session; batch: rows of a step."""
    sizes: Any = _Sizes()
    module = architectures.find(model.architecture)
    graph = Graph(sizes, context)
    module.graph(hyper, module.tensors(hyper, Tensors(model, table, sizes, contents=False)), graph)
    graph.finish()
    block = sizes.token_bytes * cy.KV_BLOCK
    return Need(
        sessions=sessions,
        context=context,
        token_bytes=sizes.token_bytes,
        blocks=sessions * -(-context // cy.KV_BLOCK),
        block_bytes=-(-block // PAGE) * PAGE,
        session_bytes=COPIES * FLOAT * sizes.state_floats,
        step_bytes=sizes.step_bytes(batch, hyper.n_expert_used),
    )


class _Sizes:
    """Takes what cyext.program.Program takes, and keeps sizes."""

    def __init__(self) -> None:
        self._weights: list[tuple[int, int]] = []  # rows and columns
        self._buffers: list[int] = []  # widths
        self._read: set[int] = set()  # buffers that products read
        self._experts: tuple[int, int] = (0, 0)  # widths inside and after an expert, the largest
        self.token_bytes = 0
        self.state_floats = 0

    def weight(self, type: int, rows: int, cols: int, *rest: object) -> int:
        self._weights.append((rows, cols))
        return len(self._weights) - 1

    def buffer(self, width: int) -> int:
        self._buffers.append(width)
        return len(self._buffers) - 1

    def stream(self, heads: int, width: int) -> int:
        self.token_bytes += heads * width * HALF
        return 0

    def rope(self, inverse: np.ndarray, magnitude: float = 1.0) -> int:
        return 0

    def state(self, floats: int) -> int:
        self.state_floats += floats
        return 0

    def tail(self, floats: int) -> int:
        return self.state(floats)

    def delta_tail(self, heads: int, dk: int, dv: int) -> int:
        return self.state(heads * cy.delta_tail(dk, dv))

    def op(
        self, kind: str, layer: int, ins: Sequence[int] = (), outs: Sequence[int] = (), weights: Sequence[int] = (),
        ints: Sequence[int] = (), floats: Sequence[float] = (), selected: bool = False,
    ) -> None:  # fmt: skip
        if kind in ("matmul", "experts"):
            self._read.add(ins[0])
        if kind == "experts":
            inside, after = self._weights[weights[1]][0], self._weights[weights[2]][0]
            self._experts = max(self._experts[0], inside), max(self._experts[1], after)

    def step_bytes(self, rows: int, used: int) -> int:
        """Buffers, what of them is packed for products, and what experts work in."""
        inside, after = self._experts
        floats = sum(self._buffers) + used * (2 * inside + after)
        packed = sum(self._buffers[number] for number in self._read) + used * inside
        return int(rows * (floats * FLOAT + packed * PACKED))
