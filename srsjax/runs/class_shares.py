"""Classes that are more or less frequent where a model is used than in its logs (`evaluate.class_shares`).

The rows of the validation split are weighed until the named classes have these shares; what calibration then fits
(`fit_shares`) is true for that mix. Of classes that are rare in training rows, as queries out of scope are, many more
are found then: the most probable class is chosen by what is asked in production.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from srsjax.config import TrainConfig
from srsjax.data.store.arrays import Split
from srsjax.errors import InputError, did_you_mean
from srsjax.metrics.recalibration import fit_shares
from srsjax.model.spec import Outputs


def check_class_shares(config: TrainConfig) -> None:
    """Raises InputError where the shares are none, or nothing would fit them."""
    shares = config.evaluate.class_shares
    if not shares:
        return
    if not any(task.kind == "multiclass" for task in config.schema.tasks):
        raise InputError("evaluate.class_shares: found shares of classes, but no task is multiclass")
    if config.evaluate.calibration != "auto":
        raise InputError(
            f"evaluate.calibration: found {config.evaluate.calibration!r}, expected auto: it is what fits "
            "evaluate.class_shares"
        )
    wrong = {name: share for name, share in shares.items() if not 0 < share < 1}
    if wrong or not sum(shares.values()) < 1:
        found = ", ".join(f"{name} {share:g}" for name, share in (wrong or shares).items())
        raise InputError(f"evaluate.class_shares: found {found}, expected shares between 0 and 1 of less than 1 in all")


def check_shared_classes(config: TrainConfig, outputs: Sequence[Outputs], valid: Split | None) -> None:
    """Raises InputError for a class that no multiclass task has, or that no validation row has: now, not after
    training."""
    shares = config.evaluate.class_shares
    if not shares:
        return
    names = [name for each in outputs for name in each.classes]
    for name in shares:
        if name not in names:
            raise InputError(
                f"evaluate.class_shares: found {name!r}, expected a class of a multiclass task"
                f"{did_you_mean(name, names)}"
            )
    for t, each in enumerate(outputs):
        mass = np.zeros(each.count) if valid is None else class_mass(valid.labels[:, t], valid.weights[:, t], each)
        for name in shares:
            if name in each.classes and not mass[each.classes.index(name)]:
                raise InputError(
                    f"evaluate.class_shares: the validation split has no row of class {name!r}, whose share would be "
                    "fitted on it"
                )


def class_mass(labels: np.ndarray, weights: np.ndarray, outputs: Outputs) -> np.ndarray:
    """Weight of the rows of each class, [K] float64; `labels`, `weights` [M]."""
    return np.bincount(np.asarray(labels, np.int64), np.asarray(weights, np.float64), outputs.count)


def weigh(labels: np.ndarray, weights: np.ndarray, outputs: Outputs, shares: Mapping[str, float]) -> np.ndarray:
    """Weights [M] float64 of the same sum, by which the named classes have these shares and the others keep theirs to
    one another."""
    mass, wanted = class_mass(labels, weights, outputs), np.full(outputs.count, np.nan)
    for name, share in shares.items():
        wanted[outputs.classes.index(name)] = share
    rest = np.isnan(wanted)
    wanted[rest] = mass[rest] / mass[rest].sum() * (1 - np.nansum(wanted))
    factor = np.divide(wanted * mass.sum(), mass, out=np.zeros_like(mass), where=mass > 0)
    return np.asarray(weights, np.float64) * factor[np.asarray(labels, np.int64)]


def shares_of(config: TrainConfig, outputs: Outputs) -> dict[str, float]:
    """The shares of this task's own classes."""
    return {name: share for name, share in config.evaluate.class_shares.items() if name in outputs.classes}


def fit_of(outputs: Outputs, shares: Mapping[str, float]):
    """`fit_shares` for the named classes."""
    return partial(fit_shares, classes=[outputs.classes.index(name) for name in shares])
