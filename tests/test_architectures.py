"""Every architecture against exact logits: whole prompts, chunks and single tokens, windows, scans and rope scaling."""

import json

import numpy as np
import pytest
from hearthd.cyext import kernels
from hearthd.daemon.model.architectures import KNOWN

from tests.opened import Opened, greedy, logits_of, nmse

SHARES_REFERENCE = {"mixtral-oldsplit-q8_0": "mixtral-q8_0"}
CHUNKS = {"c": (None, 1)}  # plain C is slow, and its kernels know two ways only: one token and many
CLEAR = 0.5  # a margin between the two best tokens that no rounding turns over


@pytest.fixture(scope="module")
def arch(models_dir):
    folder = models_dir / "arch"
    facts = json.loads((folder / "reference.json").read_text())
    return (
        folder,
        {k: v for k, v in facts.items() if isinstance(v, dict) and "file" in v},
        np.load(folder / "reference.npz"),
    )


@pytest.mark.parametrize("isa", kernels.available())
def test_logits_agree_in_one_piece_in_chunks_and_token_by_token(arch, isa):
    folder, facts, exact = arch
    assert {fact["architecture"] for fact in facts.values()} <= set(KNOWN)
    for name, fact in facts.items():
        key = SHARES_REFERENCE.get(name, name)
        tokens = exact[f"{key}/tokens"].astype(np.int32)
        limit = max(1.5 * fact["llamacpp_median_position_nmse"], 1e-5)
        with Opened(folder / fact["file"], isa=isa) as engine:
            for chunk in CHUNKS.get(isa, (None, 7, 1)):
                logits, session = logits_of(engine, tokens, chunk)
                assert nmse(logits, exact[f"{key}/logits"]) <= limit, (name, chunk)
            if min(margins := fact.get("greedy_margins", [0.0])) > CLEAR:
                assert greedy(engine, session, logits[-1], len(margins)) == exact[f"{key}/greedy"].tolist(), name
            if f"{key}/long_tokens" in exact:
                tail = exact[f"{key}/long_tail_logits"]
                long_limit = max(2 * fact.get("long_llamacpp_tail_median_nmse", 0.0), 1e-4)
                for chunk in (7,) if isa == "c" else (None, 7):
                    logits, _ = logits_of(engine, exact[f"{key}/long_tokens"].astype(np.int32), chunk)
                    assert nmse(logits[-len(tail) :], tail) <= long_limit, (name, chunk)


def test_deferred_experts_change_no_token(arch):
    folder, facts, exact = arch
    for name, fact in facts.items():
        tokens = exact[f"{SHARES_REFERENCE.get(name, name)}/tokens"].astype(np.int32)
        with Opened(folder / fact["file"]) as engine:
            expected, _ = logits_of(engine, tokens)
        with Opened(folder / fact["file"], deferred=True) as engine:
            assert np.array_equal(logits_of(engine, tokens)[0], expected), name


def test_every_router_is_looked_ahead_to(arch):
    folder, facts, exact = arch
    for name, fact in facts.items():
        with Opened(folder / fact["file"]) as engine:
            h = engine.hyper
            layers = h.n_layer - h.more.get("dense", 0) if h.n_expert else 0
            engine.set_lookahead(False, 1)
            logits_of(engine, exact[f"{SHARES_REFERENCE.get(name, name)}/tokens"].astype(np.int32), 1)
            counts = engine.lookahead
            expected = 40 * max(layers - 1, 0) * h.n_expert_used
            assert counts["used"] == counts["guessed"] == expected, name
