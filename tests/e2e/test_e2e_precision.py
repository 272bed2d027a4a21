"""`model.dtype auto`: said at the start, kept in the run folder, and kept by a resumed run."""

from __future__ import annotations

import json
import shutil

from srsjax.runs.run_folder import RunFolder


def test_auto_is_said_and_kept_and_a_resumed_run_keeps_it_on_another_cpu(trained, small, command):
    said = "precision: float32 (auto: "  # on every CPU: the encoder of these tests is too small for anything else
    assert said in (trained / "train.txt").read_text()
    config = json.loads((trained / "runs/ctr/config.json").read_text())
    assert config["model"]["dtype"] == "auto" and config["precision"]["dtype"] == "float32"

    # As if it had been trained in bfloat16 on another machine and stopped before its report.
    moved = trained / "runs/moved"
    shutil.copytree(trained / "runs/ctr", moved)
    best = RunFolder(moved).best_step()
    (moved / "report.json").unlink()
    kept = {"dtype": "bfloat16", "device": "another CPU"}
    (moved / "config.json").write_text(json.dumps(config | {"precision": kept, "run_dir": "runs/moved"}))
    RunFolder(moved).bind([moved / "config.json"], best)
    done = command("train", "--config", "ctr.py", *small, "--run_dir", "runs/moved", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "precision: bfloat16 (auto: that of the run)" in done.stdout
    assert json.loads((moved / "config.json").read_text())["precision"] == kept
    exact, rounded = (json.loads((folder / "report.json").read_text()) for folder in (trained / "runs/ctr", moved))
    assert 0 < abs(exact["test"]["log_loss"] - rounded["test"]["log_loss"]) < 0.01

    done = command("evaluate", "--run", "runs/moved", "--output", "moved.json", cwd=trained)  # here: in float32
    assert done.returncode == 0, done.stderr
    assert json.loads((trained / "moved.json").read_text())["model"]["log_loss"] == exact["test"]["log_loss"]
