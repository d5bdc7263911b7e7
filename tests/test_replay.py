"""The replayer against a memory simulated in the plainest way."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hearthd.daemon.ctl import main
from hearthd.daemon.residency.recorder import trace_of
from hearthd.daemon.residency.replay import POLICIES, Trace, replay, table


def trace(tokens: int = 300, seed: int = 0) -> Trace:
    rng = np.random.default_rng(seed)
    share = np.arange(16, 0, -1.0) ** 2
    choices = np.stack([np.stack([rng.choice(16, 2, replace=False, p=share / share.sum()) for _ in range(3)])
                        for _ in range(tokens)]).astype(np.int16)  # fmt: skip
    return Trace(choices, np.full((3, 16), 10), np.arange(tokens, dtype=np.int32))


def test_lru_equals_a_plain_simulation() -> None:
    recorded = trace()
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in recorded.accesses()[0].tolist():
        hits += key in held
        held[key] = None
        held.move_to_end(key)
        while len(held) > 20:
            held.popitem(last=False)
    outcome = replay(recorded, 200, "lru")
    assert (outcome.hits, outcome.accesses) == (hits, 300 * 3 * 2)
    assert outcome.read_bytes == 10 * (outcome.accesses - hits)


def test_nothing_beats_the_optimal_and_more_memory_helps() -> None:
    for seed in range(3):
        recorded = trace(seed=seed)
        for budget in (60, 120, 240, 480):
            read = {policy: replay(recorded, budget, policy).read_bytes for policy in POLICIES}
            assert min(read.values()) == read["optimal"]
        optimal = [outcome.hit_rate for outcome in table(recorded, [60, 120, 240, 480], ("optimal",))]
        assert optimal == sorted(optimal)
        assert replay(recorded, 480, "lru").read_bytes <= 480  # all fits: everything is read once


def test_tokens_of_one_step_read_an_expert_once() -> None:
    choices = np.array([[[0, 1]], [[1, 2]], [[1, -1]]], dtype=np.int16)
    sizes = np.full((1, 4), 7)
    assert replay(Trace(choices, sizes, np.array([0, 0, 1], dtype=np.int32)), 0, "lru").read_bytes == 4 * 7
    assert replay(Trace(choices, sizes, np.array([0, 1, 2], dtype=np.int32)), 0, "lru").read_bytes == 5 * 7


def test_a_trace_survives_the_disk_and_a_foreign_file_is_refused(tmp_path: Path) -> None:
    recorded = trace(10)
    recorded.save(tmp_path / "trace.npz")
    again = Trace.load(tmp_path / "trace.npz")
    assert (again.choices == recorded.choices).all() and (again.nbytes == recorded.nbytes).all()
    (tmp_path / "other").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="not a routing trace"):
        Trace.load(tmp_path / "other")
    Trace(recorded.choices, np.full((3, 4), 10), recorded.batch).save(tmp_path / "wrong.npz")
    with pytest.raises(ValueError, match="out of range"):
        Trace.load(tmp_path / "wrong.npz")


def test_records_become_a_trace_and_the_command_shows_the_run_beside_the_policies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Step 5 has two rows in layers 0 and 2 of 3, step 6 one; the run had read 40 bytes by the second record's time.
    rows = [(5, 0, 0, 1, 2), (5, 0, 1, 2, 3), (5, 2, 0, 0, 1), (5, 2, 1, 0, 2), (6, 0, 0, 1, 3), (6, 2, 0, 0, 3)]
    nbytes = np.full((3, 4), 10)
    recorded = trace_of(np.array(rows, dtype=np.int32).ravel(), 2, nbytes, [(0, 0, 60), (4, 40, 60), (6, 65, 60)])
    assert recorded.choices[:, 0].tolist() == [[1, 2], [2, 3], [1, 3]]
    assert recorded.choices[:, 1].tolist() == [[-1, -1]] * 3
    assert recorded.batch.tolist() == [5, 5, 6]
    assert recorded.run.tolist() == [[0, 0, 60], [2, 40, 60], [3, 65, 60]]
    assert (recorded.run_bytes_per_token(2), recorded.run_budget()) == (25.0, 60)
    recorded.save(tmp_path / "trace.npz")
    assert main(["replay", str(tmp_path / "trace.npz"), "--skip", "2"]) == 0
    shown = capsys.readouterr().out
    assert "optimal" in shown and "the run" in shown and "25 B" in shown
    (tmp_path / "other").write_bytes(b"GGUF")
    assert main(["replay", str(tmp_path / "other")]) == 65
