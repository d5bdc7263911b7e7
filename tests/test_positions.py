"""Rope scaling as metadata and factor tensors say it, against a forward pass in numpy; and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hearthd.daemon.model import architectures
from hearthd.daemon.model.gguf import ModelError, open_model

from tests.opened import Opened, logits_of, nmse
from tests.rewritten import rewritten, values_of

TOKENS = np.random.default_rng(7).integers(0, 500, 90).astype(np.int32)
NO_FACTORS = {"rope_freqs.weight": None}
STRETCHED = np.linspace(1.0, 9.0, 16).astype(np.float32)
SLIGHTLY = np.linspace(1.0, 1.5, 16).astype(np.float32)
BOTH = {**NO_FACTORS, "rope_factors_long.weight": STRETCHED, "rope_factors_short.weight": SLIGHTLY}


def forward(values, hyper, angles, magnitude):
    """Logits [n, vocabulary] of TOKENS by a Llama (arXiv 2302.13971, section 2.2), in float64."""
    w = {name: v.astype(np.float64) for name, v in values.items()}
    heads, kv, width, epsilon = hyper
    turn = np.arange(len(TOKENS))[:, None] * angles
    cosine, sine = np.cos(turn)[:, None] * magnitude, np.sin(turn)[:, None] * magnitude
    later = np.triu(np.ones((len(TOKENS), len(TOKENS)), bool), 1)

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * w[name]

    def rotated(x, n):
        x = x.reshape(len(x), n, width)
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack([a * cosine - b * sine, a * sine + b * cosine], -1).reshape(len(x), n, width)

    x = w["token_embd.weight"][TOKENS]
    for p in (f"blk.{i}." for i in range(sum(name.endswith("attn_q.weight") for name in w))):
        a = norm(x, p + "attn_norm.weight")
        q, k = rotated(a @ w[p + "attn_q.weight"].T, heads), rotated(a @ w[p + "attn_k.weight"].T, kv)
        v = (a @ w[p + "attn_v.weight"].T).reshape(len(x), kv, width)
        k, v = (np.repeat(part, heads // kv, 1) for part in (k, v))
        scores = np.where(later, -np.inf, np.einsum("ihd,jhd->hij", q, k) / math.sqrt(width))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = np.einsum("hij,jhd->ihd", weights / weights.sum(-1, keepdims=True), v)
        x = x + out.reshape(len(x), -1) @ w[p + "attn_output.weight"].T
        f = norm(x, p + "ffn_norm.weight")
        gate = f @ w[p + "ffn_gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (f @ w[p + "ffn_up.weight"].T)) @ w[p + "ffn_down.weight"].T
    return norm(x, "output_norm.weight") @ w.get("output.weight", w["token_embd.weight"]).T


def plain(width=32, base=500000.0):
    return base ** (-np.arange(0, width, 2) / width)


def yarn(factor, original, fast=32.0, slow=1.0, width=32, base=500000.0):
    """transformers, modeling_rope_utils.py, _compute_yarn_parameters (arXiv 2309.00071, sections 3.2 and 3.4)."""

    def corrected(rotations):
        return width * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(corrected(fast)), 0), min(math.ceil(corrected(slow)), width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / max(high - low, 0.001), 0, 1)
    return plain() / factor * ramp + plain() * (1 - ramp), 0.1 * math.log(factor) + 1


def longrope(factors, stretch, original):
    """_compute_longrope_parameters of the same file (arXiv 2402.13753)."""
    return plain() / factors, math.sqrt(1 + math.log(stretch) / math.log(original))


CASES = {
    "a factor alone": ({"scaling.factor": 4.0}, NO_FACTORS, (plain() / 4, 1.0)),
    "the old key": ({"scale_linear": 4.0}, NO_FACTORS, (plain() / 4, 1.0)),
    "linear": ({"scaling.type": "linear", "scaling.factor": 4.0}, NO_FACTORS, (plain() / 4, 1.0)),
    "none": ({"scaling.type": "none", "scaling.factor": 4.0}, NO_FACTORS, (plain(), 1.0)),
    "a factor of zero": ({"scaling.factor": 0.0}, NO_FACTORS, (plain(), 1.0)),
    "a magnitude": ({"scaling.factor": 2.0, "scaling.attn_factor": 1.25}, NO_FACTORS, (plain() / 2, 1.25)),
    "divided and linear": ({"scaling.factor": 2.0}, {"rope_freqs.weight": STRETCHED}, (plain() / STRETCHED / 2, 1.0)),
    "yarn": ({"scaling.type": "yarn", "scaling.factor": 8.0, "scaling.original_context_length": 64}, NO_FACTORS,
             yarn(8.0, 64)),
    "yarn with its own": ({"scaling.type": "yarn", "scaling.factor": 8.0, "scaling.original_context_length": 64,
                           "scaling.yarn_beta_fast": 8.0, "scaling.yarn_beta_slow": 2.0, "scaling.attn_factor": 0.5},
                          NO_FACTORS, (yarn(8.0, 64, 8.0, 2.0)[0], yarn(8.0, 64)[1] / 2)),
    "yarn of the whole": ({"scaling.type": "yarn", "scaling.factor": 2.0}, NO_FACTORS, yarn(2.0, 4096)),
    "long": ({"scaling.type": "longrope", "scaling.original_context_length": 64}, BOTH, longrope(STRETCHED, 64, 64)),
    "short": ({"scaling.type": "longrope", "scaling.original_context_length": 512}, BOTH, longrope(SLIGHTLY, 8, 512)),
    "long, by its tensors": ({"scaling.original_context_length": 64, "scaling.attn_factor": 1.19}, BOTH,
                             (plain() / STRETCHED, 1.19)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_formula(models_dir, tmp_path, case):
    keys, tensors, angles = CASES[case]
    source = models_dir / "arch" / "llama3.gguf"
    path = rewritten(
        source, tmp_path / "model.gguf", keys={f"ARCH.rope.{k}": v for k, v in keys.items()}, tensors=tensors
    )
    with Opened(path, context=256) as engine:
        found, h = logits_of(engine, TOKENS)[0], engine.hyper
    exact = forward(values_of(source), (h.n_head[0], h.n_head_kv[0], h.head_k, h.epsilon), *angles)
    assert nmse(found, exact) < 1e-5
    if angles[1] != 1.0 or not np.array_equal(angles[0], plain()):  # the measure tells
        other = forward(values_of(source), (h.n_head[0], h.n_head_kv[0], h.head_k, h.epsilon), plain(), 1.0)
        assert nmse(other, exact) > 1e-4


def test_which_factors_depends_on_the_context_in_use(models_dir, tmp_path):
    keys = {"ARCH.rope.scaling.type": "longrope", "ARCH.rope.scaling.original_context_length": 128}
    path = rewritten(models_dir / "arch" / "llama3.gguf", tmp_path / "model.gguf", keys=keys, tensors=BOTH)
    logits = {}
    for context in (128, 129, 4096):
        with Opened(path, context=context) as engine:
            logits[context] = logits_of(engine, TOKENS)[0]
    assert np.array_equal(logits[129], logits[4096])
    assert not np.array_equal(logits[128], logits[129])


ONE_ROPE = ["deepseek2", "glm4moe", "gpt-oss", "llama3", "mixtral", "minimax-m2", "olmoe", "qwen2moe", "qwen3",
            "qwen35moe", "qwen3next"]  # fmt: skip


@pytest.mark.parametrize("name", ONE_ROPE)
def test_every_architecture_is_stretched(models_dir, tmp_path, name):
    """A factor without a type, and the same as a tensor of divisors, give the same bits, and others than none."""
    source, logits = models_dir / "arch" / f"{name}.gguf", []
    none = {"ARCH.rope.scaling.type": None, "ARCH.rope.scaling.factor": None}
    with Opened(source) as engine:
        pairs = engine.hyper.rope_width // 2
    for factor, divisor in ((4.0, None), (None, 4.0), (None, None)):
        keys = none | ({"ARCH.rope.scaling.factor": factor} if factor else {})
        tensors = {"rope_freqs.weight": np.full(pairs, divisor, np.float32) if divisor else None}
        with Opened(rewritten(source, tmp_path / "model.gguf", keys=keys, tensors=tensors)) as engine:
            logits.append(logits_of(engine, TOKENS[:20])[0])
    assert np.array_equal(logits[0], logits[1])
    assert nmse(logits[0], logits[2]) > 1e-6


REFUSED = [
    ("llama3", {"scaling.type": "dynamic"}, {}, "rope.scaling.type"),
    ("llama3", {"scaling.type": "linear", "scaling.factor": float("nan")}, {}, "rope.scaling.factor"),
    ("llama3", {"scale_linear": -4.0}, {}, "rope.scale_linear"),
    ("llama3", {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.attn_factor": float("inf")}, {}, "attn_factor"),
    ("llama3", {"scaling.type": "longrope"}, NO_FACTORS, "rope_factors_short.weight"),
    ("llama3", {"scaling.type": "longrope"}, BOTH | {"rope_factors_short.weight": None}, "rope_factors_short.weight"),
    ("llama3", {"scaling.type": "longrope"}, BOTH | {"rope_factors_long.weight": STRETCHED[:7]}, "rope_factors_long"),
    ("llama3", {"scaling.type": "longrope"}, BOTH | {"rope_factors_long.weight": -STRETCHED}, "rope_factors_long"),
    ("llama3", {"scaling.type": "linear", "scaling.factor": 4.0}, BOTH, "rope_factors_long.weight"),
    ("llama3", {}, BOTH | {"rope_freqs.weight": STRETCHED}, "rope_freqs.weight"),
    ("step35", {"scaling.factor": 4.0}, {}, "rope.scaling.factor"),
    ("step35", {}, BOTH, "rope_factors_long.weight"),
]


@pytest.mark.parametrize(("name", "keys", "tensors", "named"), REFUSED)
def test_what_cannot_be_meant_is_refused_by_name(models_dir, tmp_path, name, keys, tensors, named):
    path = rewritten(
        models_dir / "arch" / f"{name}.gguf",
        tmp_path / "model.gguf",
        keys={f"ARCH.rope.{k}": v for k, v in keys.items()},
        tensors=tensors,
    )
    with pytest.raises(ModelError, match=named):
        architectures.check(open_model(path))


def test_a_refusal_comes_before_ready(models_dir, tmp_path):
    keys = {"ARCH.rope.scaling.type": "dynamic"}
    path = rewritten(models_dir / "arch" / "qwen3.gguf", tmp_path / "model.gguf", keys=keys)
    run = subprocess.run(
        [sys.executable, "-m", "hearthd.daemon.cli", str(path), "--control", f"ipc://{tmp_path}/control"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 65
    assert "qwen3.rope.scaling.type" in run.stderr and "ready" not in run.stderr
