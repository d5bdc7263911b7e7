"""The kernels of AVX-512 and AMX on any machine with AVX2: where it lacks their instructions, wide.h and tiles.c stand
in, and the tests of kernels run once more with those."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hearthd.cyext import kernels

from . import emulated
from .test_kernels import ACT_F32, ACT_Q8, FLOATS, TYPES, blocks_of, columns

SETS = kernels.available()
WIDE = [isa for isa in ("avx512", "amx") if isa in SETS]
FILES = ("test_wide.py", "test_gemm.py", "test_kernels.py", "test_attend.py", "test_recurrent.py", "test_sampling.py")


@pytest.mark.parametrize("isa", WIDE)
@pytest.mark.parametrize("name", TYPES)
def test_a_sum_is_the_same_bits_with_any_number_of_tokens(name: str, isa: str) -> None:
    """Few tokens or panels, tiles or none, rows in pieces: one order of summation."""
    for rows, blocks in ((35, 3), (64, 1), (17, 19)):
        k = columns(name, blocks)
        data = blocks_of(name, rows * k)
        x = np.random.default_rng(k).standard_normal((17, k)).astype(np.float32)
        for act in {ACT_F32, ACT_F32 if name in FLOATS else ACT_Q8}:
            whole = kernels.product(TYPES[name], data, rows, k, x, "avx512", act=act)
            for n in (1, 2, 3, 4, 5, 7, 8, 9, 16, 17):
                few = kernels.product(TYPES[name], data, rows, k, x[:n], isa, act=act)
                np.testing.assert_array_equal(few, whole[:n])
            parts = kernels.Product(TYPES[name], data, rows, k, x[:3], isa, act=act)
            for r0 in range(0, rows, parts.panel):
                parts.run(r0, min(rows, r0 + parts.panel))
            np.testing.assert_array_equal(parts.out, whole[:3])


@pytest.mark.skipif(SETS[-1] == "amx", reason="the processor has tiles: these tests run on them")
@pytest.mark.skipif("avx2" not in SETS, reason="the stand-ins are made of AVX2 instructions")
def test_the_same_with_instructions_that_the_processor_lacks(tmp_path: Path) -> None:
    if emulated.compiler() is None:
        pytest.skip("no C compiler for wide.h and tiles.c")
    preload = [emulated.tiles(tmp_path)] + ([] if "avx512bf16" in SETS else [emulated.wide(tmp_path)])
    lacking = "amx" if "avx512bf16" in SETS else "avx512- or avx512] or amx"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", lacking, *(f"tests/{name}" for name in FILES)],
        cwd=emulated.HERE.parent, env=os.environ | {"LD_PRELOAD": " ".join(map(str, preload))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr
    products = re.search(r"tiles: (\d+) products", run.stderr)
    assert products and int(products[1]) > 10_000
