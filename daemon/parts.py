"""What the daemon's rooms ask of an opened model and its engine. Types only: the real ones are in hearth.py and model/.

To be imported for types alone, so that nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .config import Config
from .model.turn import Steps

if TYPE_CHECKING:
    from . import protocol
    from .model.hyper import Hyper
    from .model.sampling import Sampler
    from .model.template import ChatTemplate
    from .model.tokenizer import Tokenizer
    from .tending import Say


class Threads(Protocol):
    """An engine as whoever follows processors sees it."""

    def use_processors(self, teams: Sequence[Sequence[int]], /) -> None:
        """From the next step on these processors' threads. Blocks while a step runs."""


class Engine(Steps, Threads, Protocol):
    """The engine as the service shows and ends it; whoever composes steps needs Steps alone."""

    @property
    def hyper(self) -> Hyper: ...
    @property
    def isa(self) -> str:
        """The instruction set of its kernels."""

    @property
    def layer(self) -> int:
        """That the running step is at; below 0: none runs."""

    @property
    def lookahead(self) -> dict[str, Any]:
        """Counts of guesses since the start."""

    def close(self) -> None:
        """Ends the running step; no other begins."""


class Residency(Protocol):
    """Residency as the service runs and shows it (see residency/)."""

    def run(self) -> Awaitable[None]:
        """Until cancelled."""

    def stats(self) -> dict[str, Any]:
        """Fields of protocol.Stats that are residency's."""

    def status(self) -> dict[str, Any]: ...
    def snapshot(self) -> protocol.ResidencyNow: ...


class Hearth(Protocol):
    """The opened model with all its parts (hearth.Hearth). tokenizer, template and engine are there once prepared."""

    @property
    def info(self) -> protocol.ModelInfo: ...
    @property
    def warnings(self) -> list[protocol.Warning_]: ...
    @property
    def engine(self) -> Engine | None: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def template(self) -> ChatTemplate | None: ...
    @property
    def residency(self) -> Residency | None: ...

    def begin(self, on_event: Callable[[protocol.EventNow], None]) -> None:
        """Populating begins; events go to on_event."""

    async def prepare(self) -> None:
        """Make what answers need. Raises ModelError."""

    async def prepared(self) -> None:
        """Until requests can be answered."""

    async def follow(self, say: Say) -> None:
        """Until cancelled: threads as processors and quotas allow."""

    def step_begins(self, prompts: int, answers: int) -> None:
        """So many rows of prompts and of answers; none at all: nothing is to be done for now."""

    def new_sampler(self, sampling: protocol.Sampling) -> Sampler:
        """Raises ValueError for a parameter out of range."""

    def warmed(self) -> bool:
        """Nothing that was planned is left to warm."""

    def start_line(self) -> str: ...
    def options(self) -> dict[str, Any]: ...
    def bytes_read(self) -> int:
        """By the populate workers since the start."""

    def plan(self) -> dict[str, Any]:
        """Blocks for a moment."""

    async def residency_by(self, by: str) -> dict[str, Any]: ...
    async def experts(self, layer: int | None) -> dict[str, Any]: ...
    async def warm(
        self, select: protocol.Selection, *, wait: bool, progress: Callable[[int, int, str], None]
    ) -> dict[str, Any]: ...
    async def defer(self, select: protocol.Selection) -> dict[str, Any]: ...
    async def pin(self, select: protocol.Selection, *, release: bool) -> dict[str, Any]: ...

    def save(self) -> None:
        """Heat, to the state directory. Blocks."""

    def close(self) -> None:
        """After residency's task has ended. Blocks."""


OpenHearth = Callable[[Config], Hearth]  # maps the model
