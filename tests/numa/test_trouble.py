"""A disk that fails and limits that fall, in a virtual machine that has both; see trouble.py, unreadable.py, limits.py.

Needs what tests/numa/guest needs; skipped where there can be no guest.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hearthd.daemon.model.shapes import SHAPES
from hearthd.daemon.model.synth import synthesise

MIB = 1 << 20
DAEMONS = ("warmer", "on demand", "eager", "before ready", "arena")


@pytest.fixture(scope="module")
def guest(start_guest, demo_model, tmp_path_factory):
    tiny = SHAPES["tiny-moe"]
    hyper = {"block_count": 5, "expert_count": 64, "expert_used_count": 2, "embedding_length": 512}
    large = tmp_path_factory.mktemp("models") / "large.gguf"
    synthesise(large, replace(tiny, hyper={**tiny.hyper, **hyper, "expert_feed_forward_length": 512}))
    shape = ["-n", "1", "-c", "2", "-m", "1024", "-d", "512", "-t", "300"]
    return start_guest(shape, "trouble.py", demo_model, large, "/mnt")


@pytest.fixture
def unreadable(guest):
    found = guest.found()["unreadable"]
    print(json.dumps(found, indent=1))
    return found


@pytest.mark.parametrize("name", DAEMONS)
def test_an_expert_that_cannot_be_read_fails_the_requests_that_need_it(unreadable, name):
    found, expert = unreadable[name], unreadable["expert"]
    short, long = unreadable["sound"]
    failure = f"{expert['span']} could not be read: Input/output error at byte {expert['byte']}"
    assert found["said"] == [short, f"failed: {failure}", short]
    assert f"warning unreadable: {failure}" in found["events"]
    assert (found["arena"] == "arena") == (name == "arena")
    if name not in ("on demand", "arena"):  # there it was not planned
        assert found["failed_bytes"] > 0 and found["percent"] < 100
        assert any("could not be read" in text for text in found["events"] if text.startswith("info state: warm:"))
    assert found["afterwards"] == long  # the disk has recovered
    assert found["code"] == 0


def test_a_page_that_the_kernel_took_and_cannot_read_again_fails_one_request(unreadable):
    short, long = unreadable["sound"]
    found = unreadable["taken away"]
    assert found["said"][1].startswith(f"failed: {unreadable['expert']['span']} could not be read")
    assert found["said"] == [long, found["said"][1], short, long]
    assert found["code"] == 0


def test_a_dense_span_that_cannot_be_read_fails_all_requests_until_it_can(unreadable):
    found = unreadable["dense"]
    failure = found["said"][0]
    assert failure.startswith("failed: blk.3.attn_q.weight could not be read: Input/output error at byte ")
    assert found["said"] == [failure, failure, unreadable["sound"][0]]
    assert found["state"] == "warm" and found["failed_bytes"] > 0 and found["code"] == 0


def test_an_unreadable_header_is_refused_and_named(unreadable):
    *within, behind = unreadable["header"]
    for found in within:
        page = found["byte"] // 4096 * 4096
        assert not found["ready"] and found["code"] == 65
        assert "model.gguf: " in found["log"] and f"cannot be read (byte {page})" in found["log"]
    assert behind["ready"] and behind["code"] == 0


def test_limits_of_nested_cgroups_are_seen_and_forgotten(guest):
    found = guest.found()["limits"]["nested"]
    print(json.dumps(found, indent=1))
    names = ["none", "parent's max", "own max", "own gone", "parent's high", "all gone"]
    reasons = [found[name]["reason"] for name in names]
    assert reasons == ["MemAvailable", "memory.max", "memory.max", "memory.max", "memory.high", "MemAvailable"]
    budgets = [found[name]["bytes"] / MIB for name in names]
    # A quarter of each is for sessions.
    assert budgets[0] > 180 > budgets[1] > 55 > budgets[2] > 30
    assert budgets[3] == pytest.approx(budgets[1], abs=8) and 45 < budgets[4] < 75 < budgets[5]
    assert found["kernel"]["oom_kill"] == 0 and found["code"] == 0


@pytest.mark.parametrize("name", ["mapping", "arena"])
def test_a_limit_that_falls_while_answers_run_kills_nobody(guest, name):
    found = guest.found()["limits"][name]
    print(json.dumps(found, indent=1))
    assert found["arena"]["in_use"] == name
    assert all(said == found["first"] for said in found["said"]) and found["said"]
    assert {step["reason"] for step in found["steps"]} == {"memory.max"}
    budgets = [step["bytes"] for step in found["steps"]]
    assert budgets == sorted(budgets, reverse=True) and budgets[-1] < budgets[0] / 2
    assert all(step["used"] <= step["limit"] for step in found["steps"])
    assert any(text.startswith("warning budget:") and "memory.max" in text for text in found["events"])
    assert found["kernel"]["oom"] == found["kernel"]["oom_kill"] == 0 and found["code"] == 0


def test_pressure_is_the_cgroups_own(guest):
    found = guest.found()["limits"]["squeezed"]
    print(json.dumps(found, indent=1))
    assert found["shown"] > 0
    assert found["kernel"] > 0
