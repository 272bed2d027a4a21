"""Slices: every row in one group, metrics of the rows of a group alone, and gaps with intervals that cover."""

from dataclasses import replace

import numpy as np
import pytest
from batches import make_split
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import recall_score, roc_auc_score

from srsjax.config import Categorical, Data, Evaluate, Numeric, Schema, Text, TrainConfig
from srsjax.data.store.arrays import Items
from srsjax.data.store.ragged import Ragged
from srsjax.errors import InputError
from srsjax.metrics.calibration import sigmoid
from srsjax.model.spec import Outputs
from srsjax.runs.slices import Frame, check_slices, feature_groups, measure_slices, quarters, slice_table, slices

CLICK = (Outputs("click", "binary"),)
BRANDS = ("quib", "velda", "tarn")


def a_frame(impressions=600, seed=0, by_brand=(0.0, 0.0, 0.0, 0.0), **evaluate) -> tuple[Frame, np.ndarray]:
    """A split with brands (0 is unknown), prices (some missing) and users, and logits [M, 1] that are as true as can
    be but for `by_brand`, what the labels' log-odds have besides."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 6, impressions)
    item = rng.integers(0, 80, counts.sum())
    price = np.where(np.arange(80) < 6, np.nan, rng.lognormal(3, 1, 80)).astype(np.float32)
    items = Items(
        Ragged.from_rows([[1]] * 80, np.int32), {"brand": (np.arange(80) % 4).astype(np.int32), "price": price}
    )
    logits = rng.normal(0, 1.5, (len(item), 1))
    labels = (rng.random(len(item)) < sigmoid(logits[:, 0] + np.array(by_brand)[item % 4]))[:, None]
    user = rng.integers(0, 200, impressions)
    context = Ragged.from_rows([[1] * int(n) for n in rng.integers(1, 30, impressions)], np.int32)
    split = make_split(labels, counts=counts, item=item, user=user, context=context)
    train = split.take(np.flatnonzero(rng.random(impressions) < 0.5))
    config = TrainConfig(
        schema=Schema(context=(Text("query"),), candidate=(Text("title"), Categorical("brand"), Numeric("price"))),
        data=Data(user="user_id"),
        evaluate=Evaluate(**({"slices": ("brand", "price")} | evaluate)),
    )
    return Frame(config, split, items, train, {"brand": BRANDS}), logits


def test_every_row_is_in_one_group_of_each_slice():
    frame, _ = a_frame()
    made = dict(slices(frame))
    assert [*made] == ["brand", "price", "item in training", "user in training", "tokens of the context"]
    for groups in made.values():
        np.testing.assert_array_equal(np.sum([group.rows for group in groups], axis=0), 1)
    assert {group.name for group in made["brand"]} == {"unknown", *BRANDS}
    assert made["price"][-1].name == "missing"


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 7.5, float("nan")]), min_size=1))
def test_quarters_divide_any_numbers(numbers):
    values = np.array(numbers)
    groups = quarters(values, "{:g}")
    np.testing.assert_array_equal(np.sum([group.rows for group in groups], axis=0), 1)
    for number in np.unique(values[~np.isnan(values)]):  # equal numbers stay together
        assert sum(bool(group.rows[values == number].any()) for group in groups) == 1


def test_metrics_of_a_group_are_those_of_its_rows():
    frame, logits = a_frame()
    found = measure_slices(frame, CLICK, logits)["brand"]["groups"]
    brand, probabilities = frame.items.features["brand"][frame.split.item], sigmoid(logits[:, 0])
    for group in found:
        rows = brand == (0 if group["name"] == "unknown" else 1 + BRANDS.index(group["name"]))
        labels = frame.split.labels[rows, 0]
        assert group["rows"] == rows.sum()
        assert group["label"] == pytest.approx(labels.mean()) and group["predicted"] == pytest.approx(
            probabilities[rows].mean()
        )
        assert group["auc"][0] == pytest.approx(roc_auc_score(labels, logits[rows, 0]))
        assert group["recall"][0] == pytest.approx(recall_score(labels, probabilities[rows] >= 0.5))
        assert group["calibration"][0] == pytest.approx(probabilities[rows].mean() - labels.mean(), abs=1e-6)
        assert group["auc"][1] < group["auc"][0] < group["auc"][2]


def test_a_planted_gap_is_found_and_equal_groups_have_none():
    """Labels of one brand are rarer than its scores say."""
    planted = measure_slices(*_with_outputs(a_frame(3000, by_brand=(0, 0, -1.5, 0))))["brand"]["gaps"]["calibration"]
    assert planted["highest"] == "velda" and planted["gap"][1] > 0.1
    # The interval of one difference that was not chosen for its size covers 0 in 95 of 100 splits: of 60, 53 or more
    # with a probability above 0.98.
    covered = 0
    for seed in range(60):
        one, other, *_ = measure_slices(*_with_outputs(a_frame(300, seed)))["brand"]["groups"]
        apart = one["calibration"][0] - other["calibration"][0]
        half = np.hypot(*((each["calibration"][2] - each["calibration"][1]) / 2 for each in (one, other)))
        covered += abs(apart) < half
    assert covered >= 53


def test_small_groups_and_missing_references_say_less():
    frame, logits = a_frame(60)
    found = measure_slices(replace(frame, train=None), CLICK, logits)
    assert [*found] == ["brand", "price", "tokens of the context"]
    assert all([*group] == ["name", "rows"] for group in found["brand"]["groups"]) and not found["brand"]["gaps"]
    assert slice_table("brand", found["brand"]).row_count == 4


@pytest.mark.parametrize("name", ["brand", "price", "query", "absent"])
def test_groups_of_a_private_feature_or_of_none_are_refused(name):
    """`compare --slices` may name any."""
    frame, _ = a_frame(20, slices=())
    hidden = (Text("title"), Categorical("brand", private=True), Numeric("price", private=True), Categorical("shop"))
    frame = replace(frame, config=replace(frame.config, schema=replace(frame.config.schema, candidate=hidden)))
    with pytest.raises(InputError, match=f"slices: found '{name}', expected .*, not private.*: shop"):
        feature_groups(frame, name)


def test_a_slice_that_is_no_feature_is_refused():
    frame, _ = a_frame(slices=("brnad",))
    with pytest.raises(InputError, match=r"evaluate.slices: found 'brnad'.*did you mean 'brand'.*: brand, price"):
        check_slices(frame.config)
    check_slices(a_frame()[0].config)


def _with_outputs(made):
    frame, logits = made
    return frame, CLICK, logits
