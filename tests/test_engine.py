"""The engine against exact logits, for every tensor type and instruction set, and against itself."""

import json

import numpy as np
import pytest
from hearthd.cyext import kernels
from hearthd.daemon.model.turn import ContextFull, StepFailed

from tests.opened import Opened, greedy, logits_of, nmse, stepped
from tests.rewritten import rewritten, values_of


@pytest.fixture(scope="module")
def tiny(models_dir):
    folder = models_dir / "tiny"
    facts = json.loads((folder / "reference.json").read_text())
    return folder, facts, np.load(folder / "reference.npz")


@pytest.mark.parametrize("isa", kernels.available())
def test_logits_are_as_exact_as_eight_bit_activations_allow(tiny, isa):
    folder, facts, exact = tiny
    tokens = np.array(facts["tokens"], np.int32)
    for name, fact in facts["models"].items():
        limit = max(1.5 * fact["llamacpp_median_position_nmse"], 1e-5)
        with Opened(folder / f"{name}.gguf", isa=isa) as engine:
            # Plain C is slow, and its kernels know two ways only: one token and many.
            for chunk in (None, 1) if isa == "c" else (None, 7, 1):
                logits, session = logits_of(engine, tokens, chunk)
                assert nmse(logits, exact[name]) <= limit, (name, chunk)
            # Types of so few bits have near ties among random weights; the others must say the same tokens.
            if fact["greedy_same"] == 16 and "iq" not in name:
                assert greedy(engine, session, logits[-1], 16) == exact[f"{name}/greedy"].tolist(), name


def test_the_trained_model_continues_its_prompts(models_dir):
    folder = models_dir / "tinystories"
    facts = json.loads((folder / "reference.json").read_text())
    with Opened(folder / "tinystories-moe-F16.gguf") as engine:
        for prompt in facts["prompts"]:
            expected = prompt["f32"]["greedy"]
            logits, session = logits_of(engine, np.array(prompt["tokens"], np.int32))
            assert greedy(engine, session, logits[-1], len(expected)) == expected
            session.close()


@pytest.mark.parametrize(("threads", "deferred"), [(1, False), (3, False), (2, True)])
def test_results_do_not_depend_on_threads_or_residency(tiny, threads, deferred):
    folder, facts, _ = tiny
    tokens = np.array(facts["tokens"], np.int32)
    for name in ("moe-mix-q4_k_m", "moe-mix-mxfp4_moe"):
        with Opened(folder / f"{name}.gguf") as engine:
            expected = [logits_of(engine, tokens, chunk)[0] for chunk in (None, 1)]
        with Opened(folder / f"{name}.gguf", threads=threads, deferred=deferred) as engine:
            for chunk, logits in zip((None, 1), expected, strict=True):
                assert np.array_equal(logits_of(engine, tokens, chunk)[0], logits)


def test_sessions_in_one_step_do_not_mix(tiny):
    folder, facts, _ = tiny
    tokens = np.array(facts["tokens"], np.int32)
    with Opened(folder / "moe-f16.gguf") as engine:
        alone = [logits_of(engine, part)[0] for part in (tokens[:20], tokens[20:])]
        sessions = [engine.new_session(), engine.new_session()]
        together = stepped(engine, (sessions[0], tokens[:20], "all"), (sessions[1], tokens[20:], "all"))
        for found, expected in zip(together, alone, strict=True):
            assert nmse(found, expected) < 1e-10


def test_a_truncated_session_goes_on_as_if_nothing_had_been(tiny):
    folder, facts, _ = tiny
    tokens = np.array(facts["tokens"], np.int32)
    with Opened(folder / "moe-f16.gguf") as engine:
        expected, _ = logits_of(engine, tokens)
        _, session = logits_of(engine, tokens[::-1].copy())
        session.truncate(0)
        again = stepped(engine, (session, tokens, "all"))[0]
        assert np.array_equal(again, expected)


