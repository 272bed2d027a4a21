"""`config.json`: what is written comes back exactly, and what cannot be read is one line."""

from __future__ import annotations

import dataclasses
import json
import typing

import pytest

from srsjax.bounds import Bounds
from srsjax.config import (
    Catalogue,
    Categorical,
    Data,
    History,
    Numeric,
    Optimizer,
    Schema,
    Split,
    Table,
    Text,
    TrainConfig,
    Vector,
)
from srsjax.config_io import bounds, from_json, leaves, to_json
from srsjax.errors import InputError, did_you_mean, nearest

CONFIG = TrainConfig(
    schema=Schema(
        context=(Text("query"), History("clicked", fields=("title", "brand"))),
        candidate=(Text("title", max_tokens=9), Categorical("brand"), Numeric("price", fill=0.1), Vector("v", size=3)),
    ),
    data=Data(log=Table(("a", "b")), catalogues=(Catalogue("items", key=("a",)),), unique="*", group_by=("x",)),
    optimizer=Optimizer(args={"b2": 0.99, "eps": 1e-8}, learning_rate=1 / 3),
)


@pytest.mark.parametrize("config", [CONFIG, TrainConfig()])
def test_a_config_comes_back_from_json_exactly(config):
    assert repr(from_json(json.loads(json.dumps(to_json(config))))) == repr(config)


def test_a_feature_carries_its_class():
    written = to_json(CONFIG)
    assert [one["type"] for one in written["schema"]["context"]] == ["Text", "History"]
    assert "type" not in written["batch"]


def test_an_absent_field_takes_its_default():
    written = to_json(CONFIG)
    del written["checkpoints"], written["optimizer"]["clip_norm"], written["schema"]["context"][0]["max_tokens"]
    assert from_json(written) == CONFIG


@pytest.mark.parametrize(
    "data, expected",
    [
        ({"optimizer": {"lerning_rate": 1}}, "optimizer: unknown field lerning_rate, nearest: learning_rate"),
        ({"seeds": 1}, "unknown field seeds, nearest: seed"),
        ({"batch": {"rows": [1]}}, "batch.rows: found (1,), expected int"),
        ({"batch": 3}, "batch: found 3, expected Batch"),
        ([], "found (), expected TrainConfig"),
        ({"schema": {"context": [{"type": "Text"}]}}, "schema.context.0: no field name, which Text needs"),
        ({"schema": {"context": [{"name": "x"}]}}, None),
        ({"schema": {"context": [{"type": "Txt", "name": "x"}]}}, None),
        ({"schema": {"context": [{"type": ["Text"], "name": "x"}]}}, None),
        ({"schema": {"context": ["x"]}}, None),
        ({"data": {"split": {"values": list("abcd")}}}, None),
    ],
)
def test_what_cannot_be_read_is_one_line(data, expected):
    with pytest.raises(InputError) as caught:
        from_json(data, "runs/a/config.json")
    said = str(caught.value)
    assert said.startswith("runs/a/config.json: ")
    if expected is not None:
        assert said == f"runs/a/config.json: {expected}"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("optimizer.lerning_rate", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("optimiser.warmup", "optimizer.warmup"),
        ("batch.micro_batch", "batch.micro_batches"),
        ("lr", "optimizer.learning_rate"),
        ("wd", "optimizer.weight_decay"),
        ("warmup_steps", "optimizer.warmup"),
        ("epoch", "epochs"),
        ("vocab", "tokenizer.vocab_size"),
        ("batch_size", None),
        ("qery", None),
        ("output", None),
        ("x", None),
    ],
)
def test_the_nearest_name(name, expected):
    assert nearest(name, [leaf.name for leaf in leaves(TrainConfig())]) == expected


@pytest.mark.parametrize(
    ("name", "names", "hint"),
    [
        ("clik", ["click", "title"], "; did you mean 'click'?"),
        ("click", ["title", "item_id"], ""),  # a missing label is not a title
        ("qery", ["qery"], "; did you mean 'qery'?"),
        ("x", [], ""),
    ],
)
def test_a_hint_names_only_what_is_near(name, names, hint):
    assert did_you_mean(name, names) == hint


def dataclasses_of(cls: type) -> set[type]:
    """A dataclass and all that its fields hold."""
    found, todo = set(), [cls]
    while todo:
        kind = todo.pop()
        todo += typing.get_args(kind)
        if dataclasses.is_dataclass(kind) and kind not in found:
            found.add(kind)
            todo += typing.get_type_hints(kind).values()
    return found


@pytest.mark.parametrize("cls", sorted(dataclasses_of(TrainConfig), key=lambda cls: cls.__name__))
def test_every_number_of_every_dataclass_has_bounds_that_allow_its_default(cls):
    limits = bounds(cls)
    numbers = {name for name, hint in typing.get_type_hints(cls).items() if hint in (int, float)}
    assert set(limits) == numbers
    for field in dataclasses.fields(cls):
        if field.name in numbers:
            assert limits[field.name].allow(field.default), field.name


def test_the_dataclasses_are_found():
    assert {Text, Numeric, Vector, Schema, Data, Catalogue, Split, TrainConfig} <= dataclasses_of(TrainConfig)


@pytest.mark.parametrize(
    ("limit", "allowed", "refused", "said"),
    [
        (Bounds(least=1), (1, 2), (0, -1), "at least 1"),
        (Bounds(above=0), (1e-9,), (0, -1), "more than 0"),
        (Bounds(least=0, most=1), (0, 1), (-1e-9, 7), "at least 0 and at most 1"),
        (Bounds(least=0, below=1, also=-1), (-1, 0, 0.5), (1, -0.5), "-1, or at least 0 and less than 1"),
        (Bounds(), (-1e30, 0), (), ""),
    ],
)
def test_bounds(limit, allowed, refused, said):
    assert all(map(limit.allow, allowed)) and not any(map(limit.allow, refused)) and str(limit) == said
