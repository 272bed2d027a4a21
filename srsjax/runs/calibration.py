"""The calibration of a run: chosen on the validation split, kept in `calibration.json`, applied to every score.

For each binary and multiclass task the maps of `srsjax.metrics.recalibration` are compared by log loss on rows that
they were not fitted on: the users (impressions, without `data.user`) of the validation split are divided into `FOLDS`
parts, and each part is measured with the maps fitted on the others. The best one is taken where its mean gain over the
plain logits is more than `SURE` standard errors, users being independent; else the logits stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from types import MappingProxyType
from typing import Any

import numpy as np

from srsjax.config import Categorical, Schema, Task, TrainConfig
from srsjax.data.preparing.sources import Sources
from srsjax.data.store.arrays import Items, Split
from srsjax.errors import InputError
from srsjax.files import write_json
from srsjax.metrics.recalibration import (
    Affine,
    Isotonic,
    Map,
    fit_isotonic,
    fit_platt,
    fit_temperature,
    map_from_json,
    prior_shift,
)
from srsjax.model.spec import Outputs
from srsjax.objectives import objectives
from srsjax.runs.class_shares import check_class_shares, fit_of, shares_of, weigh
from srsjax.runs.run_folder import RunFolder

Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], Map | None]

METHODS: dict[str, dict[str, Fit]] = {
    "binary": {"temperature": fit_temperature, "platt": fit_platt, "isotonic": fit_isotonic},
    "multiclass": {"temperature": fit_temperature, "platt": fit_platt},
}
"""By kind of task; other kinds predict no probability."""

FOLDS = 5
SURE = 2.0
"""Standard errors that a gain must exceed."""
SLICE_ROWS, SLICE_LABELS = 500, 50
"""Least rows, and least rows of each label, of a category with a map of its own."""


@dataclass(frozen=True)
class TaskCalibration:
    """What was chosen for one task."""

    method: str = "none"
    map: Map | None = None
    """None leaves the logits as they are."""
    slices: Mapping[int, Affine] = field(default_factory=dict)
    """By category of `Calibration.slice`: a map that comes after `map`."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """How it was chosen: `why` where nothing could be fitted; else the log loss of the plain logits, and of each map
    its log loss on rows that it was not fitted on, its gain and the standard error of that, all in nats."""

    def __call__(self, logits: np.ndarray, categories: np.ndarray | None) -> np.ndarray:
        """[M] or [M, K] -> the same shape, float64; `categories` [M] are those of the slice."""
        made = logits if self.map is None else self.map(logits)
        if self.slices and categories is not None:
            made = np.array(made, np.float64)
            for category, own in self.slices.items():
                rows = categories == category
                made[rows] = own(made[rows])
        return made


@dataclass(frozen=True)
class Calibration:
    """The maps of all tasks of a run; without any, logits are left as they are."""

    step: int = -1
    """The checkpoint whose logits they are for."""
    tasks: Mapping[str, TaskCalibration] = field(default_factory=dict)
    slice: str = ""
    """The categorical feature with maps of its own."""
    items: int = 0
    """Rows of the catalogue from which `data.negatives` were drawn all alike; 0 where none were."""

    def changes(self, task: str) -> bool:
        """Whether the scores of a task are others than without it."""
        own = self.tasks.get(task, TaskCalibration())
        return own.map is not None or bool(own.slices)

    def apply(self, schema: Schema, outputs: Sequence[Outputs], split: Split, items: Items, logits: np.ndarray):
        """Logits [M, K] of all tasks, calibrated: float64, or the same array where nothing changes."""
        if not any(self.changes(task.name) for task in schema.tasks):
            return logits
        made = logits.astype(np.float64)
        categories = None
        if any(own.slices for own in self.tasks.values()):
            categories = slice_of(schema, self.slice, split, items)
        for objective, own in objectives(schema.tasks, outputs):
            if self.changes(objective.task.name):
                columns = made[:, own] if objective.kind == "multiclass" else made[:, own.start]
                new = self.tasks[objective.task.name](columns, categories)
                made[:, own] = new if new.ndim == 2 else new[:, None]
        return made

    def folded(self, params: Mapping[str, np.ndarray], outputs: Sequence[Outputs]) -> dict[str, np.ndarray] | None:
        """Parameters of a model whose logits are the calibrated ones: the head's product and bias, scaled. None where
        no head can be so: a map is not affine, or of one slice, or of a task whose logit is made of two.
        """
        changed = [self.tasks[each.task] for each in outputs if self.changes(each.task)]
        if not changed:
            return dict(params)
        if any(each.after for each in outputs) or any(own.slices or isinstance(own.map, Isotonic) for own in changed):
            return None
        maps = [self.tasks.get(each.task, TaskCalibration()).map or Affine((1.0,), (0.0,)) for each in outputs]
        scale, offset = (
            np.concatenate([np.resize(getattr(own, name), each.count) for own, each in zip(maps, outputs, strict=True)])
            for name in ("scale", "offset")
        )
        kernel, bias = (np.asarray(params[f"head/dense/{name}"], np.float64) for name in ("kernel", "bias"))
        made = {"head/dense/kernel": kernel * scale, "head/dense/bias": bias * scale + offset}
        return dict(params) | {path: array.astype(np.float32) for path, array in made.items()}

    def save(self, folder: RunFolder) -> None:
        """Writes `calibration.json`."""
        tasks = {
            name: {
                "method": own.method,
                "map": own.map and own.map.to_json(),
                "slices": {str(category): each.to_json() for category, each in own.slices.items()},
                "found": dict(own.found),
            }
            for name, own in self.tasks.items()
        }
        write_json(
            folder.calibration_file, {"step": self.step, "slice": self.slice, "items": self.items, "tasks": tasks}
        )

    @classmethod
    def load(cls, folder: RunFolder) -> Calibration:
        """That of a finished run; a run of an earlier version has none.

        Raises InputError where the file is broken, or of another checkpoint than the best one.
        """
        if not folder.calibration_file.exists():
            return cls()
        data, step = folder.read(folder.calibration_file), folder.best_step()
        try:
            tasks = {
                name: TaskCalibration(
                    own["method"],
                    map_from_json(own["map"]) if own["map"] else None,
                    {int(category): _affine(each) for category, each in own["slices"].items()},
                    own["found"],
                )
                for name, own in data["tasks"].items()
            }
            made = cls(data["step"], tasks, data["slice"], data["items"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(f"{folder.calibration_file}: found other data, expected what srsjax.train wrote") from None
        if made.step != step:
            raise InputError(f"{folder.calibration_file}: found step {made.step}, expected {step}, the best checkpoint")
        return made


def check_calibration(config: TrainConfig) -> None:
    """Raises InputError where `evaluate.calibration` does not fit the tasks, or its slice is no feature."""
    check_class_shares(config)
    asked, tasks = config.evaluate.calibration, config.schema.tasks
    kinds = {task.kind: task.name for task in tasks if task.kind in METHODS}
    if asked not in ("auto", "none"):
        if not kinds:
            raise InputError(f"evaluate.calibration: found {asked!r}, but no task predicts a probability; set none")
        for kind, name in kinds.items():
            if asked not in METHODS[kind]:
                raise InputError(
                    f"evaluate.calibration: found {asked!r}, expected one of {', '.join(METHODS[kind])}, auto or none "
                    f"for the {kind} task {name!r}"
                )
    wanted = config.evaluate.calibration_slice
    names = [each.name for each in one_value_categories(config.schema) if not each.training_only]
    if wanted and wanted not in names:
        raise InputError(
            f"evaluate.calibration_slice: found {wanted!r}, expected a Categorical feature of one value, which scoring "
            "has too" + (f": {', '.join(names)}" if names else ", of which the schema has none")
        )
    if config.evaluate.negatives_rate == 0 and (not config.data.negatives or config.data.negatives_by):
        raise InputError(
            "evaluate.negatives_rate: found 0, expected the share of negatives that were kept: it is known only of "
            "data.negatives drawn all alike"
        )


def fit_calibration(
    config: TrainConfig, outputs: Sequence[Outputs], split: Split, items: Items, logits: np.ndarray, step: int
) -> Calibration:
    """The calibration of a run, from the logits [M, K] of the best checkpoint on the validation split."""
    settings, tasks = config.evaluate, {}
    categories = (
        slice_of(config.schema, settings.calibration_slice, split, items) if settings.calibration_slice else None
    )
    users = np.repeat(split.user, np.diff(split.candidates))
    for t, (made, own) in enumerate(objectives(config.schema.tasks, outputs)):
        if made.kind in METHODS:
            known = split.weights[:, t] > 0
            labels, weights = split.labels[known, t], split.weights[known, t]
            shares = shares_of(config, outputs[t])
            tasks[made.task.name] = fit_task(
                made.task,
                settings.calibration,
                made.measured(logits[:, own])[known],
                labels,
                weigh(labels, weights, outputs[t], shares) if shares else weights,
                users[known],
                None if categories is None else categories[known],
                {"shares": fit_of(outputs[t], shares)} if shares else {},
            )
    return Calibration(step, tasks, settings.calibration_slice, _drawn_from(config, items))


def fit_task(
    task: Task,
    asked: str,
    logits: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    users: np.ndarray,
    categories: np.ndarray | None = None,
    more: Mapping[str, Fit] = MappingProxyType({}),
) -> TaskCalibration:
    """The calibration of one task: `asked` names a method, `auto` chooses one, `none` takes none.

    Args:
        logits: [M], or [M, K] of classes.
        labels, weights: [M]; weights > 0.
        users: [M] int64; rows of different users are independent.
        categories: [M] int32, of the slice; 0 is unknown and has no map of its own.
        more: further methods that `auto` chooses among.
    """
    if asked == "none":
        return TaskCalibration()
    logits, labels, weights = (np.asarray(each, np.float64) for each in (logits, labels, weights))
    number = np.unique(users, return_inverse=True)[1]
    folds = _folds(number)
    if len(folds) < FOLDS:
        return TaskCalibration(found={"why": f"fewer than {FOLDS} users or impressions with labels"})
    fits = {**METHODS[task.kind], **more} if asked == "auto" else {asked: METHODS[task.kind][asked]}
    plain = losses(logits, labels)
    found: dict[str, Any] = {"plain": {"log_loss": float(weights @ plain / weights.sum())}}
    left = {name: _left_out(fit, logits, labels, weights, folds) for name, fit in fits.items()}
    for name, held in left.items():
        if held is not None:
            found[name] = _gain(plain, losses(held, labels), weights, number)
    best = min((name for name in fits if name in found), key=lambda name: found[name]["log_loss"], default=None)
    if best is None:
        return TaskCalibration(found=found | {"why": "labels of one class, or scores in the wrong order"})
    if asked == "auto" and not _is_sure(found[best], SURE):
        best = None
    made = None if best is None else fits[best](logits, labels, weights)
    slices: dict[int, Affine] = {}
    if categories is not None and task.kind == "binary":
        held = logits if best is None else left[best]
        slices = _fit_slices(logits if made is None else made(logits), held, labels, weights, number, categories)
    return TaskCalibration(best if best is not None else "none", made, slices, found)


def losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The log loss of each row, [M] float64 in nats: of logits [M], or of [M, K] classes."""
    if logits.ndim == 1:
        return labels * np.logaddexp(0, -logits) + (1 - labels) * np.logaddexp(0, logits)
    own = np.take_along_axis(logits, labels.astype(np.int64)[:, None], axis=1)[:, 0]
    top = logits.max(1)
    return top + np.log(np.exp(logits - top[:, None]).sum(1)) - own


