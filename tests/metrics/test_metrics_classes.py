"""Metrics of classes and of numbers against scikit-learn and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from batches import make_split
from hypothesis import given
from hypothesis import strategies as st

from srsjax.metrics import baselines, classes, report, values


@st.composite
def cases(draw):
    """Logits [M, K], labels [M], weights [M]."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, count = draw(st.integers(1, 40)), draw(st.integers(2, 9))
    return rng.normal(size=(rows, count)), rng.integers(0, count, rows), rng.choice([0.5, 1.0, 2.0], rows)


@given(cases())
def test_class_metrics_are_scikit_learns(case):
    logits, labels, weights = case
    predicted, everything = logits.argmax(-1), np.arange(logits.shape[1])
    each = np.arange(len(labels))
    found = report.evaluate(logits, labels, weights, each, each, families=("class",))
    assert found["accuracy"] == pytest.approx(
        sklearn.metrics.accuracy_score(labels, predicted, sample_weight=weights), abs=1e-12
    )
    macro = sklearn.metrics.f1_score(labels, predicted, average="macro", sample_weight=weights, zero_division=0)
    assert found["macro_f1"] == pytest.approx(macro, abs=1e-12)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    entropy = sklearn.metrics.log_loss(labels, shares, sample_weight=weights, labels=everything)
    assert found["cross_entropy"] == pytest.approx(entropy, abs=1e-9)
    if logits.shape[1] > 5:
        top = sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, sample_weight=weights, labels=everything)
        assert found["top_5"] == pytest.approx(top, abs=1e-12)
    else:
        assert "top_5" not in found
    assert not {"auc", "log_loss", "ndcg@10"} & set(found)


@given(cases())
def test_the_report_of_classes_is_scikit_learns(case):
    logits, labels, weights = case
    names = [f"class {i}" for i in range(logits.shape[1])]
    found = classes.class_report(classes.confusion_matrix(logits, labels, weights), names)
    expected = sklearn.metrics.classification_report(
        labels,
        logits.argmax(-1),
        sample_weight=weights,
        labels=np.arange(len(names)),
        target_names=names,
        output_dict=True,
        zero_division=0,
    )
    for name in names:
        of = expected[name]
        line = [of["precision"], of["recall"], of["f1-score"], of["support"]]
        assert list(found[name].values()) == pytest.approx(line, abs=1e-12)


@given(st.integers(0, 2**32), st.booleans())
def test_metrics_of_numbers_are_scikit_learns_and_scipys(seed, weighted):
    rng = np.random.default_rng(seed)
    labels, weights = rng.integers(1, 6, 30).astype(float), rng.choice([0.5, 1.0, 2.0], 30) if weighted else np.ones(30)
    predicted = (labels + rng.normal(size=30)).round(1)
    each = np.arange(30)
    found = report.evaluate(predicted, labels, weights, each, each, families=("value",))
    both = {"y_true": labels, "y_pred": predicted, "sample_weight": weights}
    assert found["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(**both))
    assert found["rmse"] == pytest.approx(sklearn.metrics.root_mean_squared_error(**both))
    assert found["r2"] == pytest.approx(sklearn.metrics.r2_score(**both))
    counts = (2 * weights).astype(int)  # weights as repeated rows
    expected = scipy.stats.spearmanr(np.repeat(predicted, counts), np.repeat(labels, counts)).statistic
    assert found["spearman"] == pytest.approx(expected)


def test_what_is_undefined_is_absent():
    each = np.arange(3)
    found = report.evaluate(np.ones(3), np.ones(3), np.ones(3), each, each, families=("value",))
    assert found["rmse"] == 0 and not {"r2", "spearman"} & set(found)
    assert np.isnan(values.spearman(np.ones(3), np.arange(3.0), np.ones(3)))


def test_the_bias_model_has_the_strength_that_the_data_have_and_beats_the_item_mean():
    rng = np.random.default_rng(0)
    users, items = rng.normal(0, 1, 60), rng.normal(0, 1, 40)
    user, item = rng.integers(0, 60, 3000), rng.integers(0, 40, 3000)
    labels = 3 + users[user] + items[item] + rng.normal(0, 0.5, 3000)
    train, test = (make_split(labels[at], user=user[at], item=item[at]) for at in (slice(0, 2500), slice(2500, 3000)))
    found = report.references(train, test, 40, families=("value",), names=("popularity", "user_item", "oracle"))
    assert set(found) == {"item_mean", "bias_model"}
    # The noise is 0.5, and 2,500 labels tell 100 means to about 0.1.
    assert found["bias_model"]["rmse"] < 0.55 < 0.9 < found["item_mean"]["rmse"]


def test_the_bias_model_is_the_ridge_regression_of_its_strengths():
    """Fitted in turn until nothing changes, with both strengths given: the solution of the normal equations."""
    rng = np.random.default_rng(1)
    user, item = rng.integers(0, 6, 200), rng.integers(0, 5, 200)
    labels, weights = rng.normal(size=200) + 0.3 * user - 0.5 * item, rng.choice([0.5, 1.0, 2.0], 200)
    split = make_split(labels, weights, user=user, item=item)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "mean_strength", lambda n, total, squares: 2.0)
        patch.setattr(baselines, "ROUNDS", 200)
        found = baselines.mean_scores(split, split, 5)
    design = np.concatenate([np.eye(5)[item], np.eye(6)[user]], axis=1)
    labels, w = labels.astype(np.float32).astype(np.float64), weights.astype(np.float32).astype(np.float64)
    mean = w @ labels / w.sum()
    solved = np.linalg.solve(design.T @ (w[:, None] * design) + 2 * np.eye(11), design.T @ (w * (labels - mean)))
    np.testing.assert_allclose(found, mean + design @ solved, atol=1e-6)


def test_the_strength_of_means_is_the_ratio_of_variances():
    rng = np.random.default_rng(2)
    number = np.repeat(np.arange(2000), rng.integers(1, 20, 2000))
    left = rng.normal(0, 0.5, 2000)[number] + rng.normal(0, 1.0, len(number))
    n, total = np.bincount(number).astype(float), np.bincount(number, left)
    assert baselines.mean_strength(n, total, float(left @ left)) == pytest.approx(4.0, rel=0.15)
    noise = rng.normal(0, 1, len(number))
    few = baselines.mean_strength(n, np.bincount(number, noise), float(noise @ noise))
    assert few > 50  # no difference but chance
    assert baselines.mean_strength(np.ones(5), np.arange(5.0), 30.0) == np.inf
