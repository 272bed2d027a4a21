"""A run that starts from another one, and a step of so many examples."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from srsjax.config import Mesh
from srsjax.inference.scorer import Scorer


def test_a_run_starts_from_the_weights_and_the_tokenizer_of_another(trained, small, command):
    """The daily retraining: with a rate of almost 0 the new run scores as the old one does."""
    options = (*small, "--optimizer.learning_rate", 1e-12, "--max_steps", 1, "--epochs", 0.1)
    done = command(
        "train", "--config", "ctr.py", *options, "--model.pretrained", "runs/ctr", "--run_dir", "runs/next", cwd=trained
    )
    assert done.returncode == 0, done.stderr
    step = json.loads((trained / "runs/ctr/report.json").read_text())["best_step"]
    assert f"weights: runs/ctr, checkpoint {step}, its head too" in done.stdout
    old, new = (json.loads((trained / f"runs/{name}/report.json").read_text()) for name in ("ctr", "next"))
    assert new["valid"]["auc"] == pytest.approx(old["valid"]["auc"], abs=1e-6)
    tokens = [(trained / f"runs/{name}/tokenizer/tokenizer.json").read_bytes() for name in ("ctr", "next")]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("--model.interaction", "shared"), "model.interaction: found 'shared', but runs/ctr"),
        (("--model.readout", "mean"), "model.readout: found 'mean', but runs/ctr"),
    ],
)
def test_weights_trained_for_another_reading_are_refused(trained, small, command, changes, said):
    options = (*small, "--model.pretrained", "runs/ctr", "--run_dir", "runs/refused", *changes)
    done = command("train", "--config", "ctr.py", *options, cwd=trained)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert not (trained / "runs/refused").exists()


def test_a_step_holds_about_as_many_examples_as_asked_for(trained, small, command):
    options = (*small, "--batch.examples", 200, "--batch.micro_batches", 2, "--run_dir", "runs/examples")
    done = command("train", "--config", "ctr.py", *options, "--max_steps", 8, cwd=trained)
    assert done.returncode == 0, done.stderr
    found = re.search(r"a step: (\d+) examples, ([\d,]+) tokens in (\d+) rows x 128", done.stdout)
    rows = int(found[3])
    config = json.loads((trained / "runs/examples/config.json").read_text())
    assert config["batch"]["rows"] == rows and rows % 2 == 0
    assert abs(int(found[1]) - 200) <= 200 / rows  # the nearest even number of rows
    # What was trained on, counted by the scorer's store: the same rows give the same batches after a restart.
    again = command("train", "--config", "ctr.py", *options, "--max_steps", 8, cwd=trained)
    assert again.returncode == 0 and "a step:" not in again.stdout, again.stderr  # finished: nothing is done again


def test_a_run_with_chosen_rows_scores(trained, monkeypatch):
    monkeypatch.chdir(trained)
    scorer = Scorer.load("runs/examples", mesh=Mesh(8))
    assert scorer.shape.candidates == json.loads((trained / "runs/examples/model.json").read_text())["candidates"]
    scores = scorer.predict([({"query": "red coat", "history": []}, {"title": "coat", "description": "red"})] * 3)
    assert np.ptp(scores) == 0 and 0 < scores[0] < 1
