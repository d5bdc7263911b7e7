"""Where the system refuses a call (older kernels, sandboxes), the daemon does without, and answers the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hearthd.daemon.client import Client

from . import sandbox

pytestmark = pytest.mark.skipif(not sandbox.POSSIBLE, reason="system call filters are written for x86-64 Linux")
SANDBOX = str(Path(sandbox.__file__))
COUNTING = "mincore,cachestat"
OTHERS = "mlock,mlock2,move_pages,mbind,set_mempolicy,sched_setattr,sched_getaffinity,sched_setaffinity,ioprio_set"


def tokens_of(hearth: Client) -> list[int]:
    return [event.token for event in hearth.generate("Once upon a time", max_tokens=24, temperature=0)]


def test_pages_are_touched_where_populate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * (3 << 12))  # 3 MiB
    code = f"""
import os
from hearthd.cyext.mapping import Mapping
mapping = Mapping([{str(tmp_path / "file")!r}])
assert mapping.touches
read, cached = mapping.populate(0, 5000, 2 << 20)
assert read + cached >= 2 << 20 and mapping.mapped([0], [5000], [2 << 20]).tolist() == [2 << 20]
os.truncate({str(tmp_path / "file")!r}, 1 << 20)
try:
    mapping.populate(0, 0, 3 << 20)  # a plain read of the rest ends the process by SIGBUS
except OSError as error:
    print(error.errno == 61, error.strerror)
"""
    command = [sys.executable, SANDBOX, "EINVAL", "populate", sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout == f"True No data available at byte {1 << 20}\n", ran.stderr


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_a_daemon_does_without_what_is_refused(start_daemon: Callable[..., Any], error: str) -> None:
    with Client(start_daemon("--demo").endpoint) as hearth:
        usual = tokens_of(hearth)
    wrap = [sys.executable, SANDBOX, error, f"populate,{COUNTING},readahead,fadvise64,{OTHERS}"]
    daemon = start_daemon("--demo", "--threads", "2", wrap=wrap)
    with Client(daemon.endpoint) as hearth:
        assert tokens_of(hearth) == usual
        assert hearth.warm(wait=True)["failed"] == 0
        hearth.defer()
        assert tokens_of(hearth) == usual
        rows = hearth.residency()["rows"]
        assert {row["unknown"] > 0 for row in rows} == {True} or all(row["mapped"] == row["total"] for row in rows)
        warnings = [warning.code for warning in hearth.status().warnings]
    assert warnings.count("populate-refused") == 1
    assert daemon.stop() == 0 and "Traceback" not in daemon.log


def test_what_the_kernel_does_not_count_is_unknown(start_daemon: Callable[..., Any]) -> None:
    wrap = [sys.executable, SANDBOX, "EPERM", COUNTING]
    daemon = start_daemon("--demo", "--warm", "off", wrap=wrap)
    with Client(daemon.endpoint) as hearth:
        hearth.defer()
        for row in hearth.residency()["rows"]:
            assert row["unknown"] == row["total"] or row["mapped"] == row["total"]
        assert len(tokens_of(hearth)) == 24
    assert daemon.stop() == 0 and "Traceback" not in daemon.log
