import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from metrics_cases import rows

from srsjax.metrics.threshold import classification


@given(rows(), st.sampled_from([0.0, 0.2, 0.5, 0.75, 1.0]))
def test_classification_is_scikit_learns(case, threshold):
    case = case._replace(scores=(case.scores + 2) / 4)
    found = classification(*case[:3], threshold)
    split = case.split_labels().counted()
    if not len(split.scores):
        assert all(math.isnan(value) for value in found)
        return
    predicted = split.scores >= threshold
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        split.labels, predicted, sample_weight=split.weights, average="binary", pos_label=1, zero_division=np.nan
    )
    accuracy = sklearn.metrics.accuracy_score(split.labels, predicted, sample_weight=split.weights)
    assert found == pytest.approx((accuracy, precision, recall, f1), abs=1e-12, nan_ok=True)


def test_a_probability_on_the_threshold_is_predicted_positive():
    assert classification(np.array([0.5]), np.ones(1), np.ones(1), 0.5) == (1, 1, 1, 1)


def test_nothing_found_has_no_precision_but_recall_and_f1_of_0():
    found = classification(np.array([0.1, 0.2]), np.array([0, 1]), np.ones(2), 0.5)
    assert found.accuracy == 0.5 and math.isnan(found.precision) and found.recall == found.f1 == 0
