"""Classes that are more frequent where a model is used than in its logs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from batches import make_split
from hypothesis import given
from hypothesis import strategies as st

from srsjax.config import Evaluate, Schema, Task, Text, TrainConfig
from srsjax.data.store.arrays import Items
from srsjax.data.store.ragged import Ragged
from srsjax.errors import InputError
from srsjax.metrics.classes import class_report, confusion_matrix
from srsjax.model.spec import Outputs
from srsjax.runs.calibration import check_calibration, fit_calibration
from srsjax.runs.class_shares import check_shared_classes, weigh

NAMES = ("order", "oos", "refund")
INTENT = (Outputs("intent", "multiclass", 3, NAMES),)
ITEMS = Items(Ragged.from_rows([[1]], np.int32), {})
CENTRES = 1.5 * np.eye(3)


def a_config(shares: dict[str, float], calibration="auto") -> TrainConfig:
    task = Task("intent", kind="multiclass")
    evaluate = Evaluate(class_shares=shares, calibration=calibration)
    return TrainConfig(schema=Schema(candidate=(Text("text"),), tasks=(task,)), evaluate=evaluate)


def questions(shares, count: int, seed: int):
    """Labels [M] in these shares and points [M, 3], normal around the centre of each class."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, count, p=shares)
    return labels, CENTRES[labels] + rng.normal(size=(count, 3))


def bayes(points: np.ndarray, shares) -> np.ndarray:
    """The exact logits for classes in these shares: log p(point, class), [M, 3]."""
    return np.log(shares) - ((points[:, None] - CENTRES) ** 2).sum(-1) / 2


def split_of(labels: np.ndarray):
    return make_split(labels[:, None], counts=np.ones(len(labels), int), user=np.arange(len(labels)))


def test_the_calibrated_model_is_the_optimum_of_the_stated_mix():
    """A model that is exact where 2 % are out of scope becomes the exact one where 30 % are: by Bayes' rule its logit
    of the class rises by log(0.3 / 0.02) - log(0.7 / 0.98), the others not at all."""
    logged, asked = np.array([0.49, 0.02, 0.49]), np.array([0.35, 0.3, 0.35])
    labels, points = questions(logged, 20_000, 0)
    logits, config = bayes(points, logged), a_config({"oos": 0.3})
    of = fit_calibration(config, INTENT, split_of(labels), ITEMS, logits, 1)
    own = of.tasks["intent"]
    assert own.method in ("shares", "platt")  # `platt` has an offset of each class, and may be as good
    new_labels, new_points = questions(asked, 20_000, 1)
    new_logits = bayes(new_points, logged)
    found = of.apply(config.schema, INTENT, split_of(new_labels), ITEMS, new_logits)
    shift = (found - new_logits)[:, 1] - (found - new_logits)[:, 0]
    # Some 400 rows of the class: the offset has a standard error of about sqrt(1 / (400 * 0.2)) = 0.11.
    assert shift.mean() == pytest.approx(np.log(0.3 / 0.02) - np.log(0.7 / 0.98), abs=0.35)

    def recall(logits: np.ndarray) -> float:
        return class_report(confusion_matrix(logits, new_labels, np.ones(len(labels))), NAMES)["oos"]["recall"]

    best = recall(bayes(new_points, asked))
    assert recall(new_logits) < 0.5 * best and recall(found) == pytest.approx(best, abs=0.08)


def test_without_shares_nothing_changes():
    labels, points = questions((0.4, 0.2, 0.4), 2000, 0)
    logits = bayes(points, np.array([0.4, 0.2, 0.4]))
    config = a_config({})
    assert fit_calibration(config, INTENT, split_of(labels), ITEMS, logits, 1).tasks["intent"].method == "none"


@given(st.lists(st.integers(1, 50), min_size=3, max_size=3), st.floats(0.01, 0.9))
def test_weighed_rows_have_the_shares_that_were_asked_for(counts, share):
    labels = np.repeat(np.arange(3), counts)
    weights = np.linspace(0.5, 2, len(labels))
    made = weigh(labels, weights, INTENT[0], {"oos": share})
    mass, before = np.bincount(labels, made), np.bincount(labels, weights)
    assert mass.sum() == pytest.approx(weights.sum())
    assert mass[1] / mass.sum() == pytest.approx(share)
    assert mass[0] / mass[2] == pytest.approx(before[0] / before[2])


@pytest.mark.parametrize(
    "config, said",
    [
        (a_config({"oos": 1.2}), "found oos 1.2, expected shares between 0 and 1"),
        (a_config({"oos": 0.5, "order": 0.5}), "less than 1 in all"),
        (a_config({"oos": 0.2}, "temperature"), "expected auto"),
        (replace(a_config({"oos": 0.2}), schema=Schema(candidate=(Text("text"),))), "no task is multiclass"),
    ],
)
def test_shares_that_fit_nothing_are_refused(config, said):
    with pytest.raises(InputError, match=said):
        check_calibration(config)


def test_a_class_that_is_not_there_is_refused_before_training():
    labels = np.array([0, 2, 0])
    with pytest.raises(InputError, match=r"found 'ooos'.*did you mean 'oos'"):
        check_shared_classes(a_config({"ooos": 0.2}), INTENT, split_of(labels))
    with pytest.raises(InputError, match="no row of class 'oos'"):
        check_shared_classes(a_config({"oos": 0.2}), INTENT, split_of(labels))
    with pytest.raises(InputError, match="no row of class 'oos'"):
        check_shared_classes(a_config({"oos": 0.2}), INTENT, None)
    check_shared_classes(a_config({"oos": 0.2}), INTENT, split_of(np.array([0, 1, 2])))
