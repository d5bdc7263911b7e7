"""Products for many tokens against the package's dequantisation: every type and instruction set, odd shapes, pieces of
rows. test_wide.py runs them for AVX-512 and AMX on machines that have neither."""

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
        assert kernels.act_for(TYPES[name], isa) == act
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
