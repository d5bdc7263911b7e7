"""What memory admits: the setting as asked, the narrowest limit of machine and cgroups, pressure, and what is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hearthd.daemon.model import architectures
from hearthd.daemon.model.gguf import open_model
from hearthd.daemon.model.need import need
from hearthd.daemon.residency.allowance import Allowance
from hearthd.daemon.residency.budget import Budgeter, Sessions

from .opened import Opened, stepped
from .test_residency import machine

GIB = 1 << 30


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


def test_sessions_have_their_part(tmp_path: Path) -> None:
    """What they may take is kept for them, a quarter at most; what they take beyond it, the model gives."""
    fake = machine(tmp_path, total=10 << 30, available=10 << 30)
    budgeter = Budgeter("8G", fake / "proc", fake / "cgroup")

    def model(may_take: int, taken: int, available: int = 10 << 30) -> tuple[float, float]:
        machine(tmp_path, total=10 << 30, available=available - taken)
        found = budgeter.read(0, Sessions(may_take, taken))
        return found.bytes / GIB, found.sessions / GIB

    assert model(GIB, 0) == model(GIB, GIB // 2) == (7, 1)
    assert model(20 * GIB, 0) == model(20 * GIB, GIB) == (6, 2)
    assert model(20 * GIB, 3 * GIB) == (5, 3)
    assert model(20 * GIB, 6 * GIB) == pytest.approx((10 - 0.4 - 6, 6))  # as asked: 4; the machine has less
    assert model(GIB, 0, 4 * GIB) == pytest.approx((4 - 0.4 - 0.9, 0.9))
    assert model(GIB, GIB // 2, 4 * GIB) == pytest.approx((4 - 0.4 - 0.9, 0.9))


def test_a_budget_follows_what_sessions_have_taken(tmp_path: Path) -> None:
    fake = machine(tmp_path, total=64 << 30, available=64 << 30)
    seen = SimpleNamespace(evicted_recently=np.zeros(1), resident=np.zeros(1), mapped=np.zeros(1))
    ledger = SimpleNamespace(now=seen, locked=np.zeros(1, bool))
    engine = SimpleNamespace(memory_taken=lambda: 5 * GIB)
    budgeter = Budgeter("8G", fake / "proc", fake / "cgroup")
    allowance = Allowance(budgeter, ledger, GIB, lambda *event: None, 10 * GIB)  # type: ignore[arg-type]
    assert (allowance.now.bytes, allowance.now.sessions) == (6 * GIB, 2 * GIB)
    allowance.engine = engine  # type: ignore[assignment]
    allowance.follow(0)
    assert (allowance.now.bytes, allowance.now.sessions) == (4 * GIB, 4 * GIB)


@pytest.mark.parametrize("name", ["tiny/moe-f16", "arch/deepseek2", "arch/qwen35moe", "arch/gpt-oss", "arch/step35"])
def test_what_is_planned_for_sessions_is_what_the_engine_has(models_dir: Path, name: str) -> None:
    path = models_dir / f"{name}.gguf"
    checked = architectures.check(model := open_model(path))
    planned = need(model, checked.hyper, checked.table, context=101, sessions=3, batch=64)
    with Opened(path, context=101, sequences=3, batch=64) as engine:
        program, pool = engine.program, engine.pool
        assert (planned.blocks, planned.block_bytes) == (pool.blocks, pool.block_bytes) == (6, pool.block_bytes)
        assert planned.token_bytes == engine.kv_bytes_per_token and planned.session_bytes == program.session_bytes
        assert engine.memory_taken() == 0
        sessions = [engine.new_session() for _ in range(3)]
        for _ in range(2):
            for session in sessions:
                stepped(engine, (session, np.arange(50, dtype=np.int32), "none"))
        stepped(engine, *((session, np.arange(1, dtype=np.int32), "last") for session in sessions))
        assert 0 < engine.memory_taken() <= planned.bytes
        for session in sessions:
            session.close()
        del sessions, session
        engine.trim()
        assert engine.memory_taken() == 0
