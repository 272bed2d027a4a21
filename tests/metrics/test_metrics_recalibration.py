"""Maps of logits beside scikit-learn's, PyTorch's and a grid's; their orders, and what cannot be fitted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression

from srsjax.metrics.calibration import log_loss, sigmoid
from srsjax.metrics.classes import cross_entropy
from srsjax.metrics.recalibration import (
    fit_isotonic,
    fit_platt,
    fit_temperature,
    isotonic_steps,
    map_from_json,
    prior_shift,
)


def overconfident(seed=0, rows=4000, scale=0.4, offset=-0.5):
    """Logits x of labels whose log-odds are scale * x + offset."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2.5, rows)
    return (
        logits,
        (rng.random(rows) < sigmoid(scale * logits + offset)).astype(float),
        rng.choice([0.5, 1.0, 3.0], rows),
    )


def of_classes(seed=0, rows=3000, scale=0.5):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (rows, 4))
    shares = np.exp(scale * logits + [0.0, 0.5, 0.0, -0.5])
    shares /= shares.sum(1, keepdims=True)
    return logits, (shares.cumsum(1) < rng.random(rows)[:, None]).sum(1).astype(float), rng.uniform(0.5, 2, rows)


def test_platt_is_scikit_learns():
    logits, labels, weights = overconfident()
    reference = _SigmoidCalibration().fit(logits, labels, weights)
    made = fit_platt(logits, labels, weights)
    # Scikit-learn minimises the same function with L-BFGS to a gradient of 1e-6 or so.
    assert made.scale[0] == pytest.approx(-reference.a_, abs=1e-4)
    assert made.offset[0] == pytest.approx(-reference.b_, abs=1e-4)


def test_temperature_has_the_least_log_loss_of_all():
    logits, labels, weights = overconfident(offset=0.0)
    made = fit_temperature(logits, labels, weights)
    grid = np.linspace(0.3, 0.5, 2001)
    best = grid[np.argmin([log_loss(a * logits, labels, weights) for a in grid])]
    # The grid's step is 1e-4; Platt's targets move the optimum by about 1 / positives.
    assert made.scale[0] == pytest.approx(best, abs=1e-3) and made.offset == (0.0,)


def test_soft_labels_count_as_rows_of_both_labels():
    logits, labels, weights = overconfident()
    rates = np.clip(labels, 0.1, 0.8)
    twice = (np.tile(logits, 2), np.repeat([1.0, 0.0], len(logits)), np.r_[weights * rates, weights * (1 - rates)])
    for fit in (fit_temperature, fit_platt):
        soft, hard = fit(logits, rates, weights), fit(*twice)
        np.testing.assert_allclose([*soft.scale, *soft.offset], [*hard.scale, *hard.offset], rtol=1e-8)


