"""Products for many tokens against the package's dequantisation: every type and instruction set, odd shapes, pieces of
rows, and AMX's arithmetic over tiles in C."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
from hearthd.cyext import kernels

from .test_kernels import ACT_F32, ACT_Q8, FLOATS, TYPES, blocks_of, columns, nmse, oracle

WIDE = [isa for isa in kernels.available() if isa != "c"]
PANEL = 32


def unpacked(x: np.ndarray) -> np.ndarray:
    """What the 8-bit activations of float32 rows stand for: blocks of 32 with one scale (act.h)."""
    k = x.shape[1]
    rows = np.stack([kernels.act_pack(ACT_Q8, row) for row in x])
    scale = rows[:, k : k + k // 8].copy().view(np.float32)
    return rows[:, :k].view(np.int8).astype(np.float64) * np.repeat(scale, 32, axis=1)


def case(name: str, rows: int, n: int, blocks: int) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
    """(weight bytes, columns, activations, exact product of what both stand for)."""
    k = columns(name, blocks)
    data = blocks_of(name, rows * k)
    x = np.random.default_rng([n, k]).standard_normal((n, k)).astype(np.float32)
    w = oracle(name, data, rows).astype(np.float64)
    return data, k, x, (x.astype(np.float64) if name in FLOATS else unpacked(x)) @ w.T


@pytest.mark.parametrize("isa", WIDE)
@pytest.mark.parametrize("name", TYPES)
def test_only_the_activations_are_rounded(name: str, isa: str) -> None:
    act = ACT_F32 if name in FLOATS else ACT_Q8
    for rows, n, blocks in ((75, 11, 3), (32, 4, 1), (40, 37, 2)):
        data, k, x, want = case(name, rows, n, blocks)
        assert kernels.act_for(TYPES[name], n, isa) == act
        got = kernels.product(TYPES[name], data, rows, k, x, isa)
        assert nmse(got, want) < 1e-12


@pytest.mark.parametrize("isa", WIDE)
@pytest.mark.parametrize("name", TYPES)
def test_float_activations_stay_exact_with_any_weights(name: str, isa: str) -> None:
    rows, n = 75, 11
    data, k, x, _ = case(name, rows, n, 3)
    want = x.astype(np.float64) @ oracle(name, data, rows).astype(np.float64).T
    assert nmse(kernels.product(TYPES[name], data, rows, k, x, isa, act=ACT_F32), want) < 1e-12


@pytest.mark.parametrize("isa", WIDE)
@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0", "Q2_K", "MXFP4", "F16"])
def test_an_output_depends_on_its_row_and_token_only(name: str, isa: str) -> None:
    rows, n = 100, 23
    data, k, x, _ = case(name, rows, n, 5)
    whole = kernels.product(TYPES[name], data, rows, k, x, isa)
    parts = kernels.Product(TYPES[name], data, rows, k, x, isa)
    for r0 in (64, 0, 96, 32):
        got = parts.run(r0, min(rows, r0 + PANEL))
    np.testing.assert_array_equal(got, whole)
    few = kernels.product(TYPES[name], data, rows, k, x[9:16], isa)
    np.testing.assert_array_equal(few, whole[9:16])


class HdProduct(ctypes.Structure):
    """hd_product of kernels.h."""

    _fields_ = (
        ("type", ctypes.c_int32), ("act", ctypes.c_int32), ("w", ctypes.c_void_p), ("row_bytes", ctypes.c_size_t),
        ("k", ctypes.c_int64), ("n", ctypes.c_int32), ("x", ctypes.c_void_p), ("out", ctypes.c_void_p),
    )  # fmt: skip


def aligned(size: int) -> np.ndarray:
    room = np.zeros(size + 64, np.uint8)
    skip = -room.ctypes.data % 64
    return room[skip : skip + size]


@pytest.mark.skipif("avx512" not in WIDE, reason="the emulated tiles work on AVX-512 panels")
@pytest.mark.parametrize("name", [name for name in TYPES if name not in FLOATS])
def test_amx_arithmetic_over_emulated_tiles(name: str) -> None:
    library = ctypes.CDLL(str(Path(kernels.__file__).with_name("libhearth.so")))
    library.hd_gemm_scratch_amx_emulated.restype = ctypes.c_size_t
    run = library.hd_gemm_amx_emulated
    run.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    for rows, n, blocks in ((43, 5, 3), (64, 37, 2)):
        data, k, x, want = case(name, rows, n, blocks)
        packed = [kernels.act_pack(ACT_Q8, row) for row in x]
        acts, out = aligned(n * len(packed[0])).reshape(n, -1), np.full((n, rows), np.nan, np.float32)
        acts[:] = packed
        weights = np.concatenate([data, np.zeros(64, np.uint8)])
        xs, outs = (np.array([row.ctypes.data for row in a], np.uint64) for a in (acts, out))
        product = HdProduct(
            TYPES[name], ACT_Q8, weights.ctypes.data, data.size // rows, k, n, xs.ctypes.data, outs.ctypes.data
        )
        scratch = aligned(library.hd_gemm_scratch_amx_emulated(ctypes.byref(product)))
        for r0 in range(0, rows, PANEL):
            assert run(ctypes.addressof(product), r0, min(rows, r0 + PANEL), scratch.ctypes.data) == 1
        assert nmse(out, want) < 1e-12
