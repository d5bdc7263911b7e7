"""Guests for the tests in this folder: started once, their JSON read by whoever asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent.parent / "daemon" / "data" / "tinystories-moe-Q4_K_M.gguf"
NO_GUEST = 125
# QEMU emulates AVX2 so that numpy's argsort comes out unsorted.
NUMPY = {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 X86_V3", "OPENBLAS_NUM_THREADS": "1"}


class Guest:
    """A machine of this shape in which a script of this folder runs once."""

    def __init__(self, shape: list[str], script: str, *arguments: object) -> None:
        command = [HERE / "guest", *shape, "--", sys.executable, HERE / script, *map(str, arguments)]
        surroundings = os.environ | NUMPY | {"PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings
        )
        self._found: dict[str, Any] | None = None

    def found(self) -> dict[str, Any]:
        """What the script printed last. Skips where there can be no guest, which CI takes for a failure."""
        if self._found is None:
            out, errors = self._process.communicate(timeout=320)
            if self._process.returncode == NO_GUEST:
                if os.environ.get("CI"):
                    pytest.fail(f"no guest to test in: {errors}")
                pytest.skip(f"no guest to test in: {errors.strip().splitlines()[-1]}")
            assert self._process.returncode == 0, out + errors
            self._found = json.loads(out.splitlines()[-1])
        return self._found

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


@pytest.fixture(scope="module")
def start_guest() -> Iterator[Callable[..., Guest]]:
    """`start_guest(["-n", "2"], "checks.py", MODEL)`: they end with the module's tests."""
    running: list[Guest] = []

    def start(*arguments: Any) -> Guest:
        running.append(Guest(*arguments))
        return running[-1]

    yield start
    for guest in running:
        guest.stop()


@pytest.fixture(scope="session")
def demo_model() -> Path:
    return DEMO
