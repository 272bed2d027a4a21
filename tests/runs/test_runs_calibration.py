"""Which calibration a run gets, where it is kept, and what it changes."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from batches import make_split

from srsjax.config import Categorical, Data, Evaluate, Schema, Task, Text, TrainConfig
from srsjax.console import Console
from srsjax.data.store.arrays import Items
from srsjax.data.store.ragged import Ragged
from srsjax.errors import InputError
from srsjax.files import write_json
from srsjax.metrics.calibration import sigmoid
from srsjax.model.spec import Outputs
from srsjax.runs.assessment import Assessment, assess
from srsjax.runs.calibration import (
    Calibration,
    check_calibration,
    fit_calibration,
    fit_task,
    for_all_negatives,
)
from srsjax.runs.run_folder import RunFolder

CLICK = (Outputs("click", "binary"),)
ITEMS = Items(Ragged.from_rows([[1]] * 40, np.int32), {"brand": (np.arange(40) % 4).astype(np.int32)})


def a_config(**evaluate) -> TrainConfig:
    candidate = (Text("title"), Categorical("brand"), Categorical("slot", training_only=True))
    return TrainConfig(
        schema=Schema(context=(Text("query"),), candidate=candidate, tasks=(Task(),)),
        evaluate=Evaluate(**evaluate),
    )


def a_case(seed=0, scale=0.4, offset=-0.5, by_brand=(0.0, 0.0, 0.0, 0.0), impressions=1500):
    """A split whose labels have log-odds scale * x + offset + by_brand, and logits x [M, 1]."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 7, impressions)
    item = rng.integers(0, 40, counts.sum())
    logits = rng.normal(0, 2, (len(item), 1)).astype(np.float32)
    odds = scale * logits[:, 0] + offset + np.array(by_brand)[item % 4]
    labels = (rng.random(len(item)) < sigmoid(odds))[:, None]
    return make_split(labels, counts=counts, item=item, user=rng.integers(0, 300, impressions)), logits


def test_auto_takes_a_map_that_gains_and_none_where_all_is_well():
    config = a_config()
    split, logits = a_case()
    own = fit_calibration(config, CLICK, split, ITEMS, logits, 7).tasks["click"]
    assert own.method == "platt" and own.map.scale[0] == pytest.approx(0.4, abs=0.05)
    assert own.found["platt"]["gain"] > 10 * own.found["platt"]["error"]
    # Of calibrated logits no map gains more than chance: at 2 standard errors at most some 5 of 100.
    methods = [
        fit_calibration(config, CLICK, *(case[0], ITEMS, case[1]), 7).tasks["click"].method
        for case in (a_case(seed, 1.0, 0.0, impressions=200) for seed in range(20))
    ]
    assert methods.count("none") >= 18


def test_a_named_method_is_taken_without_a_gain_and_none_takes_none():
    split, logits = a_case(scale=1.0, offset=0.0)
    for method in ("temperature", "platt", "isotonic"):
        own = fit_calibration(a_config(calibration=method), CLICK, split, ITEMS, logits, 7).tasks["click"]
        assert own.method == method and own.map is not None
    plain = fit_calibration(a_config(calibration="none"), CLICK, split, ITEMS, logits, 7)
    assert plain.apply(a_config().schema, CLICK, split, ITEMS, logits) is logits


def test_rows_of_one_user_are_no_further_evidence():
    """Twenty copies of each row say what one says: the error is that of 60 rows, sqrt(20) times that of 1,200."""
    logits, labels = np.random.default_rng(0).normal(size=60), np.arange(60) % 2.0
    copies = (np.repeat(logits, 20), np.repeat(labels, 20), np.ones(1200))
    by_user = fit_task(Task(), "auto", *copies, np.repeat(np.arange(60), 20)).found["platt"]
    by_row = fit_task(Task(), "auto", *copies, np.arange(1200)).found["platt"]
    # The folds are others, and so are the maps a little.
    assert by_user["error"] / by_row["error"] == pytest.approx(20**0.5, rel=0.3)
    assert by_user["log_loss"] > by_row["log_loss"]  # a copy in the fit praises what was learnt by heart


@pytest.mark.parametrize("case", ["few users", "one class", "reversed"])
def test_what_cannot_be_fitted_is_left_as_it_is_and_says_why(case):
    rng = np.random.default_rng(0)
    logits, users = rng.normal(size=400), np.arange(400) % (3 if case == "few users" else 100)
    labels = np.ones(400) if case == "one class" else (logits < 0).astype(float)
    own = fit_task(Task(), "platt", logits, labels, np.ones(400), users)
    assert own.method == "none" and own.map is None and own.found["why"]


