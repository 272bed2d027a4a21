"""Times of the items of a list, and what else is said of them: read as categories that go with the items."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srsjax.config import Categorical, Data, Schema, Split, Table, Task, TrainConfig
from srsjax.data.inputs import input_specs
from srsjax.data.preparing.encode import load_encoder
from srsjax.data.preparing.prepare import prepare
from srsjax.data.reading.listed_times import DAYS, categories
from srsjax.errors import InputError

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)  # a Wednesday
AGO = ([10, 3600], [], [86400 * 3], None, [0.5, 7, 3601])
"""Seconds before the request, of the items of each row."""
BOUGHT = (["a", "b"], [], ["c"], None, ["a", "c", "b"])
RECENT = (["2^3 s", "2^11 s"], [], ["2^17 s"], [], ["0 s", "2^2 s", "2^11 s"])
LISTS = (
    Categorical("bought", max_values=3),
    Categorical("when", max_values=3, along="bought", times="recency", until="time"),
)
SECONDS = st.none() | st.integers(-(10**9), 4 * 10**9).map(float) | st.floats(-1e9, 4e9)


@given(st.lists(st.none() | st.lists(SECONDS, max_size=5), max_size=6), st.lists(st.none() | SECONDS, min_size=6))
def test_categories_are_those_of_the_calendar(lists, until):
    """Against Python's own calendar and whole numbers."""
    until = until[: len(lists)]
    values = pa.array(lists, pa.large_list(pa.float64()))

    def expected(name):
        return [
            None if row is None else [None if t is None else name(t, now) for t in row]
            for row, now in zip(lists, until, strict=True)
        ]

    def date(t):
        return datetime(1970, 1, 1) + timedelta(seconds=int(np.floor(t)))

    def recency(t, now):
        if now is None:
            return None
        age = now - t
        return "later" if age < 0 else "0 s" if age < 1 else f"2^{int(age).bit_length() - 1} s"

    assert categories(values, "hour", None).to_pylist() == expected(lambda t, now: f"{date(t).hour:02d} h")
    assert categories(values, "weekday", None).to_pylist() == expected(lambda t, now: DAYS[date(t).weekday()])
    assert categories(values, "recency", pa.array(until, pa.float64())).to_pylist() == expected(recency)


def iso(ago: float) -> str:
    return (NOW - timedelta(seconds=ago)).isoformat()


FORMS = {
    "timestamps": lambda rows: pa.array(
        [None if row is None else [NOW - timedelta(seconds=each) for each in row] for row in rows],
        pa.list_(pa.timestamp("us", "UTC")),
    ),
    "ISO texts": lambda rows: pa.array([None if row is None else [iso(each) for each in row] for row in rows]),
    "numbers": lambda rows: pa.array([None if row is None else [NOW.timestamp() - x for x in row] for row in rows]),
    "values separated by a stroke": lambda rows: pa.array(
        [None if row is None else "|".join(map(iso, row)) for row in rows]
    ),
}


def a_config(folder, when, *features: Categorical, bought=BOUGHT, copies: int = 2) -> TrainConfig:
    table = {"bought": list(bought), "when": when, "time": [NOW.isoformat()] * len(bought)}
    table |= {"item": list("abcab")[: len(bought)], "click": [n % 2 for n in range(len(bought))]}
    parts = [pa.table(table | {"part": [part] * len(bought)}) for part in ["train"] * copies + ["valid", "test"]]
    pq.write_table(pa.concat_tables(parts), folder / "log.parquet")
    return TrainConfig(
        schema=Schema(context=features or LISTS, candidate=(Categorical("item"),), tasks=(Task("click"),)),
        data=Data(
            log=Table(str(folder / "log.parquet")),
            split=Split(by="column", column="part"),
            store=str(folder / "stores"),
        ),
    )


@pytest.mark.parametrize("form", FORMS)
def test_times_are_read_as_recency_beside_their_items(tmp_path, form):
    config = a_config(tmp_path, FORMS[form](AGO))
    store = prepare(config, log=lambda _: None)
    vocabulary = store.manifest["fitted"]["vocabularies"]["when"]
    assert {*vocabulary} == {each for row in RECENT for each in row}
    names = ["", *vocabulary]
    for split in ("train", "test"):
        arrays = store.split(split).context_features
        assert arrays["when"].shape == arrays["bought"].shape and arrays["when"].shape[1] == 3
        for n, row in enumerate(np.asarray(arrays["when"]).tolist()):
            assert [names[each] for each in row] == [*RECENT[n % len(AGO)], "", "", ""][:3]
        np.testing.assert_array_equal(np.asarray(arrays["when"]) > 0, np.asarray(arrays["bought"]) > 0)
    spec = {each.name: each for each in input_specs(config.schema, store.manifest)}["when"]
    assert (spec.along, spec.values, spec.size) == ("bought", 3, len(names))
    given = {"bought": ["c", "b"], "when": [iso(3600), iso(10)], "time": NOW}
    if form == "timestamps":
        encoded = load_encoder(config, store.folder).encode_values([given], [[{"item": "a"}]])
        row = encoded.split.context_features["when"][0]
        assert [names[each] for each in row.tolist()] == ["2^11 s", "2^3 s", ""]


def test_hours_and_weekdays_need_no_other_time(tmp_path):
    hour = Categorical("hour", column="when", max_values=3, times="hour", along="bought")
    day = Categorical("day", column="when", max_values=3, times="weekday")  # of its own
    store = prepare(a_config(tmp_path, FORMS["numbers"](AGO), LISTS[0], hour, day), log=lambda _: None)
    found = store.manifest["fitted"]["vocabularies"]
    assert {*found["hour"]} == {"11 h", "10 h", "12 h"} and {*found["day"]} == {"Wednesday", "Sunday"}


def test_a_list_that_is_longer_or_shorter_than_its_items_is_refused(tmp_path):
    wrong = ([10, 3600], [], [86400 * 3, 7], None, [0.5, 7, 3601])
    with pytest.raises(InputError, match=r"row 3, column when: found .*, expected as many values as in column bought"):
        prepare(a_config(tmp_path, FORMS["numbers"](wrong)), log=lambda _: None)
    texts = [["soon"] if row else row for row in BOUGHT]
    with pytest.raises(InputError, match=r"row 1, column when: found .*soon.*, expected a list of times"):
        prepare(a_config(tmp_path, pa.array(texts)), log=lambda _: None)


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (Categorical("when", times="hour"), "found max_values=1, expected more"),
        (Categorical("when", along="bought"), "found max_values=1, expected more"),
        (Categorical("when", max_values=3, times="recency"), "found until='', expected a column"),
        (Categorical("when", max_values=3, times="hour", until="time"), "found until='time', expected a column"),
        (Categorical("when", max_values=3, times="hour", like="item"), "found times with `of` or `like`"),
        (Categorical("when", max_values=3, along="bougt"), "found along='bougt', expected a list of the same side"),
        (Categorical("when", max_values=3, along="item"), "found along='item', expected a list of the same side"),
        (Categorical("when", max_values=2, along="bought"), "found max_values=2, expected 3 as in 'bought'"),
        (Categorical("when", max_values=3, along="bought", width=4), "found width=4, expected 0 as in 'bought'"),
        (Categorical("when", max_values=3, along="bought", pooling="transformer"), "found pooling='transformer' with"),
    ],
)
def test_what_says_nothing_is_refused(tmp_path, feature, message):
    with pytest.raises(InputError, match=message):
        prepare(a_config(tmp_path, FORMS["numbers"](AGO), LISTS[0], feature), log=lambda _: None)
