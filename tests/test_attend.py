"""Attention over blocks of keys and values against the formula in float64, and the rows' independence of each other."""

import numpy as np
import pytest
from hearthd.cyext import kernels

SHAPES = [  # rows, heads of the group, key width, value width, first position, options
    pytest.param(20, 8, 128, 128, 100, {}, id="prefill"),
    pytest.param(1, 8, 128, 128, 500, {}, id="decode"),
    pytest.param(33, 4, 32, 32, 0, {"window": 17}, id="window"),
    pytest.param(70, 2, 64, 64, 150, {"window": 64}, id="window-over-blocks"),
    pytest.param(3, 5, 80, 72, 70, {"softcap": 30.0}, id="softcap-odd-widths"),
    pytest.param(9, 8, 64, 64, 300, {"window": 128, "sinks": True}, id="sinks"),
    pytest.param(4, 16, 576, 512, 90, {}, id="latent"),
    pytest.param(2, 96, 24, 20, 63, {}, id="many-heads"),
    pytest.param(1, 1, 7, 5, 0, {}, id="one-key"),
]


def inputs(rows: int, group: int, dk: int, dv: int, start: int, options: dict) -> tuple:
    rng = np.random.default_rng([rows, group, dk])
    q = rng.standard_normal((rows, group, dk)).astype(np.float32) * 2
    keys = rng.standard_normal((start + rows, dk)).astype(np.float16)
    values = rng.standard_normal((start + rows, dv)).astype(np.float16)
    options = dict(options)
    if options.get("sinks"):
        options["sinks"] = rng.standard_normal(group).astype(np.float32)
    return q, keys, values, np.arange(start, start + rows), dk**-0.5, options


def formula(q, keys, values, pos, scale, softcap=0.0, window=0, sinks=None) -> np.ndarray:
    out = np.zeros((*q.shape[:2], values.shape[1]))
    keys, values = keys.astype(np.float64), values.astype(np.float64)
    for i, p in enumerate(pos):
        first = max(0, p - window + 1) if window else 0
        s = q[i].astype(np.float64) @ keys[first : p + 1].T * scale
        if softcap:
            s = softcap * np.tanh(s / softcap)
        if sinks is not None:
            s = np.concatenate([s, sinks[:, None].astype(np.float64)], axis=1)
        e = np.exp(s - s.max(axis=1, keepdims=True))
        e /= e.sum(axis=1, keepdims=True)
        out[i] = e[:, : p + 1 - first] @ values[first : p + 1]
    return out


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize(("rows", "group", "dk", "dv", "start", "options"), SHAPES)
def test_formula(rows: int, group: int, dk: int, dv: int, start: int, options: dict, isa: str) -> None:
    q, keys, values, pos, scale, options = inputs(rows, group, dk, dv, start, options)
    got = kernels.attend(q, keys, values, pos, scale, isa=isa, **options)
    np.testing.assert_allclose(got, formula(q, keys, values, pos, scale, **options), rtol=0, atol=1e-5)


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint32)


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize(("rows", "group", "dk", "dv", "start", "options"), SHAPES)
def test_a_head_of_a_row_depends_on_nothing_else(
    rows: int, group: int, dk: int, dv: int, start: int, options: dict, isa: str
) -> None:
    """Neither on the other rows and heads of a call nor on how many of them there are."""
    q, keys, values, pos, scale, options = inputs(rows, group, dk, dv, start, options)
    values[:, 1::3] *= np.float16(6e-8)  # their products vanish, and leave zeros with signs
    values[::2] *= -1
    whole = kernels.attend(q, keys, values, pos, scale, isa=isa, **options)
    for first, end in {(i, min(i + n, rows)) for n in (1, 3) for i in range(0, rows, n)}:
        some = kernels.attend(q[first:end], keys, values, pos[first:end], scale, isa=isa, **options)
        np.testing.assert_array_equal(bits(some), bits(whole[first:end]))
    if "sinks" in options:
        options["sinks"] = options["sinks"][-1:]
    head = kernels.attend(q[:, -1:], keys, values, pos, scale, isa=isa, **options)
    np.testing.assert_array_equal(bits(head[:, 0]), bits(whole[:, -1]))


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize(("rows", "group", "dk", "dv", "start", "options"), SHAPES)
def test_no_row_hears_of_tokens_that_it_does_not_see(
    rows: int, group: int, dk: int, dv: int, start: int, options: dict, isa: str
) -> None:
    """Keys and values of later rows of the same call, and of those that have left a window, may be no numbers."""
    q, keys, values, pos, scale, options = inputs(rows, group, dk, dv, start, options)
    whole = kernels.attend(q, keys, values, pos, scale, isa=isa, **options)
    for row in {0, rows // 2, rows - 1}:
        hidden = np.ones(len(keys), bool)
        window = options.get("window", 0)
        hidden[max(0, pos[row] + 1 - window) if window else 0 : pos[row] + 1] = False
        bad_keys, bad_values = keys.copy(), values.copy()
        bad_keys[hidden], bad_values[hidden] = np.nan, np.inf
        found = kernels.attend(q, bad_keys, bad_values, pos, scale, isa=isa, **options)
        np.testing.assert_array_equal(bits(found[row]), bits(whole[row]))


@pytest.mark.parametrize("isa", kernels.available())
def test_tokens_nobody_sees_may_hold_anything(isa: str) -> None:
    """Stale halves of a block, not finite, behind the last position and before every window."""
    q, keys, values, pos, scale, _ = inputs(5, 4, 32, 32, 80, {})
    clean = kernels.attend(q, keys, values, pos, scale, window=10, isa=isa)
    keys = np.concatenate([keys, np.full((20, 32), np.nan, np.float16)])
    values = np.concatenate([values, np.full((20, 32), np.inf, np.float16)])
    keys[:71], values[:71] = np.nan, np.nan
    np.testing.assert_array_equal(kernels.attend(q, keys, values, pos, scale, window=10, isa=isa), clean)
