"""`compress --method prune` as a user runs it: fewer layers, trained again, and compared with what they were of."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from srsjax.config import Mesh
from srsjax.inference.scorer import Scorer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pruned(trained, small, command):
    """The folder in which `runs/deep` of three layers became `two` of two."""
    options = (*small, "--model.num_layers", 3, "--max_steps", 10, "--run_dir", "runs/deep")
    done = command("train", "--config", "ctr.py", *options, cwd=trained)
    assert done.returncode == 0, done.stderr
    options = ("--run", "runs/deep", "--output", "two", "--method", "prune", "--layers", 2, "--drop", "alternate")
    done = command("compress", *options, cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "layers 0 2 of 3 are kept" in done.stdout and "--model.pretrained two" in done.stdout
    return trained


def test_a_pruned_run_has_the_layers_that_were_kept(pruned, command):
    for run, output in (("runs/deep", "hf-deep"), ("two", "hf-two")):
        done = command("export", "--run", run, "--output", output, cwd=pruned)
        assert done.returncode == 0, done.stderr
    deep, two = (load_file(pruned / name / "model.safetensors") for name in ("hf-deep", "hf-two"))
    number = {"0": "0", "2": "1"}
    for name, values in deep.items():
        before, found, after = name.partition("encoder.layer.")
        layer, dot, rest = after.partition(".")
        if found and layer not in number:
            continue
        np.testing.assert_array_equal(two.pop(before + found + (number[layer] + dot + rest if found else "")), values)
    assert not two and json.loads((pruned / "hf-two/config.json").read_text())["num_hidden_layers"] == 2
    said = json.loads((pruned / "two/compression.json").read_text())
    assert said["layers"] == [0, 2] and said["error"] > 0
    table = said["table"]
    assert table["prune"]["MiB"] < table["float32"]["MiB"] and table["float32"]["rank_agreement"] == pytest.approx(1)
    done = command("evaluate", "--run", "two", "--output", "two.json", cwd=pruned)
    assert done.returncode == 0, done.stderr
    assert json.loads((pruned / "two.json").read_text())["model"]["auc"] == pytest.approx(
        table["prune"]["auc"], abs=1e-3
    )


def test_what_is_left_is_trained_and_compared(pruned, small, command):
    options = (*small, "--max_steps", 5, "--model.pretrained", "two", "--run_dir", "runs/two")
    done = command("train", "--config", "ctr.py", *options, cwd=pruned)
    assert done.returncode == 0, done.stderr
    assert "its head too" in done.stdout
    assert json.loads((pruned / "runs/two/model.json").read_text())["encoder"]["num_layers"] == 2
    options = ("--runs", "runs/deep", "runs/two", "two", "--cost", True, "--output", "cost.json")
    done = command("compare", *options, cwd=pruned)
    assert done.returncode == 0, done.stderr
    assert "rank agreement" in done.stdout
    cost = json.loads((pruned / "cost.json").read_text())["cost"]
    assert list(cost) == ["runs/deep", "runs/two", "two"]
    assert cost["runs/deep"]["rank_agreement"] == 1 > cost["two"]["rank_agreement"] >= -1
    table = json.loads((pruned / "two/compression.json").read_text())["table"]
    assert cost["two"]["MiB"] == pytest.approx(table["prune"]["MiB"])
    for run, of in (("runs/deep", "float32"), ("two", "prune")):  # shared rows are all rows
        assert cost[run]["auc"] == pytest.approx(table[of]["auc"], abs=1e-3)


def test_heads_are_left_out_too(pruned, small, command, monkeypatch):
    """Layers first, then heads of what is left; exported with empty heads in their place, and trained on."""
    options = ("--run", "runs/deep", "--output", "narrow", "--method", "prune", "--layers", 2, "--heads", 3)
    done = command("compress", *options, cwd=pruned)
    assert done.returncode == 0, done.stderr
    said = json.loads((pruned / "narrow/compression.json").read_text())
    assert said["layers"] == [0, 1] and [len(own) for own in said["heads"]] == [3, 3]
    assert said["table"]["prune"]["MiB"] < said["table"]["float32"]["MiB"]
    for layer, own in enumerate(said["heads"]):
        assert f"layer {layer}: heads {' '.join(map(str, own))} of 4 are kept" in done.stdout
    done = command("evaluate", "--run", "narrow", "--output", "narrow.json", cwd=pruned)
    assert done.returncode == 0, done.stderr
    found = json.loads((pruned / "narrow.json").read_text())["model"]["auc"]
    assert found == pytest.approx(said["table"]["prune"]["auc"], abs=1e-3)
    options = ("--run", "narrow", "--input", "data/shop/log-0.parquet", "--output", "scores")
    done = command("score", *options, cwd=pruned)
    assert done.returncode == 0, done.stderr
    done = command("export", "--run", "narrow", "--output", "hf-narrow", cwd=pruned)
    assert done.returncode == 0, done.stderr
    assert json.loads((pruned / "hf-narrow/config.json").read_text())["num_attention_heads"] == 4
    monkeypatch.chdir(pruned)
    texts = [(query, title) for query in ("red", "a lamp for mum") for title in ("coat", "desk lamp of steel", "pan")]
    pairs = [({"query": query, "history": []}, {"title": title, "description": ""}) for query, title in texts]
    found, expected = (
        Scorer.load(folder, mesh=Mesh(8)).predict(given, logits=True)
        for folder, given in (("hf-narrow", texts), ("narrow", pairs))
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)
    options = (*small, "--max_steps", 5, "--model.pretrained", "narrow", "--run_dir", "runs/narrow")
    done = command("train", "--config", "ctr.py", *options, cwd=pruned)
    assert done.returncode == 0, done.stderr
    encoder = json.loads((pruned / "runs/narrow/model.json").read_text())["encoder"]
    assert (encoder["num_layers"], encoder["num_heads"], 4 * encoder["head_size"]) == (2, 3, encoder["hidden_size"])


def test_what_cannot_be_pruned_or_trained_is_said(pruned, small, command):
    prune = ("--output", "x", "--method", "prune")
    for arguments, said in (
        (("--run", "runs/deep", *prune), "--method prune: found --layers 0 and --heads 0, expected how many of either"),
        (("--run", "runs/deep", *prune, "--layers", 3), "--layers: found 3, expected 1 to 2"),
        (("--run", "runs/deep", *prune, "--heads", 4), "--heads: found 4, expected 1 to 3"),
        (("--run", "runs/deep", *prune, "--layers", 2, "--heads", 5), "--heads: found 5, expected 1 to 3"),
        (("--run", "runs/deep", "--output", "x", "--heads", 2), "--heads: found 2, but --method int8 keeps all"),
        (("--run", "runs/ctr", *prune, "--layers", 1), "--layers: found 1, but the encoder has 1 layer: there is none"),
        (("--run", "two", *prune, "--layers", 1), "compressed already"),
    ):
        done = command("compress", *arguments, cwd=pruned)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    done = command("compress", "--run", "runs/ctr", "--output", "in-8", "--bound", 1e9, cwd=pruned)
    assert done.returncode == 0, done.stderr
    options = (*small, "--model.pretrained", "in-8", "--run_dir", "runs/x")
    done = command("train", "--config", "ctr.py", *options, cwd=pruned)
    assert done.returncode == 2 and "in-8: found 8-bit weights, which cannot be trained on" in done.stderr
