"""The table of states and events at the head of cyext/queue/state.h, walked at random by tests/queue_walk.c with
delays; ThreadSanitizer sees what the queue's threads share."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEIGHBOURS = ("arena", "fault", "mapping", "placement", "populate")
WRAPPED = ("hd_populate", "hd_arena_read", "hd_evict")


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, with ThreadSanitizer where the compiler has it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for tests/queue_walk.c")
    program = tmp_path_factory.mktemp("walk") / "walk"
    sources = [ROOT / "tests" / "queue_walk.c", *sorted((ROOT / "cyext" / "queue").glob("*.c")),
               *(ROOT / "cyext" / f"{name}.c" for name in NEIGHBOURS)]  # fmt: skip
    wraps = [f"-Wl,--wrap={name}" for name in WRAPPED]
    command = [compiler, "-g", "-O1", f"-I{ROOT / 'cyext'}", *sources, *wraps, "-lm", "-lpthread", "-o", program]
    if subprocess.run([*command, "-fsanitize=thread"], check=False, capture_output=True).returncode:
        subprocess.run(command, check=True)
    return program


@pytest.mark.parametrize("kind", ["plain", "single", "owners", "arena"])
def test_no_way_leads_out_of_the_table(walk: Path, tmp_path: Path, kind: str) -> None:
    command = [walk, tmp_path / "model", "0.5", "1", kind, "faults"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("skipped"):
        pytest.skip(done.stdout)
    assert " 0 steps" not in done.stdout
