"""Two runs on the same rows: which is better, on what, and which rows they share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from batches import make_split

from srsjax.compare import Scored, compare, groups, shared_rows, slice_table, table
from srsjax.config import Batch, Categorical, Data, Evaluate, Schema, Task, Text, TrainConfig
from srsjax.data.store.arrays import Items, Split, Store
from srsjax.data.store.checksums import Checks
from srsjax.data.store.ragged import Ragged
from srsjax.errors import InputError
from srsjax.metrics import report
from srsjax.metrics.calibration import sigmoid
from srsjax.model.spec import Outputs

MANIFEST = {
    "input": {"log": {"files": [{"sha256_ends": "a"}]}},
    "fitted": {"vocabularies": {"brand": ["one", "two", "three"]}},
}
ITEMS = Items(Ragged.from_rows([[1]] * 40, np.int32), {"brand": (np.arange(40) % 4).astype(np.int32)})
CONFIG = TrainConfig(
    schema=Schema(context=(Text("query"),), candidate=(Text("title"), Categorical("brand")), tasks=(Task(),))
)


def a_split(impressions=600) -> tuple[Split, np.ndarray]:
    rng = np.random.default_rng(0)
    item = rng.integers(0, 40, impressions * 5)
    truth = rng.normal(size=len(item))
    labels = (rng.random(len(item)) < sigmoid(2 * truth))[:, None]
    split = make_split(labels, counts=np.full(impressions, 5), item=item, user=rng.integers(0, 200, impressions))
    return replace(split, example=np.arange(len(item))), truth


def a_run(name, split, logits, config=CONFIG, manifest=MANIFEST, **parts) -> Scored:
    outputs = tuple(Outputs(task.name, task.kind, **parts) for task in config.schema.tasks)
    store = Store(Path(), manifest, ITEMS, Checks(Path(), {}))
    return Scored(name, config, outputs, store, split, logits.reshape(len(split.item), -1), {})


def test_the_better_run_is_named_and_only_where_it_is_sure():
    split, truth = a_split()
    noise = np.random.default_rng(1).normal(size=len(truth))
    rough, fine = a_run("rough", split, truth + noise), a_run("fine", split, truth * 2)
    found = compare(rough, fine, [])["metrics"]
    assert {key for key, of in found.items() if of["better"] == "fine"} >= {"auc", "log_loss", "ndcg@10", "pairwise"}
    assert found["auc"]["difference"] > 0 > found["log_loss"]["difference"]
    assert found["auc"]["first"] == report.evaluate_split(truth + noise, split)["auc"]
    back = compare(fine, rough, [])["metrics"]
    for key, of in back.items():
        assert of["difference"] == pytest.approx(-found[key]["difference"]) and of["better"] == found[key]["better"]
    # As good as the other, by other noise: of 13 metrics and 10 cases some 6 would be named by chance, not 30.
    named = 0
    for seed in range(10):
        a, b = (truth + np.random.default_rng([seed, n]).normal(size=len(truth)) for n in range(2))
        named += sum(
            bool(of["better"]) for of in compare(a_run("a", split, a), a_run("b", split, b), [])["metrics"].values()
        )
    assert named < 30


def test_slices_say_where_a_run_is_better():
    split, truth = a_split(2000)
    own = ITEMS.features["brand"][split.item] == 2
    first, other = a_run("first", split, truth), a_run("other", split, np.where(own, -truth, truth))
    slices = list(groups(first, "brand", 3))
    assert (
        len(slices) == 4
        and slices[3][0] == "brand=all others"
        and all(label.startswith("brand=") for label, _ in slices)
    )
    found = compare(first, other, list(groups(first, "brand", 4)))["slices"]
    assert set(found) == {"brand=unknown", "brand=one", "brand=two", "brand=three"}
    assert found["brand=two"]["metrics"]["auc"]["better"] == "first"
    assert all(found[f"brand={name}"]["metrics"]["auc"]["difference"] == 0 for name in ("one", "three", "unknown"))
    assert slice_table("other", found).row_count == sum(len(of["metrics"]) for of in found.values())
    assert table("first", "other", compare(first, other, [])["metrics"], "").row_count
    with pytest.raises(
        InputError, match=r"found 'brnd', expected a Categorical feature of one value or a Numeric one, .*: brand"
    ):
        list(groups(first, "brnd", 3))


def test_rows_are_matched_by_their_number_in_the_log():
    split, truth = a_split()
    kept = np.random.default_rng(2).permutation(600)[:400]
    rows = (kept[:, None] * 5 + np.arange(5)).ravel()
    fewer = split.take(kept)
    first, other = a_run("first", split, truth), a_run("other", fewer, truth[rows])
    mine, theirs = shared_rows(first, other)
    np.testing.assert_array_equal(split.example[mine], fewer.example[theirs])
    found = compare(first, other, [])
    assert found["rows"] == 2000 and all(of["difference"] == 0 for of in found["metrics"].values())


def test_further_tasks_and_configs_are_compared():
    split, truth = a_split()
    two = replace(CONFIG, schema=replace(CONFIG.schema, tasks=(Task(), Task("buy"))), batch=Batch(rows=7, workers=3))
    both = replace(split, labels=np.repeat(split.labels, 2, 1), weights=np.repeat(split.weights, 2, 1))
    turned = replace(two, schema=replace(CONFIG.schema, tasks=(Task("buy"), Task())), evaluate=Evaluate(patience=2))
    first = a_run("first", both, np.stack([truth, truth], 1), two)
    found = compare(first, a_run("other", both, np.stack([-truth, truth], 1), turned), [])
    assert found["metrics"]["auc"]["difference"] == 0 and found["metrics"]["buy/auc"]["better"] == "first"
    assert any(line.startswith("evaluate.patience: 0 in first, 2 in other") for line in found["config"])
    assert "batch.rows: 7 in first, 32 in one" in compare(first, a_run("one", split, truth), [])["config"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"manifest": MANIFEST | {"input": {"log": {"files": []}}}}, "other log files"),
        ({"labels": 0.5}, "other labels of click"),
        ({"example": 10**6}, "no row of the split"),
        ({"drawn": True}, "other drawn negatives"),
        ({"task": Task("like")}, "no task of the name and kind"),
    ],
)
def test_runs_that_share_no_rows_are_refused(change, message):
    split, truth = a_split()
    config, other, manifest = CONFIG, split, change.get("manifest", MANIFEST)
    if "labels" in change:
        other = replace(split, labels=np.abs(split.labels - 0.5))
    if "example" in change:
        other = replace(split, example=split.example + change["example"])
    if "task" in change:
        config = replace(CONFIG, schema=replace(CONFIG.schema, tasks=(change["task"],)))
    if "drawn" in change:
        config = replace(CONFIG, data=Data(negatives=4))
        split = replace(split, example=split.example // 5)
        other = replace(split, item=split.item[::-1])
    first = a_run("first", split, truth, config if "drawn" in change else CONFIG)
    with pytest.raises(InputError, match=message):
        compare(first, a_run("other", other, truth, config, manifest), [])
