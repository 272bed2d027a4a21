"""Training on from a run with ids: an embedding goes with the name of its value, whatever number that has now."""

from __future__ import annotations

import json

import numpy as np
import pytest

from srsjax.config import Mesh
from srsjax.data.preparing.statistics import Fitted
from srsjax.inference.scorer import Scorer
from srsjax.runs.warm_start import load_source

CONFIG = """
from srsjax.config import *

def get_config():
    return TrainConfig(
        schema=Schema(
            context=(Categorical("user"), Numeric("age", scale="log", missing="indicator")),
            candidate=(Categorical("item"), Categorical("tags", max_values=3)),
            tasks=(Task("stars", kind="regression"), Task("click"), Task("buy", after="click")),
        ),
        data=Data(log=Table("LOG"), split=Split(valid=0.2, test=0.2), user="user"),
        model=Model(combine="dcn", hidden_size=8, combine_layers=(8,), experts=2, task_weights="uncertainty"),
        batch=Batch(rows=2, tokens=32),
        optimizer=Optimizer(learning_rate=1e-2, tables="rowwise_adagrad"),
        epochs=2,
    )
"""


def write_log(path, items: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    lines = ["user,age,item,tags,stars,click,buy"]
    for _ in range(300):
        click = int(rng.random() < 0.5)
        age = "" if rng.random() < 0.2 else rng.integers(18, 80)
        tags = "|".join(rng.choice(["new", "sale", "red"], rng.integers(0, 3)))
        labels = f"{rng.integers(1, 6)},{click},{click * rng.integers(2)}"
        lines.append(f"u{rng.integers(9)},{age},{rng.choice(items)},{tags},{labels}")
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.slow  # a minute
def test_a_run_of_ids_alone_is_trained_scored_and_trained_on(command, tmp_path, monkeypatch):
    for day, items in (("one", ["a", "b", "c", "d"]), ("two", ["d", "c", "new", "e", "a"])):
        write_log(tmp_path / f"{day}.csv", items, len(items))
        (tmp_path / f"{day}.py").write_text(CONFIG.replace("LOG", f"{day}.csv"))
    done = command("train", "--config", "one.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "attention: none" in done.stdout and "stars" not in done.stderr
    report = json.loads((tmp_path / "runs/one/report.json").read_text())
    assert {"rmse", "click/auc", "buy/log_loss"} <= set(report["test"]) and set(report["test_references"])
    done = command("score", "--run", "runs/one", "--input", "two.csv", "--output", "scores", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = command("export", "--run", "runs/one", "--output", "out", cwd=tmp_path)
    assert done.returncode == 2 and "without text" in done.stderr
    for part in ("--layers", "--heads"):
        options = ("--run", "runs/one", "--output", "out", "--method", "prune", part, 1)
        done = command("compress", *options, cwd=tmp_path)
        assert done.returncode == 2 and "this model has no encoder" in done.stderr and done.stderr.count("\n") == 1

    done = command("train", "--config", "two.py", "--model.pretrained", "runs/one", "--epochs", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "its head too" in done.stdout and "weights: fresh" not in done.stdout
    monkeypatch.chdir(tmp_path)
    old, new = (Scorer.load(f"runs/{day}", mesh=Mesh(8)) for day in ("one", "two"))
    fitted = Fitted(**json.loads((tmp_path / "runs/two/manifest.json").read_text())["fitted"])
    weights = load_source("runs/one", new.session.spec, new.session.shapes, fitted)
    path = "features/candidate/input_item/table/embedding"
    before, after = np.asarray(old.params[path]), weights[path]
    known = json.loads((tmp_path / "runs/one/manifest.json").read_text())["fitted"]["vocabularies"]["item"]
    for number, value in enumerate(fitted.vocabularies["item"], 1):
        expected = before[1 + known.index(value)] if value in known else before[0]
        np.testing.assert_array_equal(after[number], expected, err_msg=value)
    pair = ({"user": "u1", "age": 30}, {"item": "a", "tags": ["new"]})
    scores = old.predict([pair])
    assert scores.shape == (1, 3) and 0 < scores[0, 2] < scores[0, 1] < 1
