"""The engine against exact logits, for every tensor type and instruction set, and against itself."""

import json

import numpy as np
import pytest
from hearthd.cyext import kernels
from hearthd.daemon.model.sampling import Sampler
from hearthd.daemon.model.turn import ContextFull, Part, StepFailed
from hearthd.daemon.protocol import Sampling

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


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
def test_an_unreadable_expert_fails_those_that_are_routed_to_it(tiny, tmp_path, layer, deferred):
    """And leaves their sessions as they were, and the others' logits as they are without them."""
    folder, _, _ = tiny
    name = f"blk.{layer}.ffn_up_exps.weight"
    path = rewritten(folder / "moe-f16.gguf", tmp_path / "model.gguf", last=name)
    whole, expert = path.read_bytes(), 3
    with Opened(path) as engine:
        sound = prompt_by_routing(engine, layer, expert, uses=False)
        struck = prompt_by_routing(engine, layer, expert, uses=True)
        expected = logits_of(engine, sound)[0], logits_of(engine, sound, 1)[0][-1:], logits_of(engine, struck)[0]
    with Opened(path, deferred=deferred, threads=3) as engine:
        sessions = [engine.new_session() for _ in range(3)]
        stepped(engine, (sessions[2], sound[:-1], "none"))
        with open(path, "r+b") as file:
            file.truncate(len(whole) - 100_000)
        before = engine.expert_counts.sum(axis=1)
        parts = [(sessions[0], struck, "all"), (sessions[1], sound, "all"), (sessions[2], sound[-1:], "last")]
        outcomes = engine.step([Part(*part) for part in parts])
        error = outcomes[0].error
        assert isinstance(error, StepFailed) and "could not be read" in str(error) and f"{name}, expert 3" in str(error)
        assert [session.length for session in sessions] == [0, len(sound), len(sound)]
        assert np.array_equal(outcomes[1].rows(), expected[0]) and np.array_equal(outcomes[2].rows(), expected[1])
        asked = (engine.expert_counts.sum(axis=1) - before) // engine.hyper.n_expert_used
        rows = len(sound) + 1
        assert asked.tolist() == [rows + len(struck), rows if layer == 0 else rows + len(struck)]
        with pytest.raises(StepFailed, match=f"{name}, expert 3"):  # with nobody to go on for
            stepped(engine, (sessions[0], struck, "all"))
        assert engine.pool.used == 2
        path.write_bytes(whole)
        if deferred:
            engine._queue.retry([error.span])
        assert np.array_equal(stepped(engine, (sessions[0], struck, "all"))[0], expected[2])


def prompt_by_routing(engine, layer, expert, *, uses, length=6):
    """Tokens of which the last, or none, is routed to an expert of a layer."""
    session, found = engine.new_session(), []
    for token in range(100, engine.n_vocab):
        before = engine.expert_counts[layer, expert]
        stepped(engine, (session, np.array([token], np.int32), "last"))
        if bool(engine.expert_counts[layer, expert] - before) == (uses and len(found) == length - 1):
            found.append(token)
            if len(found) == length:
                return np.array(found, np.int32)
        else:
            session.truncate(len(found))
    raise AssertionError("no such tokens")


def test_dense_memory_that_cannot_be_read_fails_all(tiny, tmp_path):
    folder, facts, _ = tiny
    tokens = np.array(facts["tokens"], np.int32)
    path = rewritten(folder / "moe-f16.gguf", tmp_path / "model.gguf", last="blk.1.attn_q.weight")
    with Opened(path) as engine:
        sessions = [engine.new_session(), engine.new_session()]
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size - 60_000)
        outcomes = engine.step([Part(session, tokens, "last") for session in sessions])
        assert ["blk.1.attn_q.weight" in str(outcome.error) for outcome in outcomes] == [True, True]
        assert [session.length for session in sessions] == [0, 0] and engine.pool.used == 0


def test_what_one_part_asks_in_vain_is_its_own_affair(tiny):
    folder, facts, _ = tiny
    tokens = np.array(facts["tokens"], np.int32)
    with Opened(folder / "moe-f16.gguf", context=64, sequences=2) as engine:
        expected = logits_of(engine, tokens)[0]
        sessions = [engine.new_session() for _ in range(2)]
        parts = [(sessions[0], np.resize(tokens, 65), "last"), (sessions[1], tokens, "all")]
        outcomes = engine.step([Part(*part) for part in parts])
        assert isinstance(outcomes[0].error, ContextFull) and sessions[0].length == 0
        assert np.array_equal(outcomes[1].rows(), expected)
        with pytest.raises(ValueError, match="two parts of one session"):
            engine.step([Part(sessions[1], tokens[:1], "last")] * 2)
        with pytest.raises(ValueError, match="token 640"):
            engine.step([Part(sessions[1], np.array([1, 640], np.int32), "last")])
        assert sessions[1].length == len(tokens)


def test_logits_that_are_handed_out_stay(tiny):
    """Those of a sampler's rows share memory, which the next step writes over."""
    folder, facts, _ = tiny
    tokens = np.array(facts["tokens"], np.int32)
    with Opened(folder / "moe-f16.gguf") as engine:
        sampler = Sampler(Sampling(temperature=0), engine.n_vocab)
        sessions = [engine.new_session() for _ in range(4)]
        wants = [("last", sampler), ("all", None), ("last", sampler), ("none", None)]
        chosen = []
        for part in (tokens, tokens[::-1].copy()):
            outcomes = engine.step([Part(s, part, *want) for s, want in zip(sessions, wants, strict=True)])
            assert [outcome.logits is None for outcome in outcomes] == [True, False, True, True]
            kept = outcomes[1].logits if part is tokens else kept  # noqa: F821
            chosen.append([outcomes[k].choice.token for k in (0, 2)])
            assert chosen[-1] == [int(outcomes[1].logits[-1].argmax())] * 2
            engine.trim()
        assert np.array_equal(kept, logits_of(engine, tokens)[0])


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
