import io
import json
from dataclasses import replace

import numpy as np
import pytest
from batches import make_split
from hypothesis import given
from metrics_cases import rows

from srsjax.console import Console
from srsjax.errors import InputError
from srsjax.metrics import report
from srsjax.metrics.calibration import logit, sigmoid
from srsjax.metrics.plots import save_curves

PAGE = 6
CLICK_METRICS = {
    "auc", "gauc", "gauc_covered", "log_loss", "normalized_entropy", "ece", "accuracy", "precision", "recall", "f1",
    "label_rate", "predicted_rate", "candidates", "impressions", "weight",
}  # fmt: skip
RANKING_METRICS = {"ndcg@10", "ndcg_groups", "mrr", "mrr_groups", "pairwise", "pairwise_pairs"}


def simulated_split(seed, impressions=2000, items=50, users=300):
    """Clicks of known probability: half by the item, half by something only the model can see."""
    random = np.random.default_rng(seed)
    item = random.integers(0, items, impressions * PAGE)
    popularity = np.random.default_rng(0).normal(size=items)
    probability = sigmoid(-1 + popularity[item] + random.normal(size=len(item)))
    return make_split(
        random.random(len(item)) < probability,
        counts=np.full(impressions, PAGE),
        item=item,
        user=random.integers(0, users, impressions),
        oracle=probability.astype(np.float32),
    )


def printed(table):
    out = io.StringIO()
    Console(file=out, width=200).print(table)
    return out.getvalue()


def test_a_click_log_gets_every_metric():
    split = simulated_split(1)
    metrics = report.evaluate_split(logit(split.oracle), split)
    # Single clicks have no significant pair, and hard labels no ceiling.
    assert set(metrics) == CLICK_METRICS | RANKING_METRICS | {"pairwise_significant_pairs"}
    assert all(type(value) is float for value in metrics.values())
    assert metrics["candidates"] == 12_000 and metrics["impressions"] == 2000
    assert metrics["label_rate"] == pytest.approx(split.labels.mean())
    # Six standard errors of a mean of 12,000 clicks.
    assert metrics["predicted_rate"] == pytest.approx(metrics["label_rate"], abs=6 * 0.5 / 12_000**0.5)


def test_gauc_groups_by_user_and_ranking_by_impression():
    split = simulated_split(2)
    one_user = replace(split, user=np.zeros_like(split.user))
    metrics, alone = (report.evaluate_split(logit(s.oracle), s) for s in (split, one_user))
    assert alone["gauc"] == pytest.approx(alone["auc"]) and metrics["gauc"] != pytest.approx(metrics["auc"])
    assert {name for name in metrics if metrics[name] != alone[name]} <= {"gauc", "gauc_covered"}


@given(rows())
def test_a_report_is_finite_and_ignores_rows_of_weight_0(case):
    metrics = report.evaluate(*case, case.groups)
    json.dumps(metrics, allow_nan=False)
    kept = case.counted()
    assert report.evaluate(*kept, kept.groups) == pytest.approx(metrics)
    assert metrics["candidates"] == len(kept.scores) and metrics["impressions"] == len(set(kept.groups))


def test_flat_rows_get_no_ranking_metrics_and_one_class_no_auc():
    ones, each = np.ones(5), np.arange(5)
    metrics = report.evaluate(np.arange(5.0), np.zeros(5), ones, each, each)
    assert set(metrics) == CLICK_METRICS - {"auc", "gauc", "normalized_entropy", "recall"}
    text = printed(report.table({"model": metrics}))
    assert "undefined: one class" in text and "undefined: no positives" in text and "ndcg" not in text


def test_graded_labels_get_ranking_metrics_only():
    metrics = report.evaluate(np.arange(4.0), np.array([0, 3, 1, 2]), np.ones(4), np.zeros(4, np.int64), np.arange(4))
    assert set(metrics) == RANKING_METRICS | {"candidates", "impressions", "weight"}
    assert "undefined" not in printed(report.table({"model": metrics}))


def test_rates_get_their_ceiling_and_significant_pairs():
    rates, shown = np.array([0.01, 0.02, 0.03]), np.full(3, 5000)
    metrics = report.evaluate(np.arange(3.0), rates, shown, np.zeros(3, np.int64), np.zeros(3, np.int64))
    assert metrics["auc_ceiling"] == metrics["auc"] and metrics["pairwise_significant_pairs"] == 3
    assert "mrr" not in metrics  # no rate reaches one half


def test_references_stand_on_both_sides_of_the_model():
    train, test = simulated_split(3), simulated_split(4)
    references = report.references(train, test, n_items=50)
    assert set(references) == {"popularity", "oracle"}
    assert 0.5 < references["popularity"]["auc"] < references["oracle"]["auc"]
    assert references["oracle"]["log_loss"] < references["popularity"]["log_loss"] < np.log(2)
    assert set(report.references(train, replace(test, oracle=None), 50)) == {"popularity"}
    graded = replace(train, labels=train.labels * 3)
    assert report.references(graded, test, 50) == {}


def test_the_table_says_how_much_of_the_gap_is_gained():
    train, test = simulated_split(3), simulated_split(4)
    references = report.references(train, test, n_items=50)
    text = printed(report.table({"model": references["oracle"], **references}, title="test split"))
    for part in ("test split", "item popularity", "best attainable", "100.0% of the AUC", "12,000", "ndcg@10"):
        assert part in text
    assert f"{references['popularity']['auc']:.4f}" in text


@pytest.mark.parametrize(
    "name, way", [("auc", "max"), ("log_loss", "min"), ("ndcg@10", "max"), ("buy/ece", "min"), ("pairwise", "max")]
)
def test_mode_of_a_metric(name, way):
    assert report.mode(name) == way


@pytest.mark.parametrize("name, nearest", [("AUC", "auc"), ("logloss", "log_loss"), ("ndcg@5", "ndcg@10")])
def test_an_unknown_metric_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(InputError, match=f"found '{name}'.*did you mean '{nearest}'"):
        report.mode(name)
    assert report.mode("ndcg@5", ndcg_at=5) == "max"


def test_every_metric_with_a_mode_can_be_monitored():
    rates, shown = np.array([0.01, 0.02, 0.6]), np.full(3, 5000)
    metrics = report.evaluate(np.arange(3.0), rates, shown, np.zeros(3, np.int64), np.zeros(3, np.int64))
    each = np.arange(6)
    chosen = report.evaluate(np.eye(6), each.astype(float), np.ones(6), each, each, families=("class",))
    metrics |= chosen | report.evaluate(each + 0.5, each.astype(float), np.ones(6), each, each, families=("value",))
    metrics |= report.evaluate(*np.eye(3)[:2], np.ones(3), np.zeros(3), np.zeros(3), families=("retrieval",))
    for name in report.MODES:
        assert report.monitored(metrics, "ndcg@10" if name == "ndcg" else name) >= 0


def test_a_monitored_metric_that_is_undefined_says_why():
    metrics = report.evaluate(np.arange(2.0), np.zeros(2), np.ones(2), np.arange(2), np.arange(2))
    with pytest.raises(InputError, match=r"auc is undefined on the validation split \(one class\).*log_loss"):
        report.monitored(metrics, "auc")


def test_curves_are_written_whole(tmp_path):
    split = simulated_split(5, impressions=50)
    save_curves(tmp_path / "test.png", split.oracle, split.labels[:, 0], split.weights[:, 0])
    assert [file.name for file in tmp_path.iterdir()] == ["test.png"]
    assert (tmp_path / "test.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
