"""What residency asks of the parts that it is given: model, span table, engine, settings. Types only.

Mapping, spans and populate queue are cyext's own classes. What comes from other rooms is seen here through what is
used of it, so that something smaller may stand in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from hearthd.cyext.program import Program
    from numpy.typing import NDArray

    from ..model.hyper import Scalar


class Model(Protocol):
    """An opened model (model.gguf.ModelFile)."""

    @property
    def identity(self) -> str:
        """Differs between any two models."""

    def hyper(self, key: str, /) -> Scalar | None:
        """The single metadata value ARCHITECTURE.key, or None."""


class Table(Protocol):
    """The span table (model.spans.SpanTable): arrays of one value per span, in the order in which a step needs them.

    file int32; offset, nbytes uint64; layer int32 (-1 none); expert int32 (-1 dense); part int8; tensor int32 (index of
    names).
    """

    @property
    def file(self) -> NDArray[np.int32]: ...
    @property
    def offset(self) -> NDArray[np.uint64]: ...
    @property
    def nbytes(self) -> NDArray[np.uint64]: ...
    @property
    def layer(self) -> NDArray[np.int32]: ...
    @property
    def expert(self) -> NDArray[np.int32]: ...
    @property
    def part(self) -> NDArray[np.int8]: ...
    @property
    def tensor(self) -> NDArray[np.int32]: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def n_layer(self) -> int: ...
    @property
    def n_expert(self) -> int: ...
    @property
    def rows_only(self) -> NDArray[np.int32]:
        """Dense spans of which a step reads its tokens' rows and no more."""

    def describe(self, span: int) -> str:
        """The span in words."""

    def failure(self, span: int, found: tuple[int, int] | None, paths: Sequence[str]) -> str:
        """The sentence about a span that could not be read; found: errno and byte."""


class Routing(Protocol):
    """The numbers of a model that residency counts with (model.hyper.Hyper)."""

    @property
    def n_layer(self) -> int: ...
    @property
    def n_expert_used(self) -> int: ...


class Engine(Protocol):
    """The engine (model.engine.Engine) as residency sees it: what its steps route, and who reads what."""

    @property
    def hyper(self) -> Routing: ...
    @property
    def program(self) -> Program: ...

    @property
    def layer(self) -> int:
        """That the running step is at; below 0: none runs."""

    @property
    def expert_counts(self) -> NDArray[np.uint64]:
        """[layers, experts] tokens routed there since the start. A live view."""

    @property
    def lookahead(self) -> dict[str, Any]:
        """Counts of guesses since the start."""

    def memory_taken(self) -> int:
        """Bytes of sessions and steps that are in memory now."""

    def set_lookahead(self, read: bool, every: int) -> None:
        """Whether guessed experts are read, and how many steps lie between guesses that are only measured."""

    def own_experts(self, owner: NDArray[np.int32] | None) -> None:
        """Which team owns each expert [layers, experts]."""


class Options(Protocol):
    """Settings that residency follows (config.Config)."""

    @property
    def experts(self) -> str: ...
    @property
    def warm(self) -> str: ...
    @property
    def short_memory(self) -> str: ...
    @property
    def memory_budget(self) -> str: ...
    @property
    def state_directory(self) -> str: ...
    @property
    def trace(self) -> str: ...