def slice_of(schema: Schema, name: str, split: Split, items: Items) -> np.ndarray:
    """The categories [M] int32 of a feature for every candidate of a split; 0 is missing or unknown."""
    if name in split.context_features:
        return np.repeat(np.asarray(split.context_features[name]), np.diff(split.candidates))
    if name in split.candidate_features:
        return np.asarray(split.candidate_features[name])
    if name in items.features:
        return np.asarray(items.features[name])[split.item]
    names = ", ".join(each.name for each in one_value_categories(schema))
    raise InputError(f"slice: found {name!r}, expected a Categorical feature of the schema: {names or 'it has none'}")


def for_all_negatives(config: TrainConfig, calibration: Calibration, outputs: Sequence[Outputs], logits: np.ndarray):
    """Logits [M, K] with what `evaluate.negatives_rate` adds to those of binary tasks (`prior_shift`); the same array
    where it is 1. Raises InputError for 0 where the rate is not known."""
    rate = config.evaluate.negatives_rate
    if rate == 1:
        return logits
    if rate == 0:
        if not calibration.items:
            raise InputError(
                "evaluate.negatives_rate: found 0, but the run does not know how many items negatives were drawn from; "
                "give the share of negatives that were kept"
            )
        rate = config.data.negatives / calibration.items
    kinds = np.concatenate([[each.kind == "binary"] * each.count for each in outputs])
    return logits + np.where(kinds, prior_shift(rate), 0.0)


