"""`python -m srsjax.bench` on the small shop."""

from __future__ import annotations

import re


def test_it_measures_training_scoring_and_input_and_writes_no_run(trained, small, command):
    before = sorted(trained.rglob("*"))
    done = command("bench", "--config", "ctr.py", *small, cwd=trained)
    assert done.returncode == 0, done.stderr
    assert re.search(r"float32 products: \d+\.\d+ Tflop/s", done.stdout)
    rows = {
        cells[0].strip(): [float(cell.strip().replace(",", "").rstrip("%")) for cell in cells[1:] if cell.strip()]
        for cells in (line.strip("│").split("│") for line in done.stdout.splitlines() if line.startswith("│"))
    }
    assert [*rows] == ["training", "scoring", "input alone"]
    for name in ("training", "scoring"):
        milliseconds, tokens, candidates, rate, share = rows[name]
        assert milliseconds > 0 and tokens > candidates > 0 and rate >= 0 and 0 < share < 100
    assert len(rows["input alone"]) == 3  # products are not its work
    assert sorted(trained.rglob("*")) == before
