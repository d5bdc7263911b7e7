"""Placement's arithmetic, its choices, and that no mode changes an answer or costs anything on one node."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import hearthd.daemon
import numpy as np
import pytest
from hearthd.cyext.mapping import Mapping
from hearthd.cyext.populate_queue import CURSOR, SWEEP, PopulateQueue
from hearthd.cyext.spans import READY, Spans
from hearthd.daemon.model.engine import Engine
from hearthd.daemon.model.gguf import open_model
from hearthd.daemon.model.spans import SpanTable
from hearthd.daemon.model.turn import Part
from hearthd.daemon.residency import numa_audit, numa_plan
from hearthd.daemon.residency.ledger import Ledger
from hearthd.daemon.residency.numa_plan import PAGE, Segments
from hearthd.daemon.residency.placement import Choice, Placement, choose
from hearthd.daemon.topology import Node, Topology

from .opened import stepped
from .pages import cached_pages, cold_file

GIB = 1 << 30


def machine(nodes: int = 2, free: int = 64, **rest) -> Topology:
    there = [
        Node(k, ((2 * k,), (2 * k + 1,)), 64 * GIB, free * GIB, {j: 10 if j == k else 21 for j in range(nodes)})
        for k in range(nodes)
    ]
    return Topology(tuple(there), **rest)


def codes(asked: str, there: Topology, nbytes: int = GIB, experts: int = 8) -> list[str]:
    choice = choose(asked, there, nbytes=nbytes)
    return [warning.code for warning in numa_audit.audit(asked, choice, there, nbytes, experts)]


def test_a_page_has_one_owner():
    ranges = [(100, 5000, 0), (5000, 9000, 1), (9000, 9100, 0), (9100, 20480, 1), (40960, 50000, 0)]
    segments = Segments(
        *(np.array(column, kind) for column, kind in zip(
            zip(*[(k, 0, a, b, team) for k, (a, b, team) in enumerate(ranges)], strict=True),
            (np.int32, np.int32, np.uint64, np.uint64, np.int32), strict=True))
    )  # fmt: skip
    first, begin, owner = numa_plan.owners_of_pages(segments, 2)
    assert first.tolist() == [0, 3, 3]
    assert list(zip(begin.tolist(), owner.tolist(), strict=True)) == [(0, 0), (2 * PAGE, 1), (10 * PAGE, 0)]
    pages, nbytes = numa_plan.pages_of(segments)
    # The page at 8192 begins in what team 1 reads; the little segment of team 0 in it owns nothing.
    assert pages.tolist()[:2] == [0, 2 * PAGE]
    assert nbytes.tolist() == [2 * PAGE, PAGE, 0, 2 * PAGE, 3 * PAGE]


def test_experts_are_balanced_by_heat_and_memory():
    heat = 1000.0 / (1 + np.tile(np.arange(16), (6, 1)))
    for teams in ([1, 1], [1, 1, 1, 1], [3, 1]):
        owner = numa_plan.balance(heat, teams)
        assert numa_plan.load(owner, heat, teams) <= 1.15
        held = np.array([(owner == team).sum(axis=1).max() for team in range(len(teams))])
        assert (held <= np.ceil(16 * np.array(teams) / sum(teams) * numa_plan.SLACK)).all()
    even = numa_plan.balance(np.zeros((6, 16)), [1, 1])
    assert ((even == 0).sum(axis=1) == 8).all()


def test_auto_says_why():
    assert choose("auto", machine(1)).mode == "off"
    assert choose("auto", machine(1)).reason == "the machine has one node"
    assert choose("auto", machine(), nbytes=GIB).mode == "distribute"
    assert choose("auto", machine(free=1), nbytes=8 * GIB).mode == "interleave"
    assert choose("auto", machine(4), nbytes=GIB, expert_bytes=100_000).mode == "experts"
    assert all(choose("auto", machine(k), nbytes=GIB).reason for k in (1, 2, 4))
    assert choose("distribute", machine(), threads=1).mode == "off"


def test_the_audit_names_what_works_against_placement():
    for mode in ("interleave", "distribute", "mirror", "experts", "auto"):
        assert codes(mode, machine(1)) == ["numa-one-node"]
        assert codes(mode, machine()) == []
    assert codes("off", machine(1)) == codes("off", machine(balancing=True)) == []
    assert codes("distribute", machine(balancing=True)) == ["numa-balancing"]
    assert codes("distribute", machine(free=1), nbytes=4 * GIB) == ["numa-node-small"] * 2
    assert codes("experts", machine(), experts=0) == ["numa-no-experts"]
    barred = Topology((machine().nodes[0], Node(1, (), 64 * GIB, 64 * GIB, barred=True)))
    assert codes("distribute", barred) == ["numa-cpuset", "numa-no-effect"]


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(3).integers(1, 100, 20).astype(np.int32)


def opened(path, choice: Choice, budget: str = "100%"):
    model = open_model(path)
    table = SpanTable.build(model)
    mapping = Mapping(model.paths)
    spans = Spans(mapping, table.file, table.offset, table.nbytes, table.layer, len(choice.teams))
    queue = PopulateQueue(spans, workers=2, cpus=[[0]] * len(choice.teams), memory=choice.memory)
    placement = Placement(choice, table, mapping, spans, queue, budget)
    engine = Engine(model, table, spans, queue, teams=choice.teams, nodes=choice.memory, context=64, sequences=1)
    placement.attach(engine, np.zeros((0, 0)))
    return engine, placement, queue, spans


@pytest.mark.parametrize("name", ["tiny/moe-mix-q4_k_m", "arch/deepseek2", "arch/gpt-oss",
                                  "arch/mixtral-oldsplit-q8_0", "arch/qwen3next", "arch/qwen3moe-split-00001-of-00003"])
def test_no_mode_changes_an_answer(models_dir, tokens, name):
    from hearthd.daemon.model import architectures

    path = models_dir / f"{name}.gguf"
    if open_model(path).architecture not in architectures.KNOWN:
        pytest.skip(f"the architecture of {name} is not known yet")
    one = Choice("off", "", [[-1]], [0], [0])
    two, three = [[-1], [-1]], [[-1, -1], [-1], [-1]]
    expected = None
    for choice, budget in (
        (one, ""), (Choice("interleave", "", two, [0, 0], [0, 0]), ""),
        *((Choice(mode, "", teams, [0] * len(teams), [0] * len(teams)), budget)
          for mode, budget in (("distribute", ""), ("experts", ""), ("mirror", "100%"), ("mirror", "40%"))
          for teams in (two, three)),
    ):  # fmt: skip
        engine, placement, queue, spans = opened(path, choice, budget or "100%")
        queue.submit(CURSOR, np.arange(len(spans)))
        assert queue.drain(CURSOR, 20.0)
        assert (spans.state == READY).all()
        while placement.copy_ready():
            pass
        session = engine.new_session()
        logits = [stepped(engine, (session, tokens, "all"))[0], stepped(engine, (session, tokens[:1], "last"))[0]]
        if expected is None:
            expected = logits
        for found, right in zip(logits, expected, strict=True):
            assert np.array_equal(found, right), choice.mode
        if choice.exact:
            assert placement.look(force=True)
            assert placement.wrong_bytes() == 0
            assert placement.local_share() == [1.0] * len(choice.teams)
            assert sum(row.total for row in placement.rows()) == sum(row.mapped for row in placement.rows())
        engine.close()
        queue.close()
        placement.close()


@pytest.mark.parametrize("nodes", [[0], [3], [0, 1]])
def test_bytes_by_node_add_up_and_none_is_guessed(tmp_path, nodes):
    path = cold_file(tmp_path / "model", 4 << 20)
    if cached_pages(path).any():
        pytest.skip("the file system of the temporary directory keeps dropped pages (tmpfs?)")
    mapping = Mapping([path])
    size = 1 << 20
    table = SimpleNamespace(
        file=np.zeros(4, np.int32), offset=np.arange(4, dtype=np.uint64) * np.uint64(size),
        nbytes=np.full(4, size, np.uint64), layer=np.zeros(4, np.int32), expert=np.array([-1, 0, 1, 2]),
    )  # fmt: skip
    spans = Spans(mapping, table.file, table.offset, table.nbytes, table.layer)
    queue = PopulateQueue(spans, workers=1)
    queue.set_cover(SWEEP, 2.0)
    queue.submit(SWEEP, [0, 1])
    assert queue.drain(SWEEP, 5)
    with open(path, "rb") as file:  # cached, not mapped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(file.fileno(), size, 2 * size)
    ledger = Ledger(mapping, table)
    ledger.refresh()
    placement = Placement(Choice("off", "", [[-1]], [0], [0]), table, mapping, spans, queue, nodes=nodes)
    rows, reason = placement.by_node(ledger.now)
    queue.close()
    shown = {(row["node"], row["role"]): {name: row[name] for name in ("mapped", "cached", "deferred", "unknown")}
             for row in rows}  # fmt: skip
    for row in rows:
        assert row["total"] == sum(row[name] for name in ("mapped", "arena", "cached", "deferred", "unknown"))
    here = {"mapped": size, "cached": 0, "deferred": 0, "unknown": 0}
    if len(nodes) == 1:
        assert reason == "" and shown == {
            (nodes[0], "dense"): here, (nodes[0], "expert"): here | {"cached": size, "deferred": size}
        }  # fmt: skip
    else:
        assert "cached may be on any" in reason and shown == {
            (0, "dense"): here, (0, "expert"): here,
            (None, "expert"): {"mapped": 0, "cached": 0, "deferred": size, "unknown": size},
        }  # fmt: skip


def test_a_prompt_is_read_while_the_sweep_that_began_with_its_experts_waits(tmp_path, tokens):
    """In `distribute` a sweep hands every other part to the other node's workers; a prefill pauses it at any moment."""
    path = tmp_path / "model.gguf"
    shutil.copy(next(Path(hearthd.daemon.__file__).parent.glob("data/*.gguf")), path)
    experts = np.flatnonzero(SpanTable.build(open_model(path)).expert >= 0)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        for moment in range(6):
            engine, _, queue, _ = opened(path, Choice("distribute", "", [[-1], [-1]], [0, 0], [0, 0]))
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            queue.submit(SWEEP, experts)
            time.sleep(0.001 + 0.0005 * moment)
            queue.pause((SWEEP,))
            answers = []
            reading = [Part(engine.new_session(), tokens, "last")]
            thread = threading.Thread(target=lambda e, r, a: a.append(e.step(r)), args=(engine, reading, answers))
            thread.start()
            thread.join(10)
            hung = thread.is_alive()
            queue.resume()  # so that a step that hangs ends
            thread.join()
            engine.close()
            queue.close()
            assert not hung
            assert np.isfinite(answers[0][0].rows()).all()


