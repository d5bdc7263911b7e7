import numpy as np
from hearthd.cyext.mapping import Mapping
from numpy.typing import ArrayLike, NDArray

ABSENT: int
LOADING: int
READY: int
EVICTING: int
FAILED: int

class Spans:
    mapping: Mapping
    file: NDArray[np.int32]
    offset: NDArray[np.uint64]
    nbytes: NDArray[np.uint64]
    layer: NDArray[np.int32]
    home: NDArray[np.uint64]
    at: NDArray[np.uint64]
    state: NDArray[np.uint8]
    users: NDArray[np.uint16]
    def __init__(
        self, mapping: Mapping, file: ArrayLike, offset: ArrayLike, nbytes: ArrayLike, layer: ArrayLike, nodes: int = 1
    ) -> None: ...
    def __len__(self) -> int: ...
    @property
    def nodes(self) -> int: ...
    @property
    def pointer(self) -> int: ...
    def set_at(self, node: int, ids: ArrayLike, addresses: ArrayLike) -> None: ...