def _drawn_from(config: TrainConfig, items: Items) -> int:
    """Rows of the catalogue that `data.negatives` are drawn from all alike; 0 where none are."""
    sources = Sources(config.schema, config.data)
    if not config.data.negatives or config.data.negatives_by or sources.home is None:
        return 0
    # A row of missing features comes after those of the catalogue, and is never drawn.
    return len(items.tokens) - (sources.catalogues[sources.home].unknown == "missing")


def one_value_categories(schema: Schema) -> list[Categorical]:
    """The features that divide candidates into groups."""
    both = (*schema.context, *schema.candidate)
    return [each for each in both if isinstance(each, Categorical) and each.max_values == 1]


def _affine(data: dict[str, Any]) -> Affine:
    made = map_from_json(data)
    if not isinstance(made, Affine):
        raise ValueError("a slice has an affine map")
    return made


def _folds(number: np.ndarray) -> list[np.ndarray]:
    """`FOLDS` masks [M] of rows, every user in one of them; users [M] are numbered from 0."""
    count = int(number.max(initial=-1)) + 1
    of_user = np.random.default_rng(0).permutation(count) % FOLDS
    return [of_user[number] == fold for fold in range(min(FOLDS, count))]


def _left_out(fit: Fit, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, folds: list[np.ndarray]):
    """Calibrated logits of every row by the map fitted on the other folds; None where one cannot be fitted."""
    out = np.array(logits, np.float64)
    for fold in folds:
        made = fit(logits[~fold], labels[~fold], weights[~fold])
        if made is None:
            return None
        out[fold] = made(logits[fold])
    return out


