import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Bytes = bytes | bytearray | memoryview | npt.NDArray[np.generic]
_ArrayLike = npt.ArrayLike

NAMES: tuple[str, ...]
DELTA_TOKENS: int

def available() -> list[str]: ...
def select(name: str | None = None) -> str: ...
def types() -> dict[int, tuple[str, int, int]]: ...
def row_bytes(type: int, k: int) -> int: ...
def unpack(type: int, blocks: _Bytes, n: int, isa: str | None = None) -> _Floats: ...
def act_for(type: int, isa: str | None = None) -> int: ...
def act_pack(act: int, x: _ArrayLike, isa: str | None = None) -> npt.NDArray[np.uint8]: ...

class Product:
    out: _Floats
    weight_bytes: int
    act: int
    panel: int
    def __init__(
        self,
        type: int,
        weights: _Bytes,
        rows: int,
        k: int,
        x: _ArrayLike,
        isa: str | None = None,
        act: int | None = None,
        copy: bool = True,
    ) -> None: ...
    def run(self, r0: int = 0, r1: int | None = None, repeat: int = 1) -> _Floats: ...
    def point(self, weights: _Bytes) -> None: ...

def product(
    type: int,
    weights: _Bytes,
    rows: int,
    k: int,
    x: _ArrayLike,
    isa: str | None = None,
    r0: int = 0,
    r1: int | None = None,
    act: int | None = None,
) -> _Floats: ...
def read_memory(buffer: _Bytes, repeat: int = 1) -> int: ...
def rms_norm(x: _ArrayLike, weight: _ArrayLike | None = None, eps: float = 1e-6, isa: str | None = None) -> _Floats: ...
def silu_mul(gate: _ArrayLike, up: _ArrayLike, isa: str | None = None) -> _Floats: ...
def activate(
    kind: int, gate: _ArrayLike, up: _ArrayLike, limit: float = 7.0, alpha: float = 1.702, isa: str | None = None
) -> _Floats: ...
def convolve(x: _ArrayLike, weight: _ArrayLike, isa: str | None = None) -> _Floats: ...
def delta(
    q: _ArrayLike,
    k: _ArrayLike,
    v: _ArrayLike,
    decay: _ArrayLike,
    beta: _ArrayLike,
    held: _ArrayLike,
    tail: _ArrayLike | None = None,
    before: int = 0,
    isa: str | None = None,
) -> tuple[_Floats, _Floats, _Floats]: ...
def softmax(x: _ArrayLike, isa: str | None = None) -> _Floats: ...
def add(a: _ArrayLike, b: _ArrayLike, isa: str | None = None) -> _Floats: ...
def axpy(out: _ArrayLike, a: float, x: _ArrayLike, isa: str | None = None) -> _Floats: ...
def to_f16(x: _ArrayLike, isa: str | None = None) -> npt.NDArray[np.float16]: ...
def to_f32(x: npt.NDArray[np.float16], isa: str | None = None) -> _Floats: ...
def rope(
    x: _ArrayLike, cosine: _ArrayLike, sine: _ArrayLike, halves: bool = True, isa: str | None = None
) -> _Floats: ...
def attend(
    q: _ArrayLike,
    keys: _ArrayLike,
    values: _ArrayLike,
    pos: _ArrayLike,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    sinks: _ArrayLike | None = None,
    isa: str | None = None,
) -> _Floats: ...
