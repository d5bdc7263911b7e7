"""Gated delta rule, convolution and gated activations: every instruction set against their formulas in float64."""

import itertools

import numpy as np
import pytest
from hearthd.cyext import kernels

ISAS = kernels.available()
SILU, SWIGLU_OAI, SWIGLU_LIMIT, GELU, SIGMOID_GATE, SIGMOID, SILU_ONLY = range(7)


def close(found, expected, bound=1e-6):
    return np.abs(found - expected).max() <= bound * np.abs(expected).max()


def scan(q, k, v, decay, beta, state):
    """One token after the other, as the paper writes it."""
    s, out = state.astype(np.float64), []
    for t in range(len(q)):
        s = decay[t] * s
        s = s + np.outer(k[t], beta[t] * (v[t] - s.T @ k[t]))
        out.append(s.T @ q[t])
    return np.array(out), s


def in_pieces(sizes, isa, q, k, v, decay, beta, state):
    """(outputs, last held state, last tail of tokens that no state holds) of rows that come so many at a time."""
    tail, outs, t = None, [], 0
    for size in itertools.cycle(sizes):
        if t >= len(q):
            return np.concatenate(outs), state, tail
        part = slice(t, t + size)
        out, state, tail = kernels.delta(
            q[part], k[part], v[part], decay[part], beta[part], state, tail, t % kernels.DELTA_TOKENS, isa
        )
        outs.append(out)
        t += size


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("rows", "dk", "dv"), [(1, 128, 128), (4, 64, 64), (23, 128, 128), (6, 20, 37), (11, 31, 16), (9, 16, 300)]
)
def test_delta_rule_is_the_same_in_any_pieces(isa, rows, dk, dv):
    rng = np.random.default_rng([rows, dk, dv])
    q, k, v = (rng.standard_normal((rows, n)).astype(np.float32) for n in (dk, dk, dv))
    k /= np.linalg.norm(k, axis=1, keepdims=True)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    decay, beta = rng.uniform(0, 1, (2, rows)).astype(np.float32)
    decay[::5] = 0.0
    state = rng.standard_normal((dk, dv)).astype(np.float32)
    given = (isa, q, k, v, decay, beta, state)
    whole, after, tail = in_pieces([rows], *given)
    held = rows - rows % kernels.DELTA_TOKENS
    assert close(whole, scan(q, k, v, decay, beta, state)[0])
    assert close(after, scan(q[:held], k[:held], v[:held], decay[:held], beta[:held], state)[1])
    for sizes in ([1], [2], [3], [5], [7], [3, 1, 6, 2]):
        outs, s, left = in_pieces(sizes, *given)
        assert np.array_equal(outs, whole), sizes
        assert np.array_equal(s, after), sizes
        assert np.array_equal(left, tail, equal_nan=True), sizes  # what is not there was never written


@pytest.mark.parametrize("isa", ISAS)
def test_convolution(isa):
    rng = np.random.default_rng(1)
    for taps, n in ((4, 100), (2, 16), (1, 7)):
        x, w = rng.standard_normal((2, taps, n)).astype(np.float32)
        total = (x.astype(np.float64) * w).sum(0)
        assert close(kernels.convolve(x, w, isa), total / (1 + np.exp(-total)))


@pytest.mark.parametrize("isa", ISAS)
def test_activations(isa):
    rng = np.random.default_rng(2)
    gate, up = (20 * rng.standard_normal((2, 83))).astype(np.float32)
    x, y, limit, alpha = gate.astype(np.float64), up.astype(np.float64), 7.0, 1.702

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    low, clipped = np.minimum(x, limit), np.clip(y, -limit, limit)
    tanh = np.tanh(0.7978845608 * (x + 0.044715 * x**3))
    expected = {
        SILU: x * sigmoid(x) * y,
        SWIGLU_OAI: low * sigmoid(alpha * low) * (clipped + 1),
        SWIGLU_LIMIT: np.minimum(x * sigmoid(x), limit) * clipped,
        GELU: 0.5 * x * (1 + tanh) * y,
        SIGMOID_GATE: y * sigmoid(x),
        SIGMOID: sigmoid(x),
        SILU_ONLY: x * sigmoid(x),
    }
    for kind, values in expected.items():
        assert close(kernels.activate(kind, gate, up, limit, alpha, isa), values), kind
