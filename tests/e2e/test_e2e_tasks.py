"""Tasks of every kind through the real commands: a class, a rating and a click of the same rows."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow.dataset as ds
import pytest
import sklearn.metrics

from srsjax.errors import InputError
from srsjax.inference.scorer import Scorer
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.warm_start import stored_params

CONFIG = """
from srsjax.config import *

def get_config():
    return TrainConfig(
        schema=Schema(
            candidate=(Text("text", max_tokens=8),),
            tasks=(Task("topic", kind="multiclass"), Task("stars", kind="regression"), Task("click")),
        ),
        data=Data(log=Table("log.csv"), split=Split(valid=0.2, test=0.2), keys=("id",)),
        tokenizer=Tokenizer(vocab_size=200),
        model=Model(hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64, max_positions=64,
                    initializer_range=0.2),
        batch=Batch(rows=2, tokens=64),
        optimizer=Optimizer(learning_rate=3e-3),
        epochs=15,
    )
"""
TOPICS = {"clothes": ["coat", "hat", "scarf"], "food": ["bread", "rice", "tea"], "tools": ["saw", "drill", "nail"]}
WORDS = {"awful": 1.0, "plain": 3.0, "lovely": 5.0}


@pytest.fixture(scope="module")
def run(command, tmp_path_factory):
    """A folder with `log.csv` and the run `runs/all` trained on it."""
    folder, rng = tmp_path_factory.mktemp("tasks"), np.random.default_rng(0)
    lines = ["id,text,topic,stars,click"]
    for number in range(600):
        topic, word = rng.choice([*TOPICS]), rng.choice([*WORDS])
        stars = WORDS[word] + rng.normal(0, 0.2)
        label = "" if number % 50 == 0 else topic
        lines.append(f"{number},{word} {rng.choice(TOPICS[topic])},{label},{stars:.2f},{int(stars > 2)}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    (folder / "all.py").write_text(CONFIG)
    done = command("train", "--config", "all.py", "--run_dir", "runs/all", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def scores(command, folder, *options):
    done = command(
        "score", "--run", "runs/all", "--input", "log.csv", "--output", "scores", "--overwrite", *options, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return ds.dataset(folder / "scores").to_table().to_pydict()


def test_each_task_learns_and_the_first_one_chooses_the_checkpoint(run):
    folder, said = run
    report = json.loads((folder / "runs/all/report.json").read_text())
    test = report["test"]
    assert test["accuracy"] > 0.9 and test["macro_f1"] > 0.9 and test["stars/r2"] > 0.8 and test["click/auc"] > 0.95
    assert report["best_value"] == report["valid"]["accuracy"]
    assert set(report["test_classes"]["topic"]) == set(TOPICS)
    assert re.search(r"valid: .*accuracy", said) and "classes of topic" in said


def test_scores_of_each_kind_and_metrics_that_are_scikit_learns(run, command):
    folder, _ = run
    table = scores(command, folder)
    assert [*table] == ["id", "class", "score", "probabilities", "score_stars", "score_click"]
    shares = np.stack(table["probabilities"])
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(table["score"], shares.max(1))
    chosen = np.array(table["class"])
    done = command("evaluate", "--run", "runs/all", "--input", "log.csv", "--output", "all.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "all.json").read_text())
    rows = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()[1:]]
    topic, stars = np.array([row[2] for row in rows]), np.array([float(row[3]) for row in rows])
    known = topic != ""
    assert found["model"]["accuracy"] == pytest.approx((topic == chosen)[known].mean(), abs=1e-9)
    assert found["model"]["stars/rmse"] == pytest.approx(
        sklearn.metrics.root_mean_squared_error(stars, table["score_stars"]), rel=1e-4
    )
    assert found["classes"]["topic"]["food"]["recall"] == pytest.approx(
        sklearn.metrics.recall_score(topic[known], chosen[known], labels=["food"], average="macro")
    )


def test_the_scorer_gives_classes_numbers_and_orders(run, monkeypatch):
    folder, _ = run
    monkeypatch.chdir(folder)
    scorer = Scorer.load("runs/all")
    texts = ["lovely coat", "awful rice", "plain drill"]
    assert scorer.classes() == ("clothes", "food", "tools") and scorer.classes("stars") == ()
    topic, stars = scorer.predict(texts, task="topic"), scorer.predict(texts, task="stars")
    assert topic.shape == (3, 3) and topic.argmax(1).tolist() == [0, 1, 2]
    assert stars.shape == (3,) and stars.argsort().tolist() == [1, 2, 0] and abs(stars - 3).max() < 3
    both = scorer.predict(texts)
    np.testing.assert_allclose(both[:, 0], topic.max(1), rtol=1e-5)
    np.testing.assert_allclose(both[:, 1], stars, rtol=1e-5)
    assert scorer.predict("lovely coat", task="stars") == pytest.approx(stars[0], rel=1e-4)
    assert scorer.rank(None, texts, task="topic/food", top_k=1)[0]["corpus_id"] == 1
    assert [entry["corpus_id"] for entry in scorer.rank(None, texts, task="stars")] == [0, 2, 1]
    blended = scorer.rank(None, texts, task={"stars": 1.0, "topic/food": 100.0}, top_k=1)
    assert blended[0]["corpus_id"] == 1 and blended[0]["score"] == pytest.approx(stars[1] + 100 * topic[1, 1], rel=1e-4)
    for task, expected in (("topic", "expected one of topic/clothes"), ("stars/5", "expected one of stars")):
        with pytest.raises(InputError, match=expected):
            scorer.rank(None, texts, task=task)


def test_a_class_that_training_lacks_is_an_unknown_label_and_one_that_is_not_named_a_bad_row(run, command):
    folder, _ = run
    log = (folder / "log.csv").read_text()
    (folder / "more.csv").write_text(log + "900,lovely coat,art,5.0,1\n")
    done = command("evaluate", "--run", "runs/all", "--input", "more.csv", "--output", "more.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "more.json").read_text())["model"]
    assert found["candidates"] == 600 - 12 and found["stars/candidates"] == 601
    named = CONFIG.replace('kind="multiclass"', 'kind="multiclass", classes=("tools", "clothes")')
    (folder / "named.py").write_text(named)
    done = command("prepare", "--config", "named.py", cwd=folder)
    assert done.returncode == 2
    assert 'column topic: found "food", expected one of the classes tools, clothes' in done.stderr


def test_exported_heads_of_classes_and_numbers_are_transformers(run, command, monkeypatch):
    torch = pytest.importorskip("torch", reason="needs pip install -e '.[reference]'")
    transformers = pytest.importorskip("transformers")
    folder, _ = run
    monkeypatch.chdir(folder)
    tasks = 'Task("topic", kind="multiclass"), Task("stars", kind="regression"), Task("click")'
    alone = {"topic": 'Task("topic", kind="multiclass"),', "stars": 'Task("stars", kind="regression", loss="huber"),'}
    for name, task in alone.items():
        (folder / f"{name}.py").write_text(CONFIG.replace(tasks, task).replace("epochs=15", "epochs=1"))
        for arguments in (("train", "--config", f"{name}.py"), ("export", "--run", f"runs/{name}", "--output", name)):
            done = command(*arguments, cwd=folder)
            assert done.returncode == 0, done.stderr
        model = transformers.AutoModelForSequenceClassification.from_pretrained(name).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        with torch.no_grad():
            logits = model(**tokenizer(["lovely coat"], return_tensors="pt")).logits
        expected = Scorer.load(f"runs/{name}").predict("lovely coat")
        if name == "topic":
            assert model.config.problem_type == "single_label_classification"
            assert model.config.id2label == {0: "clothes", 1: "food", 2: "tools"}
            np.testing.assert_allclose(torch.softmax(logits, -1)[0].numpy(), expected, atol=1e-5)
        else:
            assert model.config.problem_type == "regression"
            assert float(logits[0, 0]) == pytest.approx(expected, abs=1e-4)
        card = (folder / name / "README.md").read_text()
        assert ("softmax" if name == "topic" else "in the units of the label") in card


# ---------------------------------------------------------------------------------------------- retrieval

RETRIEVAL = """
from srsjax.config import *

