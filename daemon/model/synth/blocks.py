"""Random blocks of every tensor type that can be made without a quantiser, with a chosen spread of the values.

Owns the layouts' random bits and the scales that give them a standard deviation; refuses IQ1_M and NVFP4, whose scales
have no one place. Layouts: ggml/src/ggml-common.h; values: ggml/src/ggml-quants.c, dequantize_row_*.
"""
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Generator = np.random.Generator

# Standard deviations of the integers that random bits give.
_STD = {bits: float(np.sqrt((4.0**bits - 1) / 12)) for bits in (2, 3, 4, 5, 6)}
_SCALE6 = float(np.sqrt(np.mean(np.arange(64.0) ** 2)))
_SCALE6_SIGNED = float(np.sqrt(np.mean(np.arange(-32.0, 32.0) ** 2)))
_SCALE4 = float(np.sqrt(np.mean(np.arange(16.0) ** 2)))
_INT8 = float(np.sqrt(np.mean(np.arange(-128.0, 128.0) ** 2)))
_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float64)
_IQ4_RMS = float(np.sqrt(np.mean(_IQ4**2)))
# Of IQ1 to IQ3 and TQ1_0: what random bits give with a scale of 1, from dequantising ten million with the gguf package.
_CODED = {16: 53.27, 17: 55.86, 18: 142.58, 19: 7.205, 21: 140.23, 22: 56.39, 34: 0.8171}
_FP4_RMS = float(np.sqrt(np.mean(np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6]) ** 2)))


