"""Logs and configs that the tests of `prepare` share."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from srsjax.config import (
    Data,
    Schema,
    Split,
    Table,
    Task,
    Text,
    Tokenizer,
    TrainConfig,
)
from srsjax.data.store.arrays import SPLITS, Store

WORDS = ["red", "blue", "coat", "hat", "wool", "silk", "大衣", "帽子"]


def quiet(_: str) -> None:
    pass


def make_log(rows: int, seed: int = 0) -> dict[str, list]:
    """A flat log of requests, each with one to four rows that stand together."""
    rng = np.random.default_rng(seed)
    request = np.cumsum(rng.random(rows) < 0.4)
    item = rng.integers(0, 12, rows)
    return {
        "request": [f"r{number}" for number in request],
        "user": [f"u{number % 7}" for number in request],
        "query": [" ".join(np.random.default_rng(number).choice(WORDS, 2)) for number in request],
        "item": [f"i{number}" for number in item],
        "title": [" ".join(np.random.default_rng(100 + number).choice(WORDS, 3)) for number in item],
        "time": (1000 + request * 10 + rng.integers(0, 5, rows)).tolist(),
        "price": (rng.integers(1, 9, rows) / 2).tolist(),
        "click": rng.integers(0, 2, rows).tolist(),
        "part": [SPLITS[min(number % 10 // 4, 2)] for number in request],
    }


def write_csv(path: Path, log: dict[str, list]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([log.keys(), *zip(*log.values(), strict=True)])


SCHEMA = Schema(context=(Text("query"),), candidate=(Text("title"),), tasks=(Task("click"),))


def make_config(folder: Path, schema: Schema = SCHEMA, **data) -> TrainConfig:
    settings = {"log": Table(str(folder / "log.csv")), "split": Split(by="column", column="part")}
    settings |= {"group_by": "request", "store": str(folder / "stores")}
    return TrainConfig(schema=schema, data=Data(**settings | data), tokenizer=Tokenizer(vocab_size=200))


def texts_of(store: Store, name: str) -> list[tuple]:
    """Every candidate of a split: example, context, candidate text, labels, weights, impression, user."""
    split = store.split(name)
    return [
        (
            int(split.example[row]),
            split.context[impression].tolist(),
            store.items.tokens[split.item[row]].tolist(),
            split.labels[row].tolist(),
            split.weights[row].tolist(),
            int(impression),
            int(split.user[impression]),
        )
        for row, impression in enumerate(split.impression)
    ]


def change(name: str, row: int, value) -> dict[str, list]:
    log = make_log(40)
    log[name][row] = value
    return log


CONFIG = """
from srsjax.config import *
def get_config():
    return TrainConfig(
        schema=Schema(candidate=(Text("title"),)),
        data=Data(log=Table("log.csv"), split=Split(valid=0.0, test=0.0)),
        tokenizer=Tokenizer(vocab_size=100),
    )
"""
