"""What memory admits: the setting as asked, the narrowest limit of machine and cgroups, pressure, and what is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hearthd.daemon.residency.allowance import Allowance
from hearthd.daemon.residency.budget import Budgeter

from .test_residency import machine


@pytest.mark.parametrize(
    ("setting", "expected"), [("auto", 0.8), ("50%", 0.5), ("512M", 0.25), ("1.5GiB", 0.75), ("1024k", 2**-11)]
)
def test_the_budget_as_asked(tmp_path: Path, setting: str, expected: float) -> None:
    fake = machine(tmp_path, total=2 << 30, available=2 << 30)
    assert Budgeter(setting, fake / "proc", fake / "cgroup").read().bytes == int(expected * (2 << 30))


def test_a_budget_is_told_when_it_moves_below_what_the_model_takes(tmp_path: Path) -> None:
    fake = machine(tmp_path, total=64 << 30, available=34 << 30)
    told: list[tuple[str, str]] = []
    seen = SimpleNamespace(evicted_recently=np.zeros(1), resident=np.zeros(1), mapped=np.zeros(1))
    ledger = SimpleNamespace(now=seen, locked=np.zeros(1, bool))
    budgeter = Budgeter("auto", fake / "proc", fake / "cgroup")
    allowance = Allowance(budgeter, ledger, 10 << 30, lambda *event: told.append(event[1:]))  # type: ignore[arg-type]
    for available in (34, 20, 30, 13):  # other programs come and go; there is room for the model
        machine(tmp_path, total=64 << 30, available=available << 30)
        allowance.read(0)
    assert allowance.now.bytes == 11 << 30 and not told
    for available in (6, 13):
        machine(tmp_path, total=64 << 30, available=available << 30)
        allowance.read(0)
    assert [level for _, level in told] == ["warning", "info"]
    assert "from 32.0 GiB to 4.00 GiB (MemAvailable)" in told[0][0]


def test_the_narrowest_limit_counts(tmp_path: Path) -> None:
    fake = machine(tmp_path, total=64 << 30, available=32 << 30)
    budgeter = Budgeter("auto", fake / "proc", fake / "cgroup")
    assert budgeter.read().reason == "MemAvailable"
    assert budgeter.read().bytes == (32 << 30) - (2 << 30)
    # version 1: our own group and what is above it; pages of files do not count as used
    own = fake / "cgroup" / "memory" / "a" / "b"
    own.mkdir(parents=True)
    (fake / "proc" / "self" / "cgroup").write_text("4:memory:/a/b\n0::/\n")
    (own / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (own.parent / "memory.limit_in_bytes").write_text(f"{3 << 30}\n")
    (own.parent / "memory.usage_in_bytes").write_text(f"{2 << 30}\n")
    (own.parent / "memory.stat").write_text(f"total_inactive_file {1 << 30}\ntotal_active_file {512 << 20}\n")
    found = budgeter.read()
    assert found.reason == "memory.limit_in_bytes"
    assert found.bytes == (3 << 30) - (512 << 20) - int((3 << 30) * 0.04)
    # version 2
    v2 = fake / "cgroup" / "service"
    v2.mkdir()
    (fake / "cgroup" / "cgroup.controllers").write_text("memory\n")
    (fake / "proc" / "self" / "cgroup").write_text("0::/service\n")
    (v2 / "memory.max").write_text("max\n")
    (v2 / "memory.high").write_text(f"{1 << 30}\n")
    (v2 / "memory.current").write_text(f"{900 << 20}\n")
    (v2 / "memory.stat").write_text(f"inactive_file 0\nactive_file {800 << 20}\n")
    found = budgeter.read()
    assert found.reason == "memory.high" and found.bytes == (1 << 30) - (100 << 20) - (64 << 20)


def test_pressure_takes_steps_and_quiet_gives_them_back(tmp_path: Path) -> None:
    fake = machine(tmp_path, total=2 << 30, available=2 << 30)
    pressure = fake / "proc" / "pressure"
    pressure.mkdir()
    (pressure / "memory").write_text("some avg10=35.00 avg60=0 avg300=0 total=1\nfull avg10=0.00 total=0\n")
    budgeter = Budgeter("1G", fake / "proc", fake / "cgroup")
    assert budgeter.brake(100.0, 0, 1 << 30) and not budgeter.brake(100.5, 0, 1 << 30)
    assert budgeter.brake(101.0, 0, 1 << 30)
    assert budgeter.read().held_back == (1 << 30) // 8
    (pressure / "memory").write_text("some avg10=0.00 avg60=0 avg300=0 total=1\n")
    assert not budgeter.brake(102.0, 0, 1 << 30)
    assert budgeter.brake(102.0, 100 << 20, 1 << 30)  # the kernel evicts what we would have used
    assert budgeter.brake(140.0, 0, 1 << 30)
    assert budgeter.read().held_back == (1 << 30) // 8
