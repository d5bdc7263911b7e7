from collections.abc import Iterator
from os import PathLike

import numpy as np
from numpy.typing import NDArray

Scalar = bool | int | float | str  # of the metadata, and an element of an array

ELEMENT_NAMES: tuple[str, ...]

class HeaderError(ValueError):
    what: str
    byte: int
    tensor: str | None
    key: str | None
    def __init__(self, what: str, byte: int = 0, tensor: str | None = None, key: str | None = None) -> None: ...

class Array:
    @property
    def element(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> Scalar: ...
    def __iter__(self) -> Iterator[Scalar]: ...
    def tolist(self) -> list[Scalar]: ...
    def bytes(self) -> list[bytes]: ...
    def numpy(self) -> NDArray[np.number | np.bool_]: ...

class Header:
    version: int
    alignment: int
    data_offset: int
    header_end: int
    file_size: int
    n_tensors: int
    tensors: list[tuple[str, int, tuple[int, ...], int, int]]
    metadata: dict[str, Scalar | Array]
    @property
    def raw(self) -> memoryview: ...

def parse(path: str | PathLike[str]) -> Header: ...
def tensor_types() -> list[tuple[int, str, int, int]]: ...
