"""Placement on machines with two and four real nodes: virtual ones, each of which runs tests/numa/checks.py once."""

from __future__ import annotations

import json

import pytest

SHAPES = {2: ["-n", "2", "-c", "2", "-m", "512"], 4: ["-n", "4", "-c", "1", "-m", "384"]}


@pytest.fixture(scope="module")
def guests(start_guest, demo_model):
    """Both at once: each is mostly one thread of emulation."""
    return {nodes: start_guest(shape, "checks.py", demo_model, "/mnt", "/dev/shm") for nodes, shape in SHAPES.items()}


@pytest.mark.parametrize("nodes", SHAPES)
def test_placement(guests, nodes):
    found = guests[nodes].found()
    print(json.dumps(found, indent=1))
    assert found["nodes"] == len(found["teams"]) == nodes
    # The answer does not depend on where weights lie or who computes with them.
    assert found["same"] == dict.fromkeys(("distribute", "mirror 100%", "mirror 50%", "experts", "interleave"), True)

    # Whatever kind of file it is, and wherever its pages were cached before.
    assert set(found["distribute"]) == {"ext4", "tmpfs", "anonymous"}
    for where in (*found["distribute"].values(), found["cached_elsewhere"]):
        assert where["right"] >= 0.99
        assert where["by_numa_maps"] >= 0.99
    before = found["cached_elsewhere"]["before"]
    assert before[str(nodes - 1)] >= 0.95 * sum(before.values())
    assert found["cached_elsewhere"]["settled"][0] > 0
    assert found["kv"] == 1.0

    assert min(found["mirror"]["100%"]["local"]) >= 0.999
    half = found["mirror"]["50%"]
    assert half["mirrored_bytes"] <= half["of_bytes"] / 2
    assert half["read_from_mirrored"] > 0.5  # the hottest half
    assert min(half["local"]) >= 0.8

    assert found["experts"]["right"] >= 0.99
    assert found["experts"]["busiest"] > 1.5 / 16
    assert found["experts"]["load_before"] > 1.15
    assert found["experts"]["moved"] > 0
    assert found["experts"]["load"] <= 1.15
    assert found["experts"]["load_by_text"] <= 1.15
    assert found["arena"][nodes - 1] == sum(found["arena"])
