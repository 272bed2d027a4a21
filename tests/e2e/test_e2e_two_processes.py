"""Two real processes train and score as one: the part of test_e2e_multihost.py that every run of the tests has time
for."""

from __future__ import annotations

import json

from test_e2e_multihost import run


def test_two_processes_train_and_score(small, trained, command):
    arguments = ("--config", "ctr.py", *small, "--max_steps", 3, "--log_every", 1, "--run_dir", "runs/short")
    processes = run(2, trained, "train", *arguments)
    lines = [json.loads(line) for line in (trained / "runs/short/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3]
    assert processes.said(1) == "" and "test split" in processes.said(0)
    assert (trained / "runs/short/report.json").exists()

    # Each scores parts of its own on its own device: the files are those of a process alone, byte for byte.
    arguments = ("--run", "runs/short", "--input", "data/shop/log-*.parquet", "--part_rows", 500, "--output")
    processes = run(2, trained, "score", *arguments, "by-two")
    done = command("score", *arguments, "by-one", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert processes.said(1) == "" and "rows scored in" in processes.said(0)
    found = [{file.name: file.read_bytes() for file in (trained / name).iterdir()} for name in ("by-two", "by-one")]
    assert found[0] == found[1] and len(found[0]) > 4