@pytest.mark.parametrize("fit", [fit_temperature, fit_platt])
def test_maps_of_classes_are_where_pytorch_finds_the_optimum(fit):
    torch = pytest.importorskip("torch", reason="torch is the reference here")
    logits, labels, weights = of_classes()
    made = fit(logits, labels, weights)
    scale = torch.ones(4 if fit is fit_platt else 1, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(4, dtype=torch.float64, requires_grad=fit is fit_platt)
    moved = [scale, offset] if fit is fit_platt else [scale]
    options = {"max_iter": 500, "tolerance_grad": 1e-10, "tolerance_change": 1e-14, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(moved, **options)
    x, y, w = torch.tensor(logits), torch.tensor(labels, dtype=torch.long), torch.tensor(weights / weights.sum())

    def closure():
        optimizer.zero_grad()
        loss = (w * torch.nn.functional.cross_entropy(scale * x + offset, y, reduction="none")).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    # Offsets are known up to one constant, so the losses are compared; L-BFGS-B stops at about 1e-9 of the loss.
    assert cross_entropy(made(logits), labels, weights) == pytest.approx(closure().item(), abs=1e-6)
    np.testing.assert_allclose(made.scale, np.resize(scale.detach().numpy(), 4), atol=5e-3)


def test_steps_are_those_of_isotonic_regression():
    rng = np.random.default_rng(0)
    values, weights = np.linspace(0, 1, 200) + rng.normal(0, 0.3, 200), rng.uniform(0.1, 4, 200)
    heights, starts = isotonic_steps(values, weights)
    reference = IsotonicRegression().fit(np.arange(200), values, weights).predict(np.arange(200))
    np.testing.assert_allclose(np.repeat(heights, np.diff(starts, append=200)), reference, atol=1e-12)


def test_isotonic_bends_what_no_line_can():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 40_000)
    odds = np.where(logits > 0, 0.2 * logits, 2 * logits)
    labels, ones = (rng.random(len(logits)) < sigmoid(odds)).astype(float), np.ones(len(logits))
    made = fit_isotonic(logits, labels, ones)
    fresh = rng.normal(0, 2, 40_000)
    truth = np.where(fresh > 0, 0.2 * fresh, 2 * fresh)
    own = sigmoid(truth)
    losses = [log_loss(each, own, ones) for each in (made(fresh), fit_platt(logits, labels, ones)(fresh), truth)]
    assert losses[0] - losses[2] < 0.002 < 0.005 < losses[1] - losses[2]


@given(st.integers(0, 10**6), st.integers(2, 60), st.booleans())
def test_maps_rise_strictly_and_are_kept_as_json(seed, rows, ties):
    rng = np.random.default_rng(seed)
    logits = rng.integers(-3, 3, rows).astype(float) if ties else rng.normal(0, 2, rows)
    labels, weights = rng.choice([0.0, 0.3, 1.0], rows), rng.choice([0.5, 1.0, 3.0], rows)
    order = np.unique(np.r_[logits, np.linspace(-20, 20, 101)])
    for fit in (fit_temperature, fit_platt, fit_isotonic):
        made = fit(logits, labels, weights)
        if made is None:
            assert fit is not fit_isotonic or labels.max() == 0 or labels.min() == 1
            continue
        assert np.isfinite(made(order)).all() and (np.diff(made(order)) > 0).all()
        again = map_from_json(json.loads(json.dumps(made.to_json())))
        np.testing.assert_array_equal(again(order), made(order))


def test_labels_of_one_class_and_reversed_scores_have_no_map():
    logits, labels, weights = overconfident()
    for fit in (fit_temperature, fit_platt, fit_isotonic):
        assert fit(logits, np.ones(len(logits)), weights) is None
    assert fit_temperature(-logits, labels, weights) is None and fit_platt(-logits, labels, weights) is None
    assert fit_temperature(np.ones((3, 2)), np.zeros(3), np.ones(3)) is None


def test_logits_that_part_the_labels_have_a_finite_map():
    logits = np.r_[np.full(50, -1.0), np.full(50, 1.0)]
    for fit in (fit_temperature, fit_platt, fit_isotonic):
        made = fit(logits, (logits > 0).astype(float), np.ones(100))
        # 50 of 50: Platt's target is 51 / 52; the isotonic step has one row at 1/2 more, 50.5 / 51.
        expected = 50.5 / 51 if fit is fit_isotonic else 51 / 52
        np.testing.assert_allclose(sigmoid(made(np.array([1.0, -1.0]))), [expected, 1 - expected], rtol=1e-6)


def test_prior_shift_is_the_formula_for_undersampled_negatives():
    rate, q = 0.05, np.linspace(0.01, 0.99, 9)
    logit = np.log(q / (1 - q))
    np.testing.assert_allclose(sigmoid(logit + prior_shift(rate)), rate * q / (rate * q - q + 1), rtol=1e-12)
    # And by counting: of 1,000 negatives 50 are kept, beside 20 positives.
    assert sigmoid(np.log(20 / 50) + prior_shift(0.05)) == pytest.approx(20 / 1020)