def _gain(before: np.ndarray, after: np.ndarray, weights: np.ndarray, number: np.ndarray) -> dict[str, float]:
    """Log loss after, and the mean gain with its standard error over users: that of a ratio of sums over users,

    gain = sum_u D_u / W,   error^2 = n / (n - 1) * sum_u (D_u - gain W_u)^2 / W^2
    """
    total = weights.sum()
    gained, mass = np.bincount(number, weights * (before - after)), np.bincount(number, weights)
    gain, count = gained.sum() / total, int(np.count_nonzero(mass))
    error = np.sqrt(count / max(count - 1, 1) * np.sum((gained - gain * mass) ** 2)) / total
    return {"log_loss": float(weights @ after / total), "gain": float(gain), "error": float(error)}


def _is_sure(found: Mapping[str, float], errors: float) -> bool:
    return found["gain"] > errors * found["error"]


def _fit_slices(logits, held, labels, weights, number, categories) -> dict[int, Affine]:
    """The Platt map of each category that has enough rows and gains, on rows that it was not fitted on, more than
    chance would give the luckiest of all categories (Bonferroni). `held` [M] are logits of the overall map fitted on
    the other folds, `logits` those of the one fitted on all rows."""
    large = [
        int(category)
        for category, rows in zip(*np.unique(categories, return_counts=True), strict=True)
        if category > 0 and rows >= SLICE_ROWS
    ]
    errors = NormalDist().inv_cdf(NormalDist().cdf(SURE) ** (1 / max(len(large), 1)))
    found = {}
    for category in large:
        rows = categories == category
        own = (held[rows], labels[rows], weights[rows])
        positives = float(labels[rows].sum())
        if not SLICE_LABELS <= positives <= np.count_nonzero(rows) - SLICE_LABELS:
            continue
        users = np.unique(number[rows], return_inverse=True)[1]
        folds = _folds(users)
        left = _left_out(fit_platt, *own, folds) if len(folds) == FOLDS else None
        if left is None or not _is_sure(_gain(losses(own[0], own[1]), losses(left, own[1]), own[2], users), errors):
            continue
        made = fit_platt(logits[rows], *own[1:])
        if isinstance(made, Affine):
            found[category] = made
    return found
