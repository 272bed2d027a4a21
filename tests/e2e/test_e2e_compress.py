"""`compress` as a user runs it: the folder is a run that other commands take."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest

from srsjax.config import Mesh
from srsjax.inference.scorer import Scorer
from srsjax.model.int8 import Quantized
from srsjax.runs.reference import Reference
from srsjax.runs.run_folder import RunFolder


@pytest.fixture(scope="module")
def compressed(trained, command):
    """The folder of a compressed run."""
    done = command("compress", "--run", "runs/ctr", "--output", "small", "--bound", 0.08, cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "all in 8 bits" in done.stdout and "rank agreement" in done.stdout
    return trained / "small"


def test_a_compressed_run_is_scored_as_any_other(compressed, trained, command):
    said = json.loads((compressed / "compression.json").read_text())
    assert said["error"] <= said["bound"] == 0.08
    table = said["table"]
    assert table["int8"]["rank_agreement"] > 0.98 and table["float32"]["rank_agreement"] == pytest.approx(1)
    assert table["int8"]["auc"] == pytest.approx(table["float32"]["auc"], abs=0.02)
    assert table["int8"]["MiB"] < table["float32"]["MiB"]
    pairs = [({"query": query, "history": []}, {"title": title, "description": ""})
             for query in ("red", "a lamp") for title in ("coat", "desk lamp", "pan")]  # fmt: skip
    with contextlib.chdir(trained):
        whole, small = (Scorer.load(run, mesh=Mesh(8)) for run in ("runs/ctr", "small"))
        every = Scorer.load("runs/ctr", mesh=Mesh(8), quantize="int8")
    counts = [sum(isinstance(x, Quantized) for x in scorer.params.values()) for scorer in (whole, small, every)]
    assert counts[0] == 0 < counts[1] <= counts[2] == 5
    np.testing.assert_allclose(small.predict(pairs), whole.predict(pairs), atol=0.02)
    done = command("evaluate", "--run", "small", "--output", "small.json", cwd=trained)
    assert done.returncode == 0, done.stderr
    found = json.loads((trained / "small.json").read_text())["model"]
    assert found["auc"] == pytest.approx(table["int8"]["auc"], abs=1e-3)


def test_its_own_scores_are_watched(compressed, trained, command):
    """The rows of the test split themselves have not drifted, and the reference is of the scores of 8-bit weights."""
    made, of_run = (Reference.load(RunFolder(trained / name)) for name in ("small", "runs/ctr"))
    assert (made.split, made.rows, made.users) == (of_run.split, of_run.rows, of_run.users)
    assert made.run != of_run.run and made.series.keys() == of_run.series.keys()
    differing = {name for name in made.series if made.series[name] != of_run.series[name]}
    assert "click score" in differing and all(name.startswith("click ") for name in differing), differing
    done = command("watch", "--run", "small", "--input", "data/shop/log-*.parquet", cwd=trained)
    assert done.returncode in (0, 3) and "new rows beside" in done.stdout, done.stderr


def test_what_cannot_be_done_with_it_is_said(compressed, trained, command):
    for name, arguments, message in (
        ("export", ("--run", "small", "--output", "x"), "found 8-bit weights"),
        ("export", ("--run", "runs/ctr", "--output", "x", "--quantize", "int8"), "use --format stablehlo"),
        ("compress", ("--run", "small", "--output", "x"), "compressed already"),
        ("compress", ("--run", "runs/ctr", "--output", "small"), "exists already"),
    ):
        done = command(name, *arguments, cwd=trained)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (trained / "x").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_is_exported_as_onnx(trained, command, monkeypatch):
    """onnxruntime gives the logits of the run for its own pairs, through the folder's tokenizer."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="needs pip install -e '.[onnx]'")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install -e '.[onnx]'")
    transformers = pytest.importorskip("transformers", reason="needs pip install -e '.[onnx]'")
    done = command("export", "--run", "runs/ctr", "--output", "hf", "--format", "onnx", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "model.onnx: logits as those of transformers" in done.stdout
    monkeypatch.chdir(trained)
    texts = [(query, title) for query in ("red", "a lamp for mum") for title in ("coat", "desk lamp of steel", "pan")]
    found = transformers.AutoTokenizer.from_pretrained("hf")(*map(list, zip(*texts, strict=True)), padding=True)
    session = onnxruntime.InferenceSession("hf/model.onnx")
    inputs = {each.name: np.array(found[each.name], np.int64) for each in session.get_inputs()}
    assert sorted(inputs) == ["attention_mask", "input_ids", "token_type_ids"]
    pairs = [({"query": query, "history": []}, {"title": title, "description": ""}) for query, title in texts]
    expected = Scorer.load("runs/ctr", mesh=Mesh(8)).predict(pairs, logits=True)
    np.testing.assert_allclose(session.run(None, inputs)[0][:, 0], expected, atol=1e-4)
    done = command(
        "export", "--run", "runs/ctr", "--output", "y", "--format", "onnx", "--quantize", "int8", cwd=trained
    )
    assert done.returncode == 2 and "--format onnx: found 8-bit weights" in done.stderr
