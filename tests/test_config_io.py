"""`config.json`: what is written comes back exactly, and what cannot be read is one line."""

from __future__ import annotations

import json

import pytest

from srsjax.config import (
    Catalogue,
    Categorical,
    Data,
    History,
    Numeric,
    Optimizer,
    Schema,
    Table,
    Text,
    TrainConfig,
    Vector,
)
from srsjax.config_io import from_json, leaves, to_json
from srsjax.errors import InputError, nearest

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
    ],
)
def test_the_nearest_name(name, expected):
    assert nearest(name, [leaf.name for leaf in leaves(TrainConfig())]) == expected
