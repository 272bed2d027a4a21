"""A config with something of everything, and how a refusal is read; what the tests of the command line share."""

from __future__ import annotations

import pytest

from srsjax.config import (
    Catalogue,
    Categorical,
    Data,
    History,
    Numeric,
    Optimizer,
    ParameterGroup,
    Schema,
    Table,
    Task,
    Text,
    TrainConfig,
    Vector,
)
from srsjax.config_io import leaves
from srsjax.errors import InputError


def get_config() -> TrainConfig:
    return TrainConfig(
        schema=Schema(
            context=(Text("query", max_tokens=16), History("clicked"), Categorical("device")),
            candidate=(Text("title", "items.title"), Numeric("price"), Vector("image", size=4)),
            tasks=(Task("click"), Task("bought")),
        ),
        data=Data(
            log=Table(("a.csv", "b.csv")),
            catalogues=(Catalogue("items.parquet", key=("shop", "item")), Catalogue("users.csv", name="users")),
            group_by="request",
        ),
        optimizer=Optimizer(args={"b2": 0.99}, groups=(ParameterGroup("^head/"),)),
    )


EXPECTED = get_config()
FIELDS = {leaf.name: leaf for leaf in leaves(EXPECTED)}


def message(call, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text