def test_experts_that_become_uneven_are_dealt_out_anew(models_dir, tokens):
    choice = Choice("experts", "", [[-1], [-1]], [0, 0], [0, 0])
    engine, placement, queue, spans = opened(models_dir / "tiny/moe-f16.gguf", choice)
    queue.submit(CURSOR, np.arange(len(spans)))
    assert queue.drain(CURSOR, 20.0)
    session = engine.new_session()
    before = stepped(engine, (session, tokens, "all"))[0]
    owner = placement.owner.copy()
    heat = np.where(owner == 0, 100.0, 1.0)
    assert placement.follow(heat, even=True) == ""
    assert "change nodes" in placement.follow(heat, even=False)
    assert (owner != placement.owner).any()
    assert numa_plan.load(placement.owner, heat, [1, 1]) <= 1.15
    assert queue.drain(SWEEP, 20.0)
    session.truncate(0)
    assert np.array_equal(stepped(engine, (session, tokens, "all"))[0], before)
    assert placement.follow(heat, even=False) == ""
    engine.close()
    queue.close()


def test_a_mirror_takes_dense_spans_then_the_hottest_experts(models_dir):
    table = SpanTable.build(open_model(models_dir / "tiny/moe-f16.gguf"))
    heat = np.zeros((table.n_layer, table.n_expert))
    heat[1, 2] = heat[0, 3] = 5
    dense = int(table.nbytes[table.expert < 0].sum())
    one = int(table.nbytes[table.expert_spans(1, 2)].sum())
    ids = numa_plan.mirrored(table, heat, dense + 2 * one + 10)
    experts = {(int(table.layer[k]), int(table.expert[k])) for k in ids if table.expert[k] >= 0}
    assert experts == {(1, 2), (0, 3)}
    assert (table.expert[ids] < 0).sum() == (table.expert < 0).sum()
    assert len(numa_plan.mirrored(table, heat, int(table.nbytes.sum()))) == len(table)
