"""The rows of the table of metrics, and the monitored one, which is resolved by the config alone."""

from __future__ import annotations

import numpy as np
import pytest
from test_metrics_report import printed, simulated_split

from srsjax import train
from srsjax.config import Evaluate, Schema, Task, Text, TrainConfig
from srsjax.data.store.arrays import Items
from srsjax.data.store.ragged import Ragged
from srsjax.errors import InputError
from srsjax.metrics import report
from srsjax.metrics.table import METRICS
from srsjax.objectives import KINDS
from srsjax.runs.evaluation import split_references
from srsjax.runs.monitor import Monitor, resolve_monitor


def config(*tasks: Task, **evaluate) -> TrainConfig:
    return TrainConfig(schema=Schema(candidate=(Text("title"),), tasks=tasks), evaluate=Evaluate(**evaluate))


def test_names_are_unique_and_only_metrics_have_a_direction():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(bool(metric.better) == (metric.shown == "metric") for metric in METRICS)
    families = {family for kind in KINDS.values() for family in kind.families}
    assert families == {metric.family for metric in METRICS} - {"count"}


def test_a_listwise_task_has_no_metric_of_clicks_even_where_its_labels_are_clicks():
    each = np.arange(4)
    case = (np.arange(4.0), np.array([0, 1, 1, 0]), np.ones(4), each // 2, each)
    found = report.evaluate(*case, families=KINDS["listwise"].families)
    assert {"ndcg@10", "mrr", "pairwise", "candidates"} <= set(found)
    assert not {"auc", "log_loss", "ece", "predicted_rate"} & set(found)
    assert "log_loss" in report.evaluate(*case, families=KINDS["binary"].families)


@pytest.mark.parametrize(
    ("tasks", "evaluate", "expected"),
    [
        ((Task("click"),), {}, Monitor("auc", "max")),
        ((Task("click"),), {"monitor": "click/auc"}, Monitor("auc", "max")),
        ((Task("click"), Task("buy")), {"monitor": "buy/log_loss"}, Monitor("buy/log_loss", "min")),
        ((Task("click"),), {"monitor": "ece", "mode": "max"}, Monitor("ece", "max")),
        ((Task("grade", kind="listwise"),), {"ndcg_at": 5}, Monitor("ndcg@5", "max")),
        ((Task("click"), Task("grade", kind="listwise")), {"monitor": "grade/mrr"}, Monitor("grade/mrr", "max")),
    ],
)
def test_the_monitor_is_the_metric_of_a_task(tasks, evaluate, expected):
    assert resolve_monitor(config(*tasks, **evaluate)) == expected


@pytest.mark.parametrize(
    ("tasks", "monitor", "said"),
    [
        ((Task("click"),), "nosuch/auc", "found task 'nosuch', expected one of click"),
        ((Task("click"), Task("purchase")), "purchas/auc", "did you mean 'purchase'?"),
        ((Task("click"),), "click/aucc", "found 'aucc', expected one of auc, gauc, .*did you mean 'auc'"),
        ((Task("grade", kind="listwise"),), "auc", "task 'grade' is listwise and has only ndcg@10, mrr, pairwise"),
        ((Task("click"),), "candidates", "found 'candidates', expected one of"),
    ],
)
def test_what_no_evaluation_gives_is_refused_before_anything_is_prepared(tasks, monitor, said, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=said.replace("?", r"\?")):
        resolve_monitor(config(*tasks, monitor=monitor))
    monkeypatch.chdir(tmp_path)
    if tasks == (Task("click"),):
        with pytest.raises(InputError, match=said):
            train.main(["--config", "ctr.py", "--evaluate.monitor", monitor])
        assert list(tmp_path.iterdir()) == []


def test_references_of_a_listwise_task_have_its_metrics_only():
    train, test = simulated_split(3, impressions=200), simulated_split(4, impressions=200)
    families = KINDS["listwise"].families
    model = report.evaluate_split(test.oracle, test, families=families)
    references = report.references(train, test, n_items=50, families=families)
    assert set(references) == {"popularity", "oracle"}
    assert all(set(values) == set(model) for values in references.values())
    items = Items(Ragged.from_rows([[i] for i in range(50)], np.int32))
    # Without a catalogue items are told apart by their texts.
    found = split_references(config(Task(kind="listwise")), train, test, items)
    assert set(found) == set(references)
    for name, logits in found.items():  # sums over items in another order
        values = report.evaluate_split(logits, test, families=families)
        assert values == pytest.approx(references[name], rel=1e-9), name
    text = printed(report.table({"model": model, **references}))
    assert "ndcg@10" in text and "undefined" not in text and "log_loss" not in text


def test_a_table_gives_no_reason_where_a_task_was_not_measured():
    split = simulated_split(5, impressions=100)
    first = report.evaluate_split(split.oracle, split)
    both = first | {f"buy/{name}": value for name, value in first.items()}
    assert "undefined" not in printed(report.table({"model": both, "popularity": first}))


def test_every_metric_that_can_be_missing_says_why():
    """One candidate in each impression, of one class: what is left has no reason to be missing."""
    each = np.arange(5)
    found = report.evaluate(np.arange(5.0), np.zeros(5), np.ones(5), each, each)
    own = [metric for metric in METRICS if metric.applies(report.FAMILIES)]
    missing = [metric for metric in own if metric.better and metric.key(10) not in found]
    assert {"auc", "recall", "ndcg", "mrr", "pairwise", "pairwise_significant"} <= {metric.name for metric in missing}
    assert all(metric.undefined for metric in missing)
    with pytest.raises(InputError, match=r"ndcg@10 is undefined .*\(one candidate in each impression, or no label"):
        report.monitored(found, "ndcg@10")


def test_a_monitored_task_without_labels_is_not_said_to_have_one_class():
    each = np.arange(5)
    empty = report.evaluate(np.arange(5.0), np.zeros(5), np.zeros(5), each, each)
    assert empty == {"candidates": 0, "impressions": 0, "weight": 0}
    with pytest.raises(InputError, match="buy/auc is undefined on the validation split: found no known label"):
        report.monitored({"auc": 0.5, "candidates": 5.0} | {f"buy/{k}": v for k, v in empty.items()}, "buy/auc")


def test_the_ceiling_of_rates_stands_after_the_rates():
    rates, shown = np.array([0.01, 0.02, 0.03]), np.full(3, 5000)
    metrics = report.evaluate(np.arange(3.0), rates, shown, np.zeros(3, np.int64), np.zeros(3, np.int64))
    text = printed(report.table({"model": metrics}))
    places = [text.index(name) for name in ("label_rate", "predicted_rate", "auc_ceiling", "candidates")]
    assert places == sorted(places)