def test_a_slice_gets_its_own_map_where_it_gains():
    config = a_config(calibration_slice="brand")
    split, logits = a_case(scale=1.0, offset=0.0, by_brand=(0.0, 1.5, 0.0, 0.0), impressions=3000)
    made = fit_calibration(config, CLICK, split, ITEMS, logits, 7)
    # Brand 1 is shifted up, the others down by what the overall map takes too much; 0 is unknown and has none.
    assert set(made.tasks["click"].slices) >= {1} and 0 not in made.tasks["click"].slices
    after = made.apply(config.schema, CLICK, split, ITEMS, logits)
    own = ITEMS.features["brand"][split.item] == 1
    assert after[own].mean() - logits[own].mean() == pytest.approx(1.5, abs=0.3)
    plain = fit_calibration(a_config(), CLICK, split, ITEMS, logits, 7).apply(
        config.schema, CLICK, split, ITEMS, logits
    )
    assert after[own].mean() > plain[own].mean() + 0.5
    small, few = a_case(scale=1.0, offset=0.0, by_brand=(0, 1.5, 0, 0), impressions=300)
    assert not fit_calibration(config, CLICK, small, ITEMS, few, 7).tasks["click"].slices


def test_classes_and_further_tasks_are_calibrated_each_by_its_own():
    rng = np.random.default_rng(0)
    kind = Task("intent", kind="multiclass")
    config = replace(
        a_config(), schema=replace(a_config().schema, tasks=(Task(), kind, Task("stars", kind="regression")))
    )
    outputs = (*CLICK, Outputs("intent", "multiclass", 3, ("a", "b", "c")), Outputs("stars", "regression"))
    click, logits = a_case()
    m = len(click.item)
    of_classes = rng.normal(0, 2, (m, 3)).astype(np.float32)
    shares = np.exp(0.3 * of_classes) / np.exp(0.3 * of_classes).sum(1, keepdims=True)
    intent = (shares.cumsum(1) < rng.random((m, 1))).sum(1)
    stars = rng.normal(size=(m, 1)).astype(np.float32)
    split = replace(
        click,
        labels=np.c_[click.labels, intent, stars].astype(np.float32),
        weights=np.ones((m, 3), np.float32),
    )
    whole = np.c_[logits, of_classes, stars]
    made = fit_calibration(config, outputs, split, ITEMS, whole, 7)
    assert set(made.tasks) == {"click", "intent"} and made.tasks["intent"].method == "temperature"
    after = made.apply(config.schema, outputs, split, ITEMS, whole)
    np.testing.assert_allclose(after[:, 1:4], made.tasks["intent"].map.scale[0] * of_classes.astype(float))
    np.testing.assert_array_equal(after[:, 4:], stars)
    found = assess(config, outputs, made, split, ITEMS, whole)
    for key in ("log_loss", "ece", "intent/cross_entropy", "intent/ece"):
        assert found.model[key] < found.uncalibrated[key]
    # Order, and of one temperature the choice too, are left alone: exactly.
    assert "auc" not in found.uncalibrated
    plain = assess(config, outputs, Calibration(), split, ITEMS, whole)
    for key in ("auc", "gauc", "ndcg@10", "mrr", "intent/accuracy", "stars/rmse"):
        assert found.model[key] == plain.model[key]
    assert not plain.uncalibrated


def test_a_report_with_intervals_fits_80_columns_and_is_read_again():
    config = replace(a_config(), data=Data(user="user"))
    split, logits = a_case()
    split = replace(split, oracle=sigmoid(0.4 * logits[:, 0] - 0.5).astype(np.float32))
    made = fit_calibration(config, CLICK, split, ITEMS, logits, 7)
    found = assess(config, CLICK, made, split, ITEMS, logits, train=a_case(1)[0])
    assert set(found.references) == set(found.differences) == {"popularity", "user_item", "oracle"}
    value, low, high = found.differences["popularity"]["auc"]
    assert value == pytest.approx(found.model["auc"] - found.references["popularity"]["auc"]) and 0 < low < high
    assert found.differences["oracle"]["auc"] == [0, 0, 0]  # calibration keeps the order, and the oracle has it too
    again = Assessment.read(json.loads(json.dumps(found.of_split("test"))), "test")
    printed = []
    for each in (found, again):
        out = io.StringIO()
        for part in each.tables("test split"):
            Console(file=out, width=80, soft_wrap=False).print(part)
        printed.append(out.getvalue())
    assert printed[0] == printed[1]
    assert max(map(len, printed[0].splitlines())) <= 80
    low, high = found.intervals["auc"]
    assert f"{found.model['auc']:.4f} [{low:.3f}, {high:.3f}]" in printed[0]  # on one line
    assert printed[0].count("  uncalibrated") == len(found.uncalibrated)


