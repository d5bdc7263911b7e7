"""Weight kernels against the gguf package's numpy dequantisation, and every instruction set against plain C."""

import ctypes
import mmap
import os
import subprocess
import sys

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from hearthd.cyext import kernels

TYPES = {name: number for number, (name, _, _) in kernels.types().items()}
FLOATS = ("F32", "F16", "BF16")
ACT_F32, ACT_Q8 = 0, 1

# Where a block keeps half-precision numbers: random bytes there would make infinities.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ3_XXS": (0,), "IQ1_S": (0,),
    "IQ4_NL": (0,), "IQ3_S": (0,), "IQ2_S": (0,), "IQ4_XS": (0,), "TQ1_0": (52,), "TQ2_0": (64,),
}  # fmt: skip


def blocks_of(name: str, values: int, seed: int = 0) -> np.ndarray:
    """Random bytes that are valid blocks of a type: uint8, `values` weights."""
    rng = np.random.default_rng([seed, TYPES[name]])
    _, size, width = kernels.types()[TYPES[name]]
    if name == "F32":
        return rng.standard_normal(values).astype(np.float32).view(np.uint8)
    if name == "F16":
        return (rng.standard_normal(values) * 10.0 ** rng.integers(-7, 3, values)).astype(np.float16).view(np.uint8)
    if name == "BF16":
        return (rng.standard_normal(values).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    blocks = rng.integers(0, 256, (values // size, width), dtype=np.uint8)
    for place in HALVES.get(name, ()):
        scale = rng.uniform(0.001, 0.02, len(blocks)) * rng.choice([-1, 1], len(blocks))
        blocks[:, place : place + 2] = scale.astype("<f2").view(np.uint8).reshape(-1, 2)
    if name == "IQ1_M":  # the top nibble of the half, in the last byte
        blocks[:, 55] = blocks[:, 55] & 0x0F | 0x20
    if name == "MXFP4":
        blocks[:, 0] = rng.integers(115, 122, len(blocks))
    if name == "NVFP4":
        blocks[:, :4] = rng.integers(0, 0x60, (len(blocks), 4))
    return blocks.reshape(-1)


def oracle(name: str, blocks: np.ndarray, rows: int) -> np.ndarray:
    kind = gguf.GGMLQuantizationType(TYPES[name])
    return np.asarray(dequantize(blocks.reshape(rows, -1), kind)).reshape(rows, -1)


def nmse(x: np.ndarray, ref: np.ndarray) -> float:
    return float(np.sum((x - ref) ** 2) / np.sum(ref**2))


def columns(name: str, blocks: int) -> int:
    return max(kernels.types()[TYPES[name]][1], 32) * blocks


def test_every_type_that_the_package_dequantises_is_there() -> None:
    wanted = {"F32", "F16"} | {kind.name for kind in gguf.quants._type_traits}
    assert set(TYPES) == wanted


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("name", TYPES)
def test_unpack_equals_the_package(name: str, isa: str) -> None:
    for blocks in (1, 3, 21):
        k = columns(name, blocks)
        data = blocks_of(name, k, blocks)
        with np.errstate(all="ignore"):
            want = oracle(name, data, 1)[0]
        np.testing.assert_allclose(kernels.unpack(TYPES[name], data, k, isa), want, rtol=3e-7, atol=0)


def test_unpack_reads_extreme_scales() -> None:
    """Subnormal and zero halves, infinities, and every exponent of the four-bit floats."""
    halves = np.array([0, 0x8000, 1, 0x3FF, 0x400, 0x7BFF, 0xFC00, 0x7C00], np.uint16)
    for isa in kernels.available():
        got = kernels.unpack(TYPES["F16"], np.repeat(halves, 4).view(np.uint8), 32, isa)
        np.testing.assert_array_equal(got, np.repeat(halves, 4).view(np.float16).astype(np.float32))
        for name, scales in (("MXFP4", 1), ("NVFP4", 4)):
            _, size, width = kernels.types()[TYPES[name]]
            data = np.random.default_rng(1).integers(0, 256, (254 // scales, width), dtype=np.uint8)
            data[:, :scales] = np.arange(data.shape[0] * scales, dtype=np.uint8).reshape(-1, scales)
            with np.errstate(over="ignore"):
                want = oracle(name, data.reshape(-1), 1)[0]
            np.testing.assert_array_equal(kernels.unpack(TYPES[name], data, size * len(data), isa), want)


@pytest.mark.parametrize("isa", kernels.available())
def test_activations_pack_alike(isa: str) -> None:
    rng = np.random.default_rng(2)
    for scale in (1.0, 1e-30, 1e30):
        x = (rng.standard_normal(768) * scale).astype(np.float32)
        x[32:64] = 0
        x[64] = 40 * scale
        for act in (ACT_F32, ACT_Q8):
            np.testing.assert_array_equal(kernels.act_pack(act, x, isa), kernels.act_pack(act, x, "c"))
    packed = kernels.act_pack(ACT_Q8, x, isa)
    q, d = packed[:768].view(np.int8).astype(np.float64).reshape(-1, 32), packed[768 : 768 + 96].view(np.float32)
    error = np.abs(q * d[:, None] - x.reshape(-1, 32)).max(axis=1)
    assert (error <= 0.501 * d).all()
    np.testing.assert_array_equal(packed[960:1056].view(np.int16), q.reshape(-1, 16).sum(axis=1))
    np.testing.assert_allclose(packed[864:960].view(np.float32), d * q.sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("name", TYPES)
def test_products_of_few_tokens(name: str, isa: str) -> None:
    """Error against float64: rounding a block of 32 normal values to 8 bits costs about 2.5e-5 of its energy, and a few
    single products stray from their expectation by more."""
    rng = np.random.default_rng(3)
    for rows, blocks, n in ((1, 1, 1), (3, 3, 2), (17, 9, 1), (17, 2, 5)):
        k = columns(name, blocks)
        data = blocks_of(name, rows * k, rows + n)
        x = rng.standard_normal((n, k)).astype(np.float32)
        weights = oracle(name, data, rows).astype(np.float64)
        for act in (ACT_F32, ACT_Q8):
            got = kernels.product(TYPES[name], data, rows, k, x, isa, act=act)
            plain = kernels.product(TYPES[name], data, rows, k, x, "c", act=act)
            energy = np.sum((weights**2).sum(axis=1)) * n  # expected energy of the products of normal values
            error = np.sum((got - x.astype(np.float64) @ weights.T) ** 2) / energy
            assert error < (1e-12 if act == ACT_F32 else 1e-4 if rows * n > 3 else 6e-4), (rows, k, n, act)
            assert np.sum((got.astype(np.float64) - plain) ** 2) / energy < 1e-11, (rows, k, n, act)


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("act", [ACT_F32, ACT_Q8])
def test_an_output_has_the_same_bits_in_every_company_and_chunk(name: str, isa: str, act: int) -> None:
    """Products by one, by few and by many tokens add in one order: an element depends on its row and its token only."""
    rows = 43
    odd = 1187 if name in FLOATS and act == ACT_F32 else 1184 if columns(name, 1) == 32 else columns(name, 1) * 5
    for k in (columns(name, 1), odd):
        data = blocks_of(name, rows * k)
        x = np.random.default_rng(5).standard_normal((33, k)).astype(np.float32)
        if name in FLOATS:
            x = np.ldexp(x, np.random.default_rng(6).integers(-12, 12, x.shape)).astype(np.float32)
        whole = kernels.product(TYPES[name], data, rows, k, x, isa, act=act)
        for first, n in ((0, 1), (32, 1), (5, 2), (9, 3), (28, 4), (11, 5), (3, 7), (20, 8), (16, 16), (0, 32)):
            some = kernels.Product(TYPES[name], data, rows, k, x[first : first + n], isa, act=act)
            np.testing.assert_array_equal(some.run().view(np.uint32), whole[first : first + n].view(np.uint32))
            some.out[:] = np.nan
            for r0, r1 in ((32, 33), (0, 5), (33, 43), (5, 32)):  # rows before and after a chunk are not its affair
                some.run(r0, r1)
            np.testing.assert_array_equal(some.out.view(np.uint32), whole[first : first + n].view(np.uint32))
        alone = kernels.product(TYPES[name], data[: 2 * data.size // rows], 2, k, x[:9], isa, act=act)
        np.testing.assert_array_equal(alone.view(np.uint32), whole[:9, :2].view(np.uint32))


def test_rows_outside_the_chunk_are_left_alone() -> None:
    data = blocks_of("Q8_0", 17 * 64)
    for isa in kernels.available():
        got = kernels.product(TYPES["Q8_0"], data, 17, 64, np.ones(64), isa, r0=3, r1=7)
        assert (got[0, :3] == 0).all() and (got[0, 7:] == 0).all() and (got[0, 3:7] != 0).all()


@pytest.mark.parametrize("isa", kernels.available())
def test_no_kernel_reads_more_than_64_bytes_past_the_last_row_or_minds_what_they_are(isa: str) -> None:
    page = mmap.PAGESIZE
    region = mmap.mmap(-1, 9 * page)
    whole = np.frombuffer(region, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    guard = ctypes.c_void_p(whole.ctypes.data + 8 * page)
    assert libc.mprotect(guard, ctypes.c_size_t(page), 0) == 0  # PROT_NONE: a read beyond would crash
    end = 8 * page - 64
    whole[end : end + 64] = 255  # no numbers, as halves and floats; a copy has zeros there
    for name, number in TYPES.items():
        for rows, blocks, n in ((3, 1, 2), (3, 3, 2), (32, 3, 5), (35, 1, 5)):  # directly, and by panels
            k = columns(name, blocks)
            data = blocks_of(name, rows * k)
            whole[end - data.size : end] = data
            x = np.random.default_rng(6).standard_normal((n, k)).astype(np.float32)
            there = kernels.Product(number, whole[end - data.size : end], rows, k, x, isa, copy=False).run()
            np.testing.assert_array_equal(there, kernels.product(number, data, rows, k, x, isa))


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of the block of 256"):
        kernels.row_bytes(TYPES["Q4_K"], 128)
    with pytest.raises(ValueError, match="bytes"):
        kernels.product(TYPES["Q8_0"], b"\0" * 33, 1, 32, np.ones(32))
    with pytest.raises(ValueError, match="no tensor type"):
        kernels.unpack(5, b"", 32)


def test_instruction_sets_are_chosen_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEARTHD_ISA", raising=False)
    assert kernels.select() == kernels.available()[-1]
    assert kernels.select("c") == "c"
    with pytest.raises(ValueError, match="no such instruction set"):
        kernels.select("mmx")
    for name in set(kernels.NAMES) - set(kernels.available()):
        with pytest.raises(ValueError, match=r"processor|kernel"):
            kernels.select(name)
    code = "from hearthd.cyext import kernels; print(kernels.select())"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"HEARTHD_ISA": "c"}, capture_output=True, check=True
    )
    assert run.stdout == b"c\n"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"HEARTHD_ISA": "z80"}, capture_output=True, check=False
    )
    assert run.returncode != 0 and b"no such instruction set" in run.stderr
