"""The pool: who holds a block, what becomes of a block that several hold when one writes, when memory goes back."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hearthd.cyext.pool import Pool
from hearthd.cyext.program import KV_BLOCK
from hearthd.daemon.model.turn import Part

from tests.opened import Opened, logits_of, stepped

MIB = 1 << 20


@pytest.fixture(scope="module")
def tiny(models_dir: Path) -> tuple[Path, np.ndarray]:
    facts = json.loads((models_dir / "tiny" / "reference.json").read_text())
    return models_dir / "tiny" / "moe-f16.gguf", np.array(facts["tokens"], np.int32)


def written(pool: Pool, block: int, value: int = 1) -> None:
    import ctypes

    ctypes.memset(pool.address + block * pool.block_bytes, value, pool.block_bytes)


def test_a_block_is_free_when_nobody_holds_it() -> None:
    pool = Pool(3, 5000)
    assert pool.block_bytes == 8192 and (pool.used, pool.warm, pool.free) == (0, 0, 3)
    blocks = [pool.take() for _ in range(3)]
    assert sorted(blocks) == [0, 1, 2] and pool.take() is None
    pool.share(1)
    pool.put(1)
    assert pool.holders(1) == 1 and pool.free == 0
    pool.put(1)
    assert (pool.used, pool.warm, pool.free) == (2, 1, 1)
    for call in (pool.put, pool.share, pool.holders):
        with pytest.raises(ValueError, match="nobody holds block 1"):
            call(1)
        with pytest.raises(ValueError, match="nobody holds block 3"):
            call(3)
    assert pool.take() == 1 and pool.used == 3


def test_free_blocks_keep_their_memory_for_a_while() -> None:
    pool = Pool(8, MIB)
    blocks = [pool.take() for _ in range(8)]
    assert pool.resident() == 0
    for block in blocks:
        written(pool, block)
    assert pool.resident() == 8 * MIB
    for block in blocks:
        pool.put(block)
    assert pool.cool(60.0, 8) == 0 and (pool.warm, pool.resident()) == (8, 8 * MIB)
    assert pool.take() == blocks[-1]  # the one that is likeliest to be in a cache
    pool.put(blocks[-1])
    assert pool.cool(60.0, 5, 2) == 2 and pool.cool(60.0, 5) == 1  # the oldest of those above five
    assert (pool.warm, pool.free, pool.resident()) == (5, 8, 5 * MIB)
    time.sleep(0.02)
    assert pool.cool(0.01, 8) == 5 and (pool.free, pool.resident()) == (8, 0)  # all waited long enough
    taken = [pool.take() for _ in range(8)]
    assert sorted(taken) == list(range(8)) and pool.resident() == 0


def test_each_session_has_its_whole_context(tiny: tuple[Path, np.ndarray]) -> None:
    path, tokens = tiny
    with Opened(path, context=100, sequences=4) as engine:
        assert engine.pool.blocks == 4 * 2
        prompt = np.resize(tokens, 100)
        sessions = [engine.new_session() for _ in range(4)]
        for session in sessions:
            assert stepped(engine, (session, prompt, "none")) == [None]
        assert engine.pool.used == 8 and engine.pool.free == 0


def test_what_several_hold_is_copied_before_it_is_written(tiny: tuple[Path, np.ndarray]) -> None:
    path, tokens = tiny
    with Opened(path, context=256, sequences=2) as engine:
        prompt = np.resize(tokens, KV_BLOCK + 6)
        expected = logits_of(engine, prompt)[0]
        session, pool = engine.new_session(), engine.program.pool
        stepped(engine, (session, prompt[:-3], "none"))
        first, second = session.state.held
        pool.share(first)
        pool.share(second)
        before = bytes_of(pool, second)
        with pytest.raises(ValueError, match="others hold block 1 as well"):
            engine.program.run([(session.state, prompt[-3:], len(prompt) - 3, None)])
        (last,) = stepped(engine, (session, prompt[-3:], "all"))
        assert session.state.held[0] == first and session.state.held[1] != second  # a full block is only read
        assert (pool.holders(first), pool.holders(second)) == (2, 1)
        assert bytes_of(pool, second) == before
        assert np.abs(last - expected[-3:]).max() < 1e-4
        session.close()
        assert (pool.used, pool.holders(first)) == (2, 1)


def bytes_of(pool: Pool, block: int) -> bytes:
    import ctypes

    return ctypes.string_at(pool.address + block * pool.block_bytes, pool.block_bytes)


def test_no_block_for_a_copy_is_a_full_pool(tiny: tuple[Path, np.ndarray]) -> None:
    path, tokens = tiny
    with Opened(path, context=64, sequences=1) as engine:
        session = engine.new_session()
        stepped(engine, (session, tokens, "none"))
        engine.program.pool.share(session.state.held[0])
        (outcome,) = engine.step([Part(session, tokens[:1], "last")])
        assert str(outcome.error) == "the pool is full" and session.length == len(tokens)
        engine.program.pool.put(session.state.held[0])
        assert stepped(engine, (session, tokens[:1], "last"))[0].shape == (1, engine.n_vocab)


def test_closed_sessions_leave_nothing_in_memory(tiny: tuple[Path, np.ndarray]) -> None:
    path, tokens = tiny
    with Opened(path, context=256, sequences=24) as engine:
        sessions = [engine.new_session() for _ in range(24)]
        for session in sessions:
            stepped(engine, (session, np.resize(tokens, 200), "none"))
        use = engine.pool
        assert use.used == 24 * 4 and 0 < use.bytes <= use.used * use.block_bytes
        for session in sessions:
            session.close()
        assert engine.pool.used == 0 and engine.pool.warm == 24 * 4
        engine.trim()
        assert (engine.pool.warm, engine.pool.free, engine.pool.bytes) == (0, 24 * 4, 0)
        again, _ = logits_of(engine, tokens)  # and what comes back is as good as new
        engine.trim()
        assert np.array_equal(logits_of(engine, tokens)[0], again)
