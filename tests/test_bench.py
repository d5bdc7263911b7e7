"""`hearthctl bench`: what was asked is measured and told, in JSON and as a table; wrong requests are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hearthd.daemon import ctl
from hearthd.daemon.model.engine import Engine
from hearthd.daemon.model.turn import Outcome, Part


def test_measures_what_was_asked(models_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(models_dir / "tiny" / "moe-q4_k_s.gguf")
    flags = ["-p", "8,20", "-n", "2", "-d", "0,5", "-b", "16", "-r", "2", "-t", "1"]
    assert ctl.main(["bench", model, *flags, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    rows = data["results"]
    assert [row["test"] for row in rows] == ["pp8", "pp20", "tg2", "pp8 @ d5", "pp20 @ d5", "tg2 @ d5"]
    assert all(len(row["samples"]) == 2 and row["min"] > 0 for row in rows)
    generated = rows[2]["weight_bytes_per_token"]
    # Two of four experts, and of the embedding one row: less than the file, more than the experts that were used.
    assert data["bytes"] / 8 < generated < data["bytes"]


def test_the_table_has_a_line_per_test(models_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(models_dir / "tiny" / "moe-q8_0.gguf")
    assert ctl.main(["bench", model, "-p", "4", "-n", "1", "-r", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["pp4", "tg1"]


BATCH = ["-B", "1,3", "-p", "7", "-n", "2", "-d", "0,5", "-b", "8", "-r", "2", "-t", "1"]


@pytest.mark.parametrize("model", ["tiny/moe-q8_0.gguf", "arch/qwen35moe.gguf"])
def test_a_batch_has_all_sessions_in_the_same_steps(
    models_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    steps: list[list[int]] = []
    step = Engine.step

    def counted(engine: Engine, parts: list[Part]) -> list[Outcome]:
        steps.append([len(part.tokens) for part in parts])
        return step(engine, parts)

    monkeypatch.setattr(Engine, "step", counted)
    assert ctl.main(["bench", str(models_dir / model), *BATCH, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [(row["n_depth"], row["pl"], row["n_kv"]) for row in rows] == [
        (0, 1, 9), (0, 3, 27), (5, 1, 14), (5, 3, 42),
    ]  # fmt: skip
    for row in rows:
        assert len(row["samples_t_pp"]) == len(row["samples_t_tg"]) == 2
        tokens, seconds = row["pl"] * (row["pp"] + row["tg"]), row["t_pp"] + row["t_tg"]
        assert row["speed"] == pytest.approx(tokens / seconds)
    # Three prompts of seven rows in steps of eight, and a row of every session where they generate.
    assert [7, 1] in steps and [6, 2] in steps and [5] in steps and [1, 1, 1] in steps
    assert all(sum(rows) <= 8 for rows in steps)


def test_the_batch_table_has_the_columns_of_llama_batched_bench(
    models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl.main(["bench", str(models_dir / "tiny" / "moe-q8_0.gguf"), *BATCH, "-r", "1"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()[1:]
    assert " ".join(head.split()) == "depth PP TG B N_KV T_PP s S_PP t/s T_TG s S_TG t/s T s S t/s"
    assert [line.split()[:5] for line in lines] == [
        ["0", "7", "2", "1", "9"], ["0", "7", "2", "3", "27"], ["5", "7", "2", "1", "14"], ["5", "7", "2", "3", "42"],
    ]  # fmt: skip


@pytest.mark.parametrize("flags", [["-p", "0", "-n", "0"], ["-r", "0"], ["-t", "4096"], ["-B", "0,2"]])
def test_refuses_what_cannot_be_measured(
    models_dir: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    model = str(models_dir / "tiny" / "moe-q4_k_s.gguf")
    assert ctl.main(["bench", model, *flags]) == 1
    assert "hearthctl:" in capsys.readouterr().err
