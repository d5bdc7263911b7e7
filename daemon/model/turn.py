"""What passes between whoever wants rows computed and the engine: a part of a step, and what came of it. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .sampling import Choice, Sampler

Want = Literal["none", "last", "all"]  # which rows of a part want logits


class StepFailed(RuntimeError):
    """The rows' experts or the model itself could not be read. span: number of the span, or None."""

    def __init__(self, message: str, span: int | None = None) -> None:
        super().__init__(message)
        self.span = span


class Interrupted(RuntimeError):
    """The engine is closing; the step's sessions are as they were before."""


class ContextFull(RuntimeError):
    """The session would be longer than the context, or the pool has no block for it."""


@dataclass(frozen=True, slots=True)
class PoolUse:
    """The pool at one moment. blocks: it has; used: of them held by sessions; warm: free, and their memory still there.
    block_bytes: of one; bytes: in memory, as the kernel tells."""

    blocks: int
    used: int
    warm: int
    block_bytes: int
    bytes: int

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return self.blocks - self.used


class SessionView(Protocol):
    """One sequence of tokens whose keys, values and state the engine keeps."""

    length: int  # tokens that it holds

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One session's rows of a step.

    tokens: int32 [n], appended to the session. want: the rows whose logits are handed out. sampler: if given, a token
    is chosen from the last row's logits within the step; want is "last" then, and the logits themselves stay inside.
    """

    session: SessionView
    tokens: NDArray[np.int32]
    want: Want
    sampler: Sampler | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What came of a part. With an error the session is as it was before the step, whatever became of others.

    logits: float32 [rows that wanted them, vocabulary]. error: ContextFull, StepFailed, or what the sampler said of the
    logits (SamplingError: the rows are in the session all the same).
    """

    logits: NDArray[np.float32] | None = None
    choice: Choice | None = None
    error: Exception | None = None

    def rows(self) -> NDArray[np.float32]:
        """The logits; raises the error, if there is one."""
        if self.error is not None:
            raise self.error
        assert self.logits is not None, "these rows wanted no logits"
        return self.logits


class Steps(Protocol):
    """The engine as whoever composes steps sees it."""

    batch: int  # rows of a step at most
    context: int  # tokens of a session at most

    @property
    def n_vocab(self) -> int: ...

    @property
    def pool(self) -> PoolUse:
        """Asked of the kernel now."""

    def new_session(self) -> SessionView: ...

    def step(self, parts: list[Part]) -> list[Outcome]:
        """Run one step, blocking; an outcome for each part. Raises Interrupted when the engine closes."""

    def trim(self) -> None:
        """Give back the memory of the step's buffers until the next step."""
