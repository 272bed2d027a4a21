"""The rows of the table of metrics, and the monitored one, which is resolved by the config alone."""

from __future__ import annotations

import numpy as np
import pytest

from srsjax import train
from srsjax.config import Evaluate, Schema, Task, Text, TrainConfig
from srsjax.errors import InputError
from srsjax.metrics import report
from srsjax.metrics.table import METRICS
from srsjax.objectives import KINDS
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