def get_config():
    return TrainConfig(
        schema=Schema(
            context=(Text("query", max_tokens=6),),
            candidate=(Text("title", column="items.title", max_tokens=6), Categorical("item", column="items.item")),
            tasks=(Task("take", kind="contrastive"),),
        ),
        data=Data(
            log=Table("takes.csv"),
            catalogues=(Catalogue("items.csv", key="item"),),
            group_by="request",
            keys=("request", "item"),
            split=Split(by="column", column="split"),
        ),
        tokenizer=Tokenizer(vocab_size=200),
        model=Model(interaction="towers", readout="mean", hidden_size=32, num_layers=1, num_heads=2,
                    intermediate_size=64, max_positions=64, initializer_range=0.2),
        batch=Batch(rows=4, tokens=64),
        optimizer=Optimizer(learning_rate=3e-3),
        epochs=10,
    )
"""


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory):
    """Training rows are what was taken alone; a request of test shows four items, one of which is."""
    folder, rng = tmp_path_factory.mktemp("retrieval"), np.random.default_rng(0)
    kinds, colours = ["coat", "hat", "scarf", "drill", "saw"], ["red", "blue", "green", "black"]
    items = [f"{colour} {kind}" for kind in kinds for colour in colours]
    (folder / "items.csv").write_text("item,title\n" + "".join(f"i{n},{item}\n" for n, item in enumerate(items)))
    lines = ["request,query,item,take,split"]
    for request in range(500):
        taken = rng.integers(len(items))
        query, split = f"a {items[taken]} please", "train" if request < 400 else "valid" if request < 450 else "test"
        shown = [taken] if split == "train" else rng.permutation([taken, *rng.choice(20, 3)])
        lines += [f"{request},{query},i{item},{int(item == taken)},{split}" for item in dict.fromkeys(shown)]
    (folder / "takes.csv").write_text("\n".join(lines) + "\n")
    (folder / "takes.py").write_text(RETRIEVAL)
    return folder


def test_towers_learn_from_what_was_taken_alone(command, retrieval, monkeypatch):
    done = command("train", "--config", "takes.py", "--run_dir", "runs/takes", cwd=retrieval)
    assert done.returncode == 0, done.stderr
    report = json.loads((retrieval / "runs/takes/report.json").read_text())
    assert report["test"]["top_1"] > 0.8  # 1/4 by chance
    monkeypatch.chdir(retrieval)
    scorer = Scorer.load("runs/takes")
    assert scorer.rank({"query": "a red hat please"}, [{"item": f"i{n}"} for n in range(20)])[0]["corpus_id"] == 4


@pytest.mark.parametrize("product", ["cosine", pytest.param("bilinear", marks=pytest.mark.slow)])
def test_the_steps_of_retrieval_do_not_depend_on_the_devices(command, retrieval, product):
    """The negatives of a batch are those of all devices: one device and four log the same losses, but for rounding."""
    losses = []
    for devices in (1, 4):
        run = f"runs/{product}-{devices}"
        options = ("--model.product", product, "--max_steps", "4", "--log_every", "1", "--run_dir", run)
        done = command("train", "--config", "takes.py", *options, cwd=retrieval, JAX_NUM_CPU_DEVICES=str(devices))
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (retrieval / run / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if line["kind"] == "train"])
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_towers_begin_near_the_mean_of_a_number(command, retrieval):
    """Outputs are in standard deviations of the label: a cosine of 1 begins as one of them, a click's as a log-odds of
    10."""
    number = ("--schema.tasks.0.kind", "regression", "--schema.tasks.0.column", "request")
    for kind, options, scale in (("number", number, 1), ("click", ("--schema.tasks.0.kind", "binary"), 10)):
        options += ("--max_steps", "1", "--optimizer.learning_rate", "1e-9", "--run_dir", f"runs/first-{kind}")
        done = command("train", "--config", "takes.py", *options, cwd=retrieval)
        assert done.returncode == 0, done.stderr
        kernel = stored_params(RunFolder(retrieval / f"runs/first-{kind}"))["head/dense/kernel"]
        np.testing.assert_allclose(kernel, scale, atol=1e-5)


def test_retrieval_needs_vectors_of_both_sides(command, retrieval):
    done = command(
        "train", "--config", "takes.py", "--model.interaction", "cross", "--run_dir", "runs/c", cwd=retrieval
    )
    assert done.returncode == 2
    assert "kind contrastive with model.interaction cross, expected towers" in done.stderr


def test_what_attention_takes_of_text_and_ids_can_be_read(command, retrieval, monkeypatch):
    options = ("--schema.tasks.0.kind", "binary", "--model.interaction", "shared", "--model.combine", "attention")
    done = command("train", "--config", "takes.py", *options, "--max_steps", "5", "--run_dir", "runs/w", cwd=retrieval)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(retrieval)
    scorer = Scorer.load("runs/w")
    pairs = [({"query": "a red hat please"}, {"item": f"i{n}"}) for n in range(3)]
    found = scorer.weights(pairs)
    assert [list(each) for each in found] == [["text", "item"]] * 3
    assert all(sum(each.values()) == pytest.approx(1, abs=1e-5) for each in found)
    assert len({each["item"] for each in found}) == 3  # of each candidate
    assert scorer.weights(pairs[1]) == pytest.approx(found[1], abs=1e-5)
    command("train", "--config", "takes.py", "--max_steps", "2", "--run_dir", "runs/none", cwd=retrieval)
    with pytest.raises(InputError, match=r"found model\.combine 'concat', expected attention"):
        Scorer.load("runs/none").weights(pairs)
