"""The commands as a user runs them: train, train again, evaluate, score, and the same scores from Python."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from srsjax.config import Mesh
from srsjax.errors import InputError
from srsjax.inference.scorer import Scorer
from srsjax.metrics.recalibration import Affine
from srsjax.runs.assessment import PARTS
from srsjax.runs.calibration import Calibration, TaskCalibration
from srsjax.runs.run_folder import RunFolder


@pytest.fixture(scope="module")
def scorer(trained, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        yield Scorer.load("runs/ctr", mesh=Mesh(8))


@pytest.fixture(scope="module")
def log(trained):
    return ds.dataset(sorted((trained / "data/shop").glob("log-*.parquet"))).to_table()


def test_train_leaves_a_whole_run_folder_and_says_how_to_use_it(trained):
    run = trained / "runs/ctr"
    files = {path.name for path in run.iterdir()}
    assert {"config.json", "model.json", "manifest.json", "metrics.jsonl", "report.json", "tokenizer", "tensorboard",
            "goodput.jsonl", "checkpoints", "valid.png", "test.png", "calibration.json",
            "report.html", "README.md", "reference.json", "checksums.json"} == files  # fmt: skip
    printed = (trained / "train.txt").read_text()
    for expected in ("item popularity", "best attainable", "python -m srsjax.score --run runs/ctr --input"):
        assert expected in printed
    report = json.loads((run / "report.json").read_text())
    assert report["test_references"]["oracle"]["auc"] > report["test_references"]["popularity"]["auc"]
    assert report["best_step"] in (20, 40, 60)
    kept = {int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()}
    assert report["best_step"] in kept and 60 in kept


def test_a_finished_run_is_shown_and_not_overwritten(trained, small, command):
    before = (trained / "runs/ctr/report.json").stat().st_mtime_ns
    again = command("train", "--config", "ctr.py", *small, cwd=trained)
    assert again.returncode == 0 and "best attainable" in again.stdout
    other = command("train", "--config", "ctr.py", *small, "--optimizer.learning_rate", 0.01, cwd=trained)
    assert other.returncode == 2
    assert "optimizer.learning_rate 0.001 there, 0.01 here" in other.stderr and other.stderr.count("\n") == 1
    assert (trained / "runs/ctr/report.json").stat().st_mtime_ns == before


def test_evaluate_repeats_the_report_on_a_split_and_on_files(trained, command):
    done = command("evaluate", "--run", "runs/ctr", "--split", "test", "--output", "again.json", cwd=trained)
    assert done.returncode == 0, done.stderr
    report = json.loads((trained / "runs/ctr/report.json").read_text())
    again = json.loads((trained / "again.json").read_text())
    others = {part: report[f"test_{part}"] for part in PARTS if part != "references"}
    others = {part: values for part, values in others.items() if values}
    assert again == {"model": report["test"], **report["test_references"], **others}
    low, high = report["test_intervals"]["auc"]
    assert low < report["test"]["auc"] < high and f"{report['test']['auc']:.4f} [{low:.3f}, {high:.3f}]" in done.stdout
    done = command("evaluate", "--run", "runs/ctr", "--input", "data/shop/log-3.parquet", cwd=trained)
    assert done.returncode == 0 and "ndcg@10" in done.stdout, done.stderr


def test_score_writes_keys_and_probabilities_in_input_order(trained, scorer, log, command):
    done = command(
        "score", "--run", "runs/ctr", "--input", "data/shop/log-*.parquet", "--output", "scores", cwd=trained
    )
    assert done.returncode == 0, done.stderr
    scores = ds.dataset(trained / "scores").to_table()
    assert scores.column_names == ["request_id", "user_id", "item_id", "score"]
    for key in scores.column_names[:-1]:
        assert scores[key].to_pylist() == log[key].to_pylist()
    assert all(0 < score < 1 for score in scores["score"].to_pylist())
    rows = log.slice(0, 24).to_pylist()
    pairs = [({"query": row["query"], "history": row["history"]}, {"item_id": row["item_id"]}) for row in rows]
    # Other batches, other devices: the same float32 forward pass in another order of sums.
    np.testing.assert_allclose(scorer.predict(pairs), scores["score"].to_numpy()[:24], atol=1e-5)


def test_score_refuses_a_folder_with_files_and_leaves_nothing_behind_when_it_fails(trained, command, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    done = command(
        "score", "--run", "runs/ctr", "--input", "data/shop/log-0.parquet", "--output", tmp_path / "full", cwd=trained
    )
    assert done.returncode == 2 and "not empty" in done.stderr
    bad = pq.read_table(trained / "data/shop/log-0.parquet").slice(0, 5).drop_columns(["query"])
    pq.write_table(bad, tmp_path / "bad.parquet")
    done = command(
        "score", "--run", "runs/ctr", "--input", tmp_path / "bad.parquet", "--output", tmp_path / "new", cwd=trained
    )
    assert done.returncode == 2 and "query" in done.stderr and done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.parquet", "full"]


def calibrate(run, own) -> None:
    """Puts another calibration in a run, as `train` does."""
    folder = RunFolder(run)
    Calibration(folder.best_step(), {"click": own}).save(folder)
    folder.bind([folder.calibration_file], folder.best_step())


def test_scores_are_calibrated_and_raw_ones_are_the_models(trained, tmp_path, monkeypatch, log, command):
    monkeypatch.chdir(trained)
    run = tmp_path / "run"
    shutil.copytree("runs/ctr", run, ignore=shutil.ignore_patterns("tensorboard"))
    own = TaskCalibration("platt", Affine((0.5,), (-1.0,)))
    calibrate(run, own)
    options = ("--input", "data/shop/log-0.parquet", "--output", tmp_path / "raw", "--raw")
    assert command("score", "--run", run, *options, cwd=trained).returncode == 0
    raw = ds.dataset(tmp_path / "raw").to_table().slice(0, 16)
    logits = raw["logit"].to_numpy().astype(float)
    np.testing.assert_allclose(raw["score"], 1 / (1 + np.exp(-logits)), rtol=1e-6)  # float32 of float64
    rows = log.slice(0, 16).to_pylist()
    pairs = [({"query": row["query"], "history": row["history"]}, {"item_id": row["item_id"]}) for row in rows]
    # Other batches and devices, as above.
    expected = 1 / (1 + np.exp(1.0 - 0.5 * logits))
    np.testing.assert_allclose(Scorer.load(run, mesh=Mesh(8)).predict(pairs), expected, atol=1e-5)
    config = RunFolder(run).config()
    rare = replace(config, evaluate=replace(config.evaluate, negatives_rate=0.01))
    expected = 1 / (1 + 100 * np.exp(1.0 - 0.5 * logits))
    np.testing.assert_allclose(Scorer.load(run, mesh=Mesh(8), config=rare).predict(pairs), expected, atol=1e-5)


def test_compare_says_which_run_is_better_and_what_differs(trained, tmp_path, command):
    run = tmp_path / "run"
    shutil.copytree(trained / "runs/ctr", run, ignore=shutil.ignore_patterns("tensorboard"))
    own = TaskCalibration("platt", Affine((0.5,), (-3.0,)))  # far too low
    calibrate(run, own)
    changed = json.loads((run / "config.json").read_text())
    changed["optimizer"]["learning_rate"] = 0.5
    (run / "config.json").write_text(json.dumps(changed))
    RunFolder(run).bind([run / "config.json"], RunFolder(run).best_step())
    output = tmp_path / "out/compared.json"
    done = command("compare", "--runs", "runs/ctr", run, "--output", output, cwd=trained)
    assert done.returncode == 0, done.stderr
    assert f"optimizer.learning_rate: 0.001 in runs/ctr, 0.5 in {run}" in done.stdout
    found = json.loads(output.read_text())["compared"][str(run)]
    report = json.loads((trained / "runs/ctr/report.json").read_text())
    assert found["rows"] == report["test"]["candidates"]
    loss, area = found["metrics"]["log_loss"], found["metrics"]["auc"]
    assert loss["first"] == pytest.approx(report["test"]["log_loss"], rel=1e-6) and loss["better"] == "runs/ctr"
    assert loss["interval"][0] > 0 and area["difference"] == 0 and area["better"] == ""
    done = command("compare", "--runs", "runs/ctr", cwd=trained)
    assert done.returncode == 2 and "expected two or more run folders" in done.stderr


def test_predict_and_rank_follow_sentence_transformers(scorer, log):
    row = log.slice(0, 8).to_pylist()
    context = {"query": row[0]["query"], "history": row[0]["history"]}
    items = [{"item_id": r["item_id"]} for r in row]
    single = scorer.predict((context, items[0]))
    many = scorer.predict([(context, item) for item in items])
    assert isinstance(single, float) and many.shape == (8,) and many.dtype == np.float32
    np.testing.assert_allclose(single, many[0], atol=1e-6)
    assert scorer.predict([]).shape == (0,)
    np.testing.assert_allclose(scorer.predict([(context, item) for item in items], batch_size=3), many, atol=1e-6)

    ranked = scorer.rank(context, items, top_k=3, return_documents=True)
    best = np.argsort(-many, kind="stable")[:3]
    assert [entry["corpus_id"] for entry in ranked] == best.tolist()
    np.testing.assert_allclose([entry["score"] for entry in ranked], many[best], atol=1e-6)
    assert [entry["text"] for entry in ranked] == [items[i] for i in best]
    assert len(scorer.rank(context, items)) == 8 and scorer.rank(context, []) == []


def test_text_columns_may_be_given_instead_of_keys(scorer, trained, log):
    items = {row["item_id"]: row for row in pq.read_table(trained / "data/shop/items.parquet").to_pylist()}
    row = log.slice(5, 1).to_pylist()[0]
    context = {"query": row["query"], "history": row["history"]}
    item = items[row["item_id"]]
    by_key = scorer.predict((context, {"item_id": row["item_id"]}))
    by_text = scorer.predict((context, {"title": item["title"], "description": item["description"]}))
    assert by_key == pytest.approx(by_text, abs=1e-6)
    with pytest.raises(InputError, match="no-such-item"):
        scorer.predict((context, {"item_id": "no-such-item"}))


def test_a_folder_that_is_no_run_is_refused(command, tmp_path):
    for name in ("score", "evaluate"):
        done = command(name, "--run", tmp_path, "--input", "x.parquet")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and str(tmp_path) in done.stderr


def test_an_exported_run_loads_in_transformers_with_the_same_logits(trained, scorer, log, command):
    torch = pytest.importorskip("torch", reason="torch is the reference here")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    done = command("export", "--run", "runs/ctr", "--output", "exported", cwd=trained)
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(trained / "exported")
    model = AutoModelForSequenceClassification.from_pretrained(trained / "exported").eval()
    row = log.slice(0, 1).to_pylist()[0]
    context = {"query": row["query"], "history": []}
    item = {"title": "Norvik red coat", "description": "Simple wool."}
    # Fields of one side are joined by one separator.
    second = [*tokenizer("Norvik red coat", add_special_tokens=False).input_ids, tokenizer.sep_token_id]
    second += tokenizer("Simple wool.", add_special_tokens=False).input_ids
    first = tokenizer(row["query"], add_special_tokens=False).input_ids
    ids = [tokenizer.cls_token_id, *first, tokenizer.sep_token_id, *second, tokenizer.sep_token_id]
    types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    with torch.no_grad():
        logit = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0, 0].item()
    # float32 forward passes of two libraries
    assert scorer.predict((context, item)) == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
