"""What an architecture's graph is put into: whoever takes its matrices and its operations. Types only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


class Matrices(Protocol):
    """Takes weights (cyext.program.Program does; a check of a model's tensors keeps none)."""

    def weight(
        self,
        type: int,
        rows: int,
        cols: int,
        row_bytes: int,
        spans: ArrayLike,
        offset: int = 0,
        scale: NDArray[np.float32] | None = None,
        /,
    ) -> int:
        """A matrix of rows of row_bytes each, `offset` bytes into its span, or one for each of several spans; scale: by
        what its products are multiplied, one value or one a span. Its number."""


class Operations(Protocol):
    """Takes operations in the order of their running (cyext.program.Program)."""

    def buffer(self, width: int, /) -> int:
        """Rows of so many floats. Its number."""

    def op(
        self,
        kind: str,
        layer: int,
        ins: Sequence[int] = (),
        outs: Sequence[int] = (),
        weights: Sequence[int] = (),
        ints: Sequence[int] = (),
        floats: Sequence[float] = (),
        selected: bool = False,
    ) -> None:
        """One operation on buffers and weights by their numbers, -1 for none (cyext.operands has their meanings)."""
