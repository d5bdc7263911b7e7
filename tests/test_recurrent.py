"""Gated delta rule, convolution and gated activations: every instruction set against their formulas in float64."""

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


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "dk", "dv"), [(1, 128, 128), (4, 64, 64), (23, 128, 128), (6, 20, 37), (7, 32, 16)])
def test_delta_rule_in_any_pieces(isa, rows, dk, dv):
    rng = np.random.default_rng([rows, dk, dv])
    q, k, v = (rng.standard_normal((rows, n)).astype(np.float32) for n in (dk, dk, dv))
    k /= np.linalg.norm(k, axis=1, keepdims=True)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    decay, beta = rng.uniform(0, 1, (2, rows)).astype(np.float32)
    decay[::5] = 0.0
    state = rng.standard_normal((dk, dv)).astype(np.float32)
    expected, after = scan(q, k, v, decay, beta, state)
    for piece in (rows, 5, 1):
        s, outs = state, []
        for t in range(0, rows, piece):
            part = slice(t, t + piece)
            out, s = kernels.delta(q[part], k[part], v[part], decay[part], beta[part], s, isa)
            outs.append(out)
        assert close(np.concatenate(outs), expected)
        assert close(s, after)


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
