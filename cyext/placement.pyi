from collections.abc import Iterable

import numpy as np
from hearthd.cyext.mapping import Mapping
from numpy.typing import ArrayLike, NDArray

DEFAULT: int
PREFERRED: int
INTERLEAVE: int
PAD: int

def thread_policy(policy: int, nodes: Iterable[int] = ()) -> None: ...
def page_counts(addresses: ArrayLike, nbytes: ArrayLike, nodes: int) -> NDArray[np.int64]: ...
def slot_bytes(nbytes: ArrayLike) -> NDArray[np.uint64]: ...

class Arena:
    nbytes: int
    used: int
    node: int
    address: int
    def __init__(self, nbytes: int, node: int) -> None: ...
    def copy(self, mapping: Mapping, file: int, offset: int, nbytes: int) -> int | None: ...
    def close(self) -> None: ...