def test_a_full_context_leaves_the_session_as_it_was(tiny):
    folder, facts, _ = tiny
    tokens = np.array(facts["tokens"], np.int32)
    with Opened(folder / "moe-f16.gguf", context=64, sequences=1) as engine:
        session = engine.new_session()
        stepped(engine, (session, tokens, "none"))
        with pytest.raises(ContextFull):
            stepped(engine, (session, tokens, "none"))
        assert session.length == len(tokens)
        with pytest.raises(ContextFull):
            stepped(engine, (engine.new_session(), tokens, "none"))
        session.close()
        assert stepped(engine, (engine.new_session(), tokens, "last"))[0].shape == (1, engine.hyper.n_vocab)


@pytest.mark.parametrize("deferred", [False, True])
def test_a_file_that_shrinks_fails_the_step_and_nothing_else(tiny, tmp_path, deferred):
    folder, facts, _ = tiny
    tokens = np.array(facts["tokens"], np.int32)
    copy = tmp_path / "model.gguf"
    copy.write_bytes((folder / "moe-f16.gguf").read_bytes())
    with Opened(copy, deferred=deferred) as engine:
        whole = copy.stat().st_size
        with open(copy, "r+b") as file:
            file.truncate(whole // 2)
        with pytest.raises(StepFailed, match=r"could not be read"):
            stepped(engine, (engine.new_session(), tokens, "last"))
        copy.write_bytes((folder / "moe-f16.gguf").read_bytes())
        if not deferred:
            assert stepped(engine, (engine.new_session(), tokens, "last"))[0] is not None


def test_what_was_used_is_counted(tiny):
    folder, facts, _ = tiny
    tokens = np.array(facts["tokens"], np.int32)
    with Opened(folder / "moe-f16.gguf") as engine:
        logits_of(engine, tokens)
        h = engine.hyper
        assert engine.expert_counts.sum(axis=1).tolist() == [len(tokens) * h.n_expert_used] * h.n_layer
        steps, used, there = engine.expert_touched[0]
        assert steps == 1
        assert 0 < used <= there == h.n_expert


@pytest.mark.parametrize("name", ["moe-f16.gguf", "moe-q4_k_s.gguf"])
def test_the_last_layer_computes_only_what_wants_logits(tiny, name):
    folder, facts, _ = tiny
    tokens = np.array(facts["tokens"], np.int32)
    with Opened(folder / name) as engine:
        every, used = logits_of(engine, tokens)[0], engine.hyper.n_expert_used
        before = engine.expert_counts.sum(axis=1)
        session = engine.new_session()
        assert stepped(engine, (session, tokens[:-3], "none")) == [None]
        (last,) = stepped(engine, (session, tokens[-3:], "last"))
        seen = engine.expert_counts.sum(axis=1) - before
        assert seen.tolist() == [len(tokens) * used] * (engine.hyper.n_layer - 1) + [used]
        assert np.abs(last[0] - every[-1]).max() < 1e-2 * np.abs(every[-1]).max()


def test_more_experts_of_a_token_than_a_guess_has_room_for(tiny, tmp_path):
    """100 of 128: nothing is guessed, and the same comes out as from all rows at once."""
    folder, facts, _ = tiny
    source, tokens = folder / "moe-f16.gguf", np.array(facts["tokens"][:6], np.int32)
    rng, many = np.random.default_rng(1), {}
    for name, values in values_of(source).items():
        if "_exps." in name:
            many[name] = np.tile(values, (32, 1, 1)).astype(np.float16)
        elif "ffn_gate_inp." in name:
            many[name] = rng.standard_normal((128, values.shape[1])).astype(np.float32)
    keys = {"ARCH.expert_count": 128, "ARCH.expert_used_count": 100}
    with Opened(rewritten(source, tmp_path / "model.gguf", keys=keys, tensors=many)) as engine:
        engine.set_lookahead(False, 1)
        one_by_one, whole = (logits_of(engine, tokens, chunk)[0] for chunk in (1, None))
        assert nmse(one_by_one, whole) < 1e-6
        assert engine.lookahead["guessed"] == 0
