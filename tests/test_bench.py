"""`hearthctl bench`: every asked test is measured and told, in JSON and as a table; wrong requests are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hearthd.daemon import ctl


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


@pytest.mark.parametrize("flags", [["-p", "0", "-n", "0"], ["-r", "0"], ["-t", "4096"]])
def test_refuses_what_cannot_be_measured(
    models_dir: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    model = str(models_dir / "tiny" / "moe-q4_k_s.gguf")
    assert ctl.main(["bench", model, *flags]) == 1
    assert "hearthctl:" in capsys.readouterr().err
