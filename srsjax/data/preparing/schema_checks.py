"""Whether schema, tasks and data settings fit each other and the columns of the files: refused before a row is read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from srsjax import config
from srsjax.config import TrainConfig, columns
from srsjax.config_data import LABELS, LOSSES
from srsjax.config_io import bounds
from srsjax.data.kinds import kind_of
from srsjax.data.preparing.sources import Sources
from srsjax.data.reading import tables
from srsjax.errors import InputError, did_you_mean

TASK_SETTINGS = {
    "softmax": ("binary",),
    "label_smoothing": ("binary", "multiclass"),
    "positive": ("binary", "listwise", "pairwise", "contrastive"),
    "impressions": ("binary", "listwise", "pairwise"),
    "classes": ("multiclass",),
}
"""Settings of a task that only some kinds have."""


def check_schema(train: TrainConfig) -> Sources:
    """Checks schema and data settings against each other and against the files' columns.

    Raises InputError for the first thing that cannot be.
    """
    sources = Sources(train.schema, train.data)
    if train.data.hash_key_env and not train.data.user:
        raise InputError("data.hash_key_env: found no data.user, expected the column whose values it is for")
    _ = sources.secret  # what is sent to other machines has it
    _check_names(sources)
    for side in ("context", "candidate"):
        for feature in getattr(train.schema, side):
            _check_feature(sources, side, feature)
    _check_negatives(sources)
    for number, task in enumerate(train.schema.tasks):
        _check_task(task, train.schema.tasks[:number])
        if LABELS[task.kind] == "class" and sources.hides(task.column or task.name):
            raise InputError(
                f"data.private: found {task.column or task.name!r}, the label column of task {task.name!r}, whose "
                "classes are names in the run, its report and its scores; expected others"
            )
    _check_split(train.data.split)
    _check_columns(sources)
    return sources


def _check_names(sources: Sources) -> None:
    data = sources.data
    if not sources.schema.candidate:
        raise InputError("schema.candidate: no features, expected at least one feature of the item shown")
    if not sources.schema.tasks:
        raise InputError("schema.tasks: no tasks, expected at least one label to predict")
    _check_unique("schema", "feature", [feature.name for feature in sources.features])
    _check_unique("schema.tasks", "task", [task.name for task in sources.schema.tasks])
    _check_unique("data.catalogues", "catalogue", [catalogue.name for catalogue in data.catalogues])
    for catalogue in data.catalogues:
        where = f"data.catalogues {catalogue.name!r}"
        if not columns(catalogue.key):
            raise InputError(f"{where}: no key, expected its key column or columns")
        if columns(catalogue.on) and len(columns(catalogue.on)) != len(columns(catalogue.key)):
            raise InputError(
                f"{where}: on={catalogue.on!r} and key={catalogue.key!r} have different numbers of columns"
            )
        if catalogue.name in columns(data.explode):
            raise InputError(f"{where}: also a column of data.explode; give the catalogue another name")


def _check_unique(where: str, what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: two {what}s are named {name!r}, expected unique names")
        # Names become file names of the store and, with `catalogue.column`, prefixes.
        if not re.fullmatch(r"\w[\w-]*", name):
            raise InputError(f"{where}: a {what} is named {name!r}, expected letters, digits, _ and -")


def _check_feature(sources: Sources, side: str, feature: config.Feature) -> None:
    where = f"schema.{side} feature {feature.name!r}"
    table = sources.column(feature).table
    if table and sources.catalogues[table].side != side:
        raise InputError(
            f"{where}: catalogue {table!r} describes the {sources.catalogues[table].side}; "
            f'move the feature there or set side="{side}" in the catalogue'
        )
    for name, limit in bounds(type(feature)).items():
        if not limit.allow(value := getattr(feature, name)):
            raise InputError(f"{where}: found {name}={value}, expected {limit.wanted(value)}")
    shown = sources.column(feature)
    if (shown.table, shown.name) in map(sources.place, sources.data.private) and not getattr(feature, "private", True):
        raise InputError(f"{where}: found a column of data.private, expected private=True in a feature that reads one")
    kind = kind_of(feature)
    if side not in kind.sides:
        (other,) = kind.sides
        raise InputError(f"{where}: a {type(feature).__name__} describes the {other}; move it to schema.{other}")
    if kind.items is not None:
        _check_items(sources, where, kind.items)
    if sources.since(feature) and table:
        raise InputError(f"{where}: found since in a column of a catalogue, expected a column of the log")
    if kind.training_only and sources.column(feature).table:
        raise InputError(f"{where}: found training_only in a column of a catalogue, expected one of the log")
    if problem := kind.problem() or _problem_of_sharing(sources, feature) or _problem_along(sources, side, feature):
        raise InputError(f"{where}: {problem}")


def _problem_of_sharing(sources: Sources, feature: config.Feature) -> str:
    """What is wrong with the feature that a Categorical is like; empty where nothing is."""
    if not isinstance(feature, config.Categorical) or not (feature.like or feature.pooling == "attention"):
        return ""
    others = {each.name: each for each in sources.features if isinstance(each, config.Categorical) and not each.like}
    other = others.get(feature.like)
    if other is None:
        expected = ", ".join(others) or "none: no other Categorical has a vocabulary of its own"
        return f"found like={feature.like!r}, expected one of {expected}{did_you_mean(feature.like, others)}"
    if other.hash_buckets != feature.hash_buckets:
        return f"found hash_buckets={feature.hash_buckets}, expected {other.hash_buckets} as in {feature.like!r}"
    if other.width != feature.width:
        return f"found width={feature.width}, expected {other.width} as in {feature.like!r}"
    of_candidate = any(each.name == feature.like for each in sources.schema.candidate)
    if feature.pooling == "attention" and not (of_candidate and other.max_values == 1 and feature.max_values > 1):
        return "found pooling='attention', expected a list that is like a single value of the candidate"
    return ""


def _problem_along(sources: Sources, side: str, feature: config.Feature) -> str:
    """What is wrong with a list of times, or the list that a Categorical says more of; empty where nothing is."""
    if not isinstance(feature, config.Categorical) or not (feature.along or feature.times):
        return ""
    if sources.column(feature).table:
        return "found a column of a catalogue with `along` or `times`, expected one of the log"
    if not feature.along:
        return ""
    of_side = sources.schema.context if side == "context" else sources.schema.candidate
    others = {
        each.name: each
        for each in of_side
        if isinstance(each, config.Categorical) and each.max_values > 1 and not each.along and not each.of
    }
    other = others.get(feature.along)
    if other is None:
        expected = ", ".join(others) or "none: this side has no other list"
        return (
            f"found along={feature.along!r}, expected a list of the same side, without `of`: "
            f"{expected}{did_you_mean(feature.along, others)}"
        )
    for name in ("max_values", "width"):
        if getattr(feature, name) != getattr(other, name):
            return f"found {name}={getattr(feature, name)}, expected {getattr(other, name)} as in {other.name!r}"
    if sources.column(other).table:
        return f"found along={feature.along!r}, which is a column of a catalogue, expected one of the log"
    return ""


def _check_items(sources: Sources, where: str, catalogue: str) -> None:
    if catalogue not in sources.catalogues:
        raise InputError(f"{where}: {_no_catalogue(sources, catalogue)}")
    if len(columns(sources.catalogues[catalogue].key)) != 1:
        raise InputError(f"{where}: catalogue {catalogue!r} has a key of several columns, expected one")


def _no_catalogue(sources: Sources, name: str) -> str:
    if not sources.catalogues:
        return f"no catalogue {name!r}; data.catalogues is empty"
    return f"no catalogue {name!r}, there are {', '.join(sources.catalogues)}{did_you_mean(name, sources.catalogues)}"


def _check_task(task: config.Task, earlier: Sequence[config.Task]) -> None:
    where = f"schema.tasks task {task.name!r}"
    if task.after:
        fitting = [each.name for each in earlier if each.kind == "binary"]
        if task.kind != "binary" or task.after not in fitting:
            expected = f"an earlier binary task: {', '.join(fitting) or 'there is none'}"
            raise InputError(f"{where}: found after={task.after!r} in a task of kind {task.kind}, expected {expected}")
    for name, kinds in TASK_SETTINGS.items():
        if getattr(task, name) and task.kind not in kinds:
            raise InputError(f"{where}: {name} is for kind {' and '.join(kinds)}; found kind {task.kind}")
    if task.loss and task.loss not in LOSSES[task.kind]:
        expected = ", ".join(LOSSES[task.kind])
        raise InputError(f"{where}: found loss={task.loss!r}, expected one of {expected} for kind {task.kind}")
    if task.positive.startswith(">=") and not re.fullmatch(r">=[+-]?\d+(\.\d+)?", task.positive):
        raise InputError(f"{where}: found positive={task.positive!r}, expected a value, or a number behind >= (>=8)")
    if task.loss == "rcr" and not task.softmax:
        raise InputError(f"{where}: loss rcr without softmax is cross_entropy; set softmax, its listwise share")
    if task.classes and len(set(task.classes)) != len(task.classes):
        raise InputError(f"{where}: a class is named twice in {', '.join(task.classes)}")
    if len(task.classes) == 1:
        raise InputError(f"{where}: found one class, expected at least two")
    if task.positive and task.impressions:
        raise InputError(f"{where}: positive and impressions are both set; the label is a text or a count, not both")
    for name, low, high in (
        ("softmax", 0, 1),
        ("label_smoothing", 0, 1),
        ("weight_power", 0, 10),
        ("loss_weight", 0, 1e9),
    ):
        if not low <= getattr(task, name) <= high:
            raise InputError(f"{where}: found {name}={getattr(task, name)}, expected {low} to {high:g}")


def _check_negatives(sources: Sources) -> None:
    if not sources.data.negatives:
        if sources.data.negatives_by:
            raise InputError("data.negatives_by: found data.negatives 0, expected at least 1")
        return
    tables = [sources.column(feature).table for feature in sources.schema.candidate]
    home = sources.home or next(filter(None, tables), "")  # without one, name a feature that is not of the first
    for feature, table in zip(sources.schema.candidate, tables, strict=True):
        if table != home or not home:
            raise InputError(
                f"data.negatives: candidate feature {feature.name!r} is not read from the catalogue of the candidates, "
                "and a drawn item has no row in the log; read all candidate features from one catalogue"
            )
    for task in sources.schema.tasks:
        if LABELS[task.kind] not in ("probability", "grade") or task.impressions:
            raise InputError(f"data.negatives: task {task.name!r} has no label 0 that a drawn item could have")
    if sources.data.oracle:
        raise InputError("data.negatives: data.oracle knows no probability of a drawn item; leave one of them out")


def _check_split(split: config.Split) -> None:
    if split.valid < 0 or split.test < 0 or split.valid + split.test >= 1:
        shares = f"valid={split.valid} and test={split.test}"
        raise InputError(f"data.split: found {shares}, expected shares >= 0 that leave some for train")
    if split.by in ("time", "column") and len(columns(split.column)) != 1:
        raise InputError(f"data.split: by={split.by!r} needs one column, found {len(columns(split.column))}")
    named = [value for value in split.values if value]
    if not split.values[0] or len(set(named)) != len(named):
        raise InputError(f"data.split: found values={split.values}, expected different ones for train, valid, test")


def _check_columns(sources: Sources) -> None:
    """Every column that is named exists; the message names the nearest one that does."""
    data = sources.data
    if data.split.by == "time" and sources.split[0].table:
        raise InputError(f"data.split: the time column {data.split.column!r} must be a column of the log")
    explode = columns(data.explode)
    if explode:
        tables.require_columns(data.log, explode)
    needed = sources.log_columns(labels=True, splitting=True)
    in_log = tables.table_schema(data.log)
    for name in needed:
        prefix = name.partition(".")[0]
        if name not in in_log and "." in name and prefix not in in_log and data.catalogues:
            raise InputError(f"column {name!r}: {_no_catalogue(sources, prefix)}")
    tables.require_columns(data.log, needed, explode)
    tables.require_columns(data.log, data.keys, explode)
    private = map(sources.place, data.private)
    for table, own in itertools.groupby(sorted(private), key=lambda place: place[0]):
        tables.require_columns(
            sources.catalogues.get(table, data.log), [name for _, name in own], () if table else explode
        )
    for name, catalogue in sources.catalogues.items():
        wanted: Iterable[str] = (column.name for column in sources.catalogue_columns(name, splitting=True))
        tables.require_columns(catalogue, [*columns(catalogue.key), *wanted])