def random_bytes(rng: Generator, n: int) -> Bytes:
    """n random bytes, writable."""
    return rng.integers(0, 1 << 64, (n + 7) // 8, np.uint64).view(np.uint8)[:n]


def _half(blocks: Bytes, at: int, values: npt.NDArray[np.float32]) -> None:
    blocks[:, at : at + 2] = values.astype("<f2").view(np.uint8).reshape(-1, 2)


def _spread(rng: Generator, n: int, scale: float, signed: bool) -> npt.NDArray[np.float32]:
    """Block scales that differ by up to a quarter, of mean square scale^2; either sign when `signed`."""
    values = rng.uniform(0.75, 1.25, n).astype(np.float32) * np.float32(scale / np.sqrt(1 + 0.25**2 / 3))
    if signed:
        values *= rng.integers(0, 2, n, np.int8).astype(np.float32) * 2 - 1
    return values


def _one_scale(at: int, unit: float) -> Callable[[Generator, Bytes, float], None]:
    """Types with a half scale at byte `at` whose integers have the spread `unit`. Signs differ between blocks, so
    that integers which are not centred on zero do not give every row the same mean."""

    def fill(rng: Generator, blocks: Bytes, std: float) -> None:
        _half(blocks, at, _spread(rng, len(blocks), std / unit, True))

    return fill


def _scale_and_minimum(at: int, unit: float, middle: float, sign: float) -> Callable[[Generator, Bytes, float], None]:
    """Types with a half scale and, after it, a half offset: centred by an offset of `middle` scales."""

    def fill(rng: Generator, blocks: Bytes, std: float) -> None:
        scale = _spread(rng, len(blocks), std / unit, False)
        _half(blocks, at, scale)
        _half(blocks, at + 2, scale * np.float32(sign * middle))

    return fill


def _k_scales(unit: float, middle: float) -> Callable[[Generator, Bytes, float], None]:
    """Q4_K and Q5_K: the 6-bit minimum of each sub-block is made equal to its scale, so that it centres the values."""
    outer = _scale_and_minimum(0, unit * _SCALE6, middle, 1.0)

    def fill(rng: Generator, blocks: Bytes, std: float) -> None:
        blocks[:, 8:12] = blocks[:, 4:8]
        low = blocks[:, 12:16] & 15
        blocks[:, 12:16] = low | low << 4
        outer(rng, blocks, std)

    return fill


def _q2_k(rng: Generator, blocks: Bytes, std: float) -> None:
    low = blocks[:, :16] & 15
    blocks[:, :16] = low | low << 4
    _scale_and_minimum(80, _STD[2] * _SCALE4, 1.5, 1.0)(rng, blocks, std)


def _tq2_0(rng: Generator, blocks: Bytes, std: float) -> None:
    """Three of the four values of two bits are in use: 3 becomes 1, which stands for zero."""
    blocks[:, :64] ^= (blocks[:, :64] & blocks[:, :64] >> 1 & 0x55) << 1
    _one_scale(64, float(np.sqrt(0.5)))(rng, blocks, std)


def _mxfp4(rng: Generator, blocks: Bytes, std: float) -> None:
    """Power-of-two scales: two neighbouring exponents in the proportion that gives the mean square."""
    exponent = np.floor(np.log2(std / _FP4_RMS))
    share = ((std / _FP4_RMS / 2**exponent) ** 2 - 1) / 3
    blocks[:, 0] = np.uint8(exponent + 127) + (rng.random(len(blocks), np.float32) < share)


def _float16(mantissa: int, bias: int) -> Callable[[Generator, Bytes, float], None]:
    """F16 and BF16: random sign and mantissa, and two neighbouring exponents in the proportion that gives the mean
    square, chosen by five bits of the exponent's own place."""

    def fill(rng: Generator, blocks: Bytes, std: float) -> None:
        square = std * std / (7 / 3)  # the mean square of a mantissa in [1, 2) is 7/3
        exponent = np.ceil(np.log2(square) / 2)
        high = round((square / 4.0**exponent - 0.25) / 0.75 * 32)
        every = np.arange(1 << 16, dtype=np.uint16)
        field = np.uint16(exponent + bias - 1) + ((every >> np.uint16(mantissa) & np.uint16(31)) < high)
        table = every & np.uint16(0x8000 | (1 << mantissa) - 1) | field.astype(np.uint16) << np.uint16(mantissa)
        bits = blocks.reshape(-1).view("<u2")
        bits[:] = table[bits]

    return fill


# Type number: what makes random blocks of it spread by a given standard deviation.
_FILL: dict[int, Callable[[Generator, Bytes, float], None]] = {
    1: _float16(10, 15),
    2: _one_scale(0, _STD[4]),
    3: _scale_and_minimum(0, _STD[4], 7.5, -1.0),
    6: _one_scale(0, _STD[5]),
    7: _scale_and_minimum(0, _STD[5], 15.5, -1.0),
    8: _one_scale(0, _INT8),
    10: _q2_k,
    11: _one_scale(108, _STD[3] * _SCALE6_SIGNED),
    12: _k_scales(_STD[4], 7.5),
    13: _k_scales(_STD[5], 15.5),
    14: _one_scale(208, _STD[6] * _INT8),
    **{type_: _one_scale(52 if type_ == 34 else 0, rms) for type_, rms in _CODED.items()},
    35: _tq2_0,
    20: _one_scale(0, _IQ4_RMS),
    23: _one_scale(0, _IQ4_RMS * _SCALE6_SIGNED),
    30: _float16(7, 127),
    39: _mxfp4,
}


def can_make(type_: int) -> bool:
    return type_ == 0 or type_ in _FILL


def random_blocks(rng: Generator, type_: int, n: int, block_bytes: int, std: float) -> Bytes:
    """n blocks [n, block_bytes] of the type whose dequantised values have mean 0 and standard deviation `std`.

    KeyError for a type that cannot be made.
    """
    if type_ == 0:
        values = rng.standard_normal(n, np.float32) * np.float32(std)
        return values.view(np.uint8).reshape(n, 4)
    fill = _FILL[type_]
    blocks = random_bytes(rng, n * block_bytes).reshape(n, block_bytes)
    fill(rng, blocks, std)
    return blocks
