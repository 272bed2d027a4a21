"""The model card of real runs: its numbers are those of the report, its Python gives scores, nothing private is in."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import socket

import numpy as np
import pytest
from huggingface_hub import ModelCard

from srsjax.config import (
    Catalogue,
    Categorical,
    Data,
    History,
    Model,
    Numeric,
    Schema,
    Split,
    Task,
    Text,
    TrainConfig,
    Vector,
)
from srsjax.metrics import report
from srsjax.metrics.recalibration import Affine
from srsjax.metrics.table import row_of
from srsjax.reporting import card
from srsjax.reporting.card import Facts
from srsjax.reporting.card_use import example_pair, intended_use
from srsjax.runs.assessment import Assessment
from srsjax.runs.calibration import Calibration, TaskCalibration
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.weak_slices import measured_groups, weak_groups

CONFIG = """
from srsjax.config import *

def get_config():
    candidate = (
        Text("title"), Categorical("brand"), Categorical("country", private=True, missing="most_frequent"),
        Numeric("price", missing="median", private=True),
    )
    tasks = (Task("click"), Task("kind", kind="multiclass"), Task("stars", kind="regression"))
    note = Text("note", private=True, missing="most_frequent")
    return TrainConfig(
        schema=Schema(context=(Text("query", fill="any | thing"), note), candidate=candidate, tasks=tasks),
        data=Data(log=Table("log.csv"), group_by="request", user="user", split=Split(by="time", column="time")),
        tokenizer=Tokenizer(vocab_size=200),
        model=Model(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2),
        batch=Batch(rows=16, tokens=128),
        optimizer=Optimizer(learning_rate=3e-3),
        evaluate=Evaluate(slices=("brand",)),
        max_steps=40,
        log_every=5,
    )
