"""Placement on machines with two and four real nodes: virtual ones, each of which runs tests/numa/checks.py once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent.parent / "daemon" / "data" / "tinystories-moe-Q4_K_M.gguf"
SHAPES = {2: ["-n", "2", "-c", "2", "-m", "512"], 4: ["-n", "4", "-c", "1", "-m", "384"]}
NO_GUEST = 125


@pytest.fixture(scope="module")
def guests() -> Iterator[dict[int, subprocess.Popen[str]]]:
    """Both at once: each is mostly one thread of emulation."""
    # QEMU emulates AVX2 so that numpy's argsort comes out unsorted.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 X86_V3"}
    running = {
        nodes: subprocess.Popen(
            [HERE / "guest", *shape, "--", sys.executable, HERE / "checks.py", MODEL, "/mnt", "/dev/shm"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for nodes, shape in SHAPES.items()
    }  # fmt: skip
    yield running
    for guest in running.values():
        if guest.poll() is None:
            guest.terminate()
            guest.wait()


def found_in(guest: subprocess.Popen[str]) -> dict:
    out, errors = guest.communicate(timeout=175)
    if guest.returncode == NO_GUEST:
        if os.environ.get("CI"):
            pytest.fail(f"no guest to test placement in: {errors}")
        pytest.skip(f"no guest to test placement in: {errors.strip().splitlines()[-1]}")
    assert guest.returncode == 0, out + errors
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("nodes", SHAPES)
def test_placement(guests, nodes):
    found = found_in(guests[nodes])
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
