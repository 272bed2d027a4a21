"""The numbers of figures, against scikit-learn and numpy, and charts that hold any numbers."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve as sklearn_curve

from srsjax.metrics import report
from srsjax.metrics.auc import precision_recall_curve
from srsjax.metrics.calibration import sigmoid
from srsjax.reporting.figures import confusion, figures, histogram, learning_curves, lift, residuals
from srsjax.reporting.svg import WIDTH, Axis, Line, bar_chart, line_chart, ticks


def candidates(seed=0, rows=2000, labels=None, logits=None):
    rng = np.random.default_rng(seed)
    logits = rng.normal(-0.5, 1.2, rows) if logits is None else logits
    labels = (rng.random(rows) < sigmoid(logits)).astype(float) if labels is None else labels
    return report.gather(logits, labels, rng.integers(1, 4, rows).astype(float), np.arange(rows), np.arange(rows) % 50)


def test_precision_and_recall_are_those_of_scikit_learn():
    of = candidates()
    logits = np.round(of.logits, 1)  # many ties
    precision, recall = precision_recall_curve(logits, of.labels, of.weights)
    expected, at, _ = sklearn_curve(of.labels, logits, sample_weight=of.weights)  # from low to high, and an end (1, 0)
    np.testing.assert_allclose(precision, expected[-2::-1])
    np.testing.assert_allclose(recall, at[-2::-1])


def test_lift_counts_the_positives_of_each_tenth():
    of = candidates()
    of = report.gather(of.logits, of.labels, np.ones(2000), of.groups, of.users)
    rows = lift(of).rows
    tenths = np.array_split(of.labels[np.argsort(-of.logits)], 10)
    assert len(rows) == 10
    for row, tenth in zip(rows, tenths, strict=True):
        assert float(row[3]) == pytest.approx(tenth.mean(), abs=1e-4)
        assert float(row[4]) == pytest.approx(tenth.mean() / of.labels.mean(), abs=0.01)
    gained = np.cumsum([tenth.sum() for tenth in tenths]) / of.labels.sum()
    assert [row[6] for row in rows] == [f"{share:.1%}" for share in gained] and rows[-1][5] == "100.0%"


def test_histograms_and_residuals_lose_no_weight():
    of = candidates()
    number = lambda text: float(text.replace(",", ""))  # noqa: E731
    total = sum(number(row[1]) + number(row[2]) for row in histogram(of).rows)
    assert total == pytest.approx(of.weights.sum(), abs=20)  # 40 numbers, each rounded to a whole one
    of = candidates(labels=np.random.default_rng(1).normal(0, 2, 2000))
    apart, _ = residuals(of)
    assert sum(number(row[1]) for row in apart.rows) == pytest.approx(of.weights.sum(), abs=10)


def test_the_most_frequent_confusions_come_first():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 4, 500).astype(float), rng.normal(0, 1, (500, 4))
    logits[labels == 2, 1] += 3
    of = report.gather(logits, labels, np.ones(500), np.arange(500), np.arange(500))
    rows = confusion(of.confusion, "abcd").rows
    assert rows[0][:2] == ["c", "b"]
    taken = ((labels == 2) & (logits.argmax(1) == 1)).sum()
    assert rows[0][2] == str(taken) and rows[0][3] == f"{taken / (labels == 2).sum():.1%}"
    counts = [int(row[2]) for row in rows]
    assert counts == sorted(counts, reverse=True)


def test_one_class_and_graded_labels_have_the_figures_that_are_defined():
    one = candidates(labels=np.ones(2000))
    assert [figure.title for figure in figures(one, ("click",), None, ())] == [
        "Reliability",
        "Lift by tenth",
        "Scores by label",
    ]
    graded = candidates(labels=np.full(2000, 3.0))
    assert list(figures(graded, ("click", "ranking"), None, ())) == []


def test_learning_curves_name_the_best_step():
    lines = [{"kind": "train", "step": s, "loss": 1 / s} for s in (10, 20, 30)]
    lines += [{"kind": "valid", "step": s, "auc": 0.5 + s / 100} for s in (15, 30)]
    train, valid = learning_curves(lines, "auc", 30)
    assert [row[0] for row in train.rows] == ["10", "20", "30"] and valid.rows == [["15", "0.6500"], ["30", "0.8000"]]
    assert "that of step 30" in valid.note and list(learning_curves([], "auc", 0)) == []
    lines.append({"kind": "train", "step": 40, "loss": "nan"})  # as a run writes a loss that is not finite
    assert len(next(learning_curves(lines, "auc", 30)).rows) == 3


@given(st.lists(st.floats(-1e9, 1e9) | st.just(float("nan")), max_size=400), st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_charts_hold_any_numbers(values, low, width):
    x, y = Axis("<x>", 0, max(len(values), 1)), Axis("y", low, low + width)
    chart = line_chart("a & b", x, y, [Line("one", range(len(values)), values, marks=True), Line("", [0, 1], [0, 1])])
    bars = bar_chart("bars", x, y, [0, 1, 2], [("one", [low, low + width])])
    for svg in (chart, bars):
        assert "nan" not in svg and "<x>" not in svg and "a & b" not in svg
        for at in re.findall(r'(?:cx|cy|x1|x2|y1|y2|x|y)="(-?[\d.]+)"', svg):
            assert -1 <= float(at) <= WIDTH + 1  # within the picture
    marks = ticks(low, low + width)
    assert 1 <= len(marks) <= 12 and all(low - 1e-6 * width <= mark <= low + width * (1 + 1e-6) for mark in marks)