def test_the_file_is_bound_to_its_checkpoint(tmp_path):
    folder = RunFolder(tmp_path)
    split, logits = a_case(by_brand=(0, 1.5, 0, 0), impressions=3000)
    config = a_config(calibration_slice="brand")
    assert Calibration.load(folder) == Calibration()  # of a run of an earlier version
    made = fit_calibration(config, CLICK, split, ITEMS, logits, 7)
    made.save(folder)
    write_json(folder.report_file, {"best_step": 7})
    again = Calibration.load(folder)
    assert again == made
    np.testing.assert_array_equal(*(each.apply(config.schema, CLICK, split, ITEMS, logits) for each in (made, again)))
    write_json(folder.report_file, {"best_step": 8})
    with pytest.raises(InputError, match=r"calibration.json: found step 7, expected 8"):
        Calibration.load(folder)
    write_json(folder.calibration_file, {"step": 8, "tasks": {"click": {}}})
    with pytest.raises(InputError, match=r"calibration.json: found other data"):
        Calibration.load(folder)


def test_a_head_takes_up_affine_maps():
    rng = np.random.default_rng(0)
    outputs = (*CLICK, Outputs("stars", "regression"), Outputs("intent", "multiclass", 3, ("a", "b", "c")))
    params = {"head/dense/kernel": rng.normal(size=(4, 5)), "head/dense/bias": rng.normal(size=5), "other": np.ones(1)}
    split, logits = a_case()
    click = fit_calibration(a_config(), CLICK, split, ITEMS, logits, 7).tasks["click"]
    made = Calibration(7, {"click": click}).folded(params, outputs)
    x = rng.normal(size=(6, 4))
    before, after = (x @ each["head/dense/kernel"] + each["head/dense/bias"] for each in (params, made))
    # The folded parameters are float32.
    np.testing.assert_allclose(after[:, 0], click.map(before[:, 0]), rtol=1e-5)
    np.testing.assert_allclose(after[:, 1:], before[:, 1:], rtol=1e-5)
    bent = fit_calibration(a_config(calibration="isotonic"), CLICK, split, ITEMS, logits, 7)
    assert bent.folded(params, outputs) is None
    assert Calibration().folded(params, outputs) == params


def test_negatives_rate_is_added_to_binary_tasks_alone():
    outputs = (*CLICK, Outputs("stars", "regression"))
    logits = np.ones((3, 2), np.float32)
    config = a_config(negatives_rate=0.1)
    np.testing.assert_allclose(
        for_all_negatives(config, Calibration(), outputs, logits), [[1 + np.log(0.1), 1]] * 3, rtol=1e-12
    )
    assert for_all_negatives(a_config(), Calibration(), outputs, logits) is logits
    known = replace(a_config(negatives_rate=0), data=Data(negatives=4))
    made = for_all_negatives(known, Calibration(items=1000), outputs, logits)
    assert made[0, 0] == pytest.approx(1 + np.log(4 / 1000))
    with pytest.raises(InputError, match="does not know how many items"):
        for_all_negatives(known, Calibration(), outputs, logits)


@pytest.mark.parametrize(
    ("evaluate", "tasks", "message"),
    [
        ({"calibration": "isotonic"}, (Task(kind="multiclass"),), "expected one of temperature, platt, auto or none"),
        ({"calibration": "platt"}, (Task(kind="listwise"),), "no task predicts a probability"),
        (
            {"calibration_slice": "brnd"},
            (Task(),),
            "found 'brnd', expected a Categorical feature of one value.*: brand",
        ),
        ({"calibration_slice": "slot"}, (Task(),), "found 'slot', expected .* which scoring has too: brand"),
        ({"negatives_rate": 0.0}, (Task(),), r"evaluate.negatives_rate: found 0"),
    ],
)
def test_settings_that_fit_no_task_are_refused(evaluate, tasks, message):
    config = a_config(**evaluate)
    check_calibration(a_config())
    with pytest.raises(InputError, match=message):
        check_calibration(replace(config, schema=replace(config.schema, tasks=tasks)))
