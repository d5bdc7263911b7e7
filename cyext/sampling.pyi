from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from .teams import Teams

CHOSEN: int
NOT_FINITE: int
NONE_LEFT: int
NO_ROOM: int

class Sampler:
    def __init__(
        self,
        n_vocab: int,
        *,
        top_k: int,
        top_p: float,
        min_p: float,
        temperature: float,
        greedy: bool,
        repeat: float,
        repeat_last: int,
        presence: float,
        frequency: float,
        seed: int,
        likeliest: int,
        bias: Mapping[int, float],
        forbidden: Collection[int],
        isa: str | None = None,
    ) -> None: ...
    def begin(self, tokens: npt.NDArray[np.int32]) -> None: ...
    def accept(self, token: int) -> None: ...

def choose(
    teams: Teams | None,
    logits: npt.NDArray[np.float32],
    picks: Sequence[tuple[int, Sampler, int, npt.NDArray[np.uint32] | None]],
) -> list[tuple[int, int, float, list[tuple[int, float]]]]: ...
def score(
    teams: Teams | None,
    logits: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int32],
    isa: str | None = None,
) -> tuple[npt.NDArray[np.float64], int]: ...
def uniform(seed: int, position: int) -> float: ...