"""
HOSTILE = "<script>alert(1)</script> | [a](http://x) `b`"
SECRET, COUNTRY, PRICE = "hushword", "atlantis", 4321.5


def make_rows(count: int):
    rng = np.random.default_rng(0)
    yield ("request", "user", "time", "query", "note", "title", "brand", "country", "price", "click", "kind", "stars")
    for row in range(count):
        brand = rng.integers(0, 3)
        yield (
            f"r{row // 3}",
            f"u{row // 3 % 40}",
            f"2024-03-{1 + row * 30 // count:02}T00:00:00",
            f"red {row // 3 % 7}",
            "" if row // 3 % 9 == 0 else SECRET,
            f"coat {brand} {HOSTILE}",
            f"brand {brand} {HOSTILE}",
            "" if row % 7 == 0 else COUNTRY,
            "" if row % 9 == 0 else PRICE,
            int(rng.random() < (0.2, 0.4, 0.7)[brand]),
            ("shoe", HOSTILE, "coat")[(brand + (rng.random() < 0.2)) % 3],
            f"{1 + brand + rng.random():.2f}",
        )


@pytest.fixture(scope="module")
def folder(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    with open(folder / "log.csv", "w", newline="") as file:
        csv.writer(file).writerows(make_rows(3000))
    (folder / "shop.py").write_text(CONFIG)
    done = command("train", "--config", "shop.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "model card: runs/shop/README.md" in done.stdout
    return folder


@pytest.fixture(scope="module")
def exports(folder, command):
    """The cards of both kinds of exports of that run."""
    pytest.importorskip("flatbuffers", reason="needs flatbuffers: pip install -e '.[stablehlo]'")
    for kind in ("huggingface", "stablehlo"):
        done = command("export", "--run", "runs/shop", "--output", kind, "--format", kind, cwd=folder)
        assert done.returncode == 0, done.stderr
    return {kind: folder / kind / "README.md" for kind in ("huggingface", "stablehlo")}


def programs(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def without_network(monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("the card went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_the_metadata_holds_the_results_of_the_report(folder, exports, monkeypatch):
    without_network(monkeypatch)
    found = json.loads((folder / "runs/shop/report.json").read_text())
    expected = {key: value for key, value in found["test"].items() if row_of(key).better}
    assert {"auc", "kind/accuracy", "stars/rmse"} <= {*expected}
    for path in (folder / "runs/shop/README.md", *exports.values()):
        results = ModelCard.load(path).data.eval_results
        assert {each.metric_name: each.metric_value for each in results} == expected
        for each in results:
            assert each.metric_args == (
                {"interval_95": found["test_intervals"][each.metric_name]}
                if each.metric_name in found["test_intervals"]
                else None
            )
            assert each.dataset_split == "test" and each.dataset_name == "log.csv"
            assert each.task_name == (each.metric_name.rpartition("/")[0] or "click")
    libraries = {kind: ModelCard.load(path).data.library_name for kind, path in exports.items()}
    assert libraries == {"huggingface": "transformers", "stablehlo": "jax"}


def test_every_metric_is_there_beside_what_it_compares_with(folder):
    found = json.loads((folder / "runs/shop/report.json").read_text())
    rows = [line.strip("| ").split(" | ") for line in (folder / "runs/shop/README.md").read_text().splitlines()]
    rows = rows[next(number for number, row in enumerate(rows) if row[0] == "metric") :]
    columns = {"model": found["test"], **found["test_references"]}
    assert {"popularity", "user_item"} <= {*columns} and "oracle" not in columns
    for key in report.metric_names(columns):
        (row,) = [row for row in rows if row[0] == key]
        cells = [report.cell(key, of) for of in columns.values()]
        ends = found["test_intervals"].get(key)
        assert row[1] == cells[0] and row[2] == (report.interval_text(*ends) if ends else "-")
        assert row[-len(cells[1:]) :] == cells[1:]
    assert ["The best that any model could attain on these data is not known."] in rows


def test_periods_and_counts_are_those_of_the_rows(folder):
    text = (folder / "runs/shop/README.md").read_text()
    with open(folder / "log.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    splits = json.loads((folder / "runs/shop/manifest.json").read_text())["splits"]
    table = {line.split(" | ")[0]: line.strip("| ").split(" | ")[1:] for line in text.splitlines() if line[:2] == "| "}
    at = 0
    # Rows are in the order of time, and a day is in one split.
    for number, name in enumerate(("train", "valid", "test")):
        own = rows[at : at + splits[name]["candidates"]]
        at += len(own)
        first, last = (row["time"].replace("T00:00:00", " 00:00") for row in (own[0], own[-1]))
        rate = np.mean([int(row["click"]) for row in own])
        keys = ("click, labels known", "click, mean label", "from", "to")
        shown = [table[f"| {key}"][number] for key in keys]
        assert shown == [f"{len(own):,}", f"{rate:.4f}", first, last]
    assert at == len(rows) and "By time, column `time`: the newest 10 % test, the 10 % before them validate." in text


def test_nothing_private_is_in_any_card(folder, exports):
    manifest = json.loads((folder / "runs/shop/manifest.json").read_text())
    fills = manifest["fitted"]["fills"]
    assert fills == {"note": SECRET, "country": COUNTRY, "price": PRICE}  # what there was to leak
    for path in (folder / "runs/shop/README.md", folder / "runs/shop/report.html", *exports.values()):
        text = path.read_text()
        for private in (SECRET, COUNTRY, "4321"):
            assert private not in text, (path, private)
    text = (folder / "runs/shop/README.md").read_text()
    assert "it reads `note`, `country`, `price`, marked private" in text
    assert "a value of the training rows, private and not shown here, where it is blank or missing" in text
    assert "`any \\| thing` where it is blank" in text  # a constant of the config is no value of a column


def test_values_of_the_data_are_shown_as_text(folder, exports):
    for path in (folder / "runs/shop/README.md", *exports.values()):
        text = path.read_text()
        outside = re.sub(r"`[^`\n]*`", "", text)  # in a code span nothing is an element
        assert "<script" not in outside and "](http" not in outside
        assert "&lt;script&gt;" in outside and "brand 1 " in outside  # named as a class and as a group
        for line in text.splitlines():
            if line.startswith("|---"):
                columns = line.count("|")
            elif line.startswith("| "):
                assert len(re.findall(r"(?<!\\)\|", line)) >= 2
        assert columns


def test_the_python_of_the_card_gives_the_scores(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (program,) = programs((folder / "runs/shop/README.md").read_text())  # other features than text: srsjax alone
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "README.md", "exec"), names)
    assert program.count("\n") == 3
    (pair,) = [example_pair(RunFolder("runs/shop").config())]
    found = names["scorer"].predict([pair])
    assert found.shape == (1, 3) and 0 < found[0, 0] < 1
    assert printed.getvalue().strip() == str(found)


def test_calibration_is_told_before_and_after(folder):
    found = json.loads((folder / "runs/shop/report.json").read_text())
    rows = [line.strip("| ").split(" | ") for line in (folder / "runs/shop/README.md").read_text().splitlines()]
    kept = json.loads((folder / "runs/shop/calibration.json").read_text())["tasks"]
    for task, prefix, loss in (("click", "", "log_loss"), ("kind", "kind/", "cross_entropy")):
        (row,) = [row for row in rows if row[:2] == [task, kept[task]["method"]]]
        before = found["test_uncalibrated"]
        expected = [
            f"{of.get(prefix + name, found['test'][prefix + name]):.4f}"
            for name in ("ece", loss)
            for of in (before, found["test"])
        ]
        assert row[2:] == expected
    assert ["stars", "no probability", "-", "-", "-", "-"] in rows


# ---------------------------------------------------------------------------------------------- parts, without a run


def facts(config: TrainConfig = TrainConfig(), calibration: Calibration = Calibration(), notes=(), **result) -> Facts:
    manifest = {"fingerprint": "f", "input": {"log": {"files": []}}, "splits": {}}
    return Facts(RunFolder("nowhere"), config, manifest, {"steps": 7} | result, calibration, 1000, notes)


def test_numbers_of_a_map_are_those_before_and_after_it():
    of = Assessment({"ece": 0.01, "log_loss": 0.5}, uncalibrated={"ece": 0.2, "log_loss": 0.6})
    found = {"plain": {"log_loss": 0.6}, "platt": {"log_loss": 0.5, "gain": 0.1, "error": 0.02}}
    own = Calibration(3, {"click": TaskCalibration("platt", Affine((2.0,), (0.1,)), found=found)})
    said = card.calibration(facts(calibration=own, test=of.model), of)
    assert "| click | platt | 0.2000 | 0.0100 | 0.6000 | 0.5000 |" in said
    assert "kept for its gain" in said and "platt +0.1000 (standard error 0.0200)" in said


def groups(*of: dict) -> dict:
    return {"brand": {"groups": [*of], "gaps": {}}}


def test_a_group_is_weak_where_its_interval_says_so():
    made = groups(
        {"name": "worse", "rows": 900, "auc": [0.6, 0.55, 0.65], "calibration": [0.0, -0.1, 0.1]},
        {"name": "not surely", "rows": 900, "auc": [0.6, 0.4, 0.8], "calibration": [0.01, -0.1, 0.1]},
        {"name": "better", "rows": 900, "auc": [0.9, 0.85, 0.95], "calibration": [0.0, -0.1, 0.1]},
        {"name": "too high", "rows": 900, "auc": [0.9, 0.85, 0.95], "calibration": [0.2, 0.1, 0.3]},
        {"name": "too low", "rows": 900, "calibration": [-0.2, -0.3, -0.1]},
        {"name": "small", "rows": 5},
        {"name": "no interval", "rows": 900, "auc": [0.1, None, None]},
    )
    of = Assessment({"auc": 0.7}, slices=made)
    found = measured_groups(of)
    assert len(found) == 6
    assert [group.name for group in weak_groups(of, found)] == ["worse", "too high", "too low"]
    said = card.weak(facts(test=of.model), of)
    assert "| brand | worse | 900 | auc | 0.6000 [0.550, 0.650] | 0.7000 | 0.0000 [-0.100, 0.100] |" in said
    lower = Assessment({"rmse": 1.0}, slices=groups({"name": "worse", "rows": 900, "rmse": [1.5, 1.2, 1.8]}))
    assert len(weak_groups(lower, measured_groups(lower))) == 1


def test_a_private_column_of_times_has_no_periods():
    schema = Schema(candidate=(Numeric("listed", column="time", private=True),))
    manifest = {"input": {"log": {"files": [{"name": "a.csv"}]}}, "splits": {}, "periods": {"train": [2e9, 2.1e9]}}
    manifest["splits"] = {"train": {"impressions": 1, "candidates": 1}}
    split = Split(by="time", column="time")
    for config, shown in (
        (TrainConfig(data=Data(split=split)), True),
        (TrainConfig(schema=schema, data=Data(split=split)), False),
        (TrainConfig(data=Data(split=split, private=("time",))), False),
    ):
        made = Facts(RunFolder("nowhere"), config, manifest, {}, Calibration(), 1)
        assert ("2033-05-18 03:33" in card.data(made)) == ("2036-07-18 13:20" in card.data(made)) == shown


def test_weights_of_the_hub_are_named_without_their_commit():
    def base(pretrained: str) -> str:
        return card.measured(facts(TrainConfig(model=Model(pretrained=pretrained)))).base_model

    assert base("google-bert/bert-base-uncased@0123abc") == "google-bert/bert-base-uncased"
    assert base("") == base("/models/mine") == base("runs/a/b") == ""


def test_without_slices_or_weak_groups_it_says_so():
    assert card.weak(facts(), Assessment({"auc": 0.7})) == "None measured."
    of = Assessment({"auc": 0.7}, slices=groups({"name": "fine", "rows": 900, "auc": [0.7, 0.6, 0.8]}))
    assert "None is worse than the whole split" in card.weak(facts(), of)


def test_without_test_rows_the_numbers_are_those_of_validation():
    made = facts(test={}, valid={"auc": 0.7})
    assert made.split == "valid" and made.assessment.model == {"auc": 0.7}
    assert "it also chose the checkpoint" in card.metrics(made, made.assessment)
    assert card.metrics(facts(), Assessment({})).startswith("None:")


def test_what_a_score_is_no_use_for_depends_on_the_task():
    order = TrainConfig(schema=Schema(tasks=(Task("take", kind="listwise"),)))
    assert "As a probability: `take` only orders" in intended_use(order)
    assert "As a probability" not in intended_use(TrainConfig())
    for config in (order, TrainConfig()):
        assert "Decisions about people" in intended_use(config)


def test_an_example_has_a_value_for_every_column_and_none_of_the_data():
    schema = Schema(
        context=(History("seen"), Numeric("age", missing="error"), Categorical("place", training_only=True)),
        candidate=(
            Text("title", column="items.title"),
            Vector("picture", size=5),
            Categorical("tags", max_values=3),
            Numeric("listed", since="time"),
        ),
    )
    config = TrainConfig(schema=schema, data=Data(catalogues=(Catalogue("items.csv"),)))
    context, candidate = example_pair(config)
    assert context == {"seen": [], "age": 0}
    assert candidate == {"title": "a title", "picture": [0.0] * 5, "tags": ["a tags"], "listed": 0, "time": 0}
    lists = Schema(
        context=(
            Categorical("viewed", max_values=2),
            Categorical("viewed_at", max_values=2, times="recency", until="now", along="viewed"),
            Categorical("bought", max_values=2),
            Categorical("bought_at", max_values=2, times="hour", along="bought"),
            History("read", column="bought"),  # keys of a catalogue: no word is one
            Categorical("age_group", column="age"),
            Numeric("age"),
        ),
        candidate=(Text("title"), Categorical("title_id", column="title")),
    )
    context, candidate = example_pair(TrainConfig(schema=lists, data=config.data))
    assert context == {"viewed": ["a viewed"], "viewed_at": [0], "now": 0, "bought": [], "bought_at": [], "age": 0}
    assert candidate == {"title": "a title"}
    files = Schema(candidate=(Vector("picture", files="pictures", missing="error"),))
    assert example_pair(TrainConfig(schema=files)) is None
