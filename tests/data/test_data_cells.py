"""Casting columns: what is read, what is missing, and the line that names what cannot be read."""

import datetime
import decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srsjax.data.reading import cells as columns
from srsjax.data.reading.cells import Problems
from srsjax.data.reading.tables import Chunk
from srsjax.errors import InputError


def chunk(first_row=1200, **arrays) -> Chunk:
    batch = pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in arrays.items()})
    return Chunk(Path("items.parquet"), first_row, batch)


def cast(function, values, *args):
    return function(chunk(x=values), "x", *args, Problems())


def line(function, values, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        function(chunk(x=values), "x", *args, Problems(), **kwargs)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- problems


def test_the_error_line_says_where_what_and_what_to_do():
    expected = 'a number; clean it or set Numeric("price", missing="median")'
    with pytest.raises(InputError) as caught:
        columns.numbers(chunk(price=["1", "2", "cheap"]), "price", Problems(), expected)
    assert str(caught.value) == (
        'items.parquet row 1203, column price: found "cheap", expected a number; clean it or set '
        'Numeric("price", missing="median")'
    )


def test_bad_rows_are_set_aside_with_their_first_reason():
    rows = chunk(price=["1", "cheap", None, "free"], label=["1", "2", "0", "0"])
    problems = Problems("skip")
    prices, missing = columns.numbers(rows, "price", problems)
    labels, unknown = columns.labels(rows, "label", problems)
    assert prices.tolist() == [1, 0, 0, 0] and missing.tolist() == [False, True, True, True]
    assert labels.tolist() == [1, 0, 0, 0] and unknown.tolist() == [False, True, False, False]
    assert problems.mask(rows).tolist() == [False, True, False, True]
    assert [str(problem) for problem in problems.by_row.values()] == [
        'items.parquet row 1202, column price: found "cheap", expected a number',
        'items.parquet row 1204, column price: found "free", expected a number',
    ]


def test_callers_report_missing_values_with_the_value_that_stood_there():
    rows = chunk(price=["1", "n/a", None])
    problems = Problems("skip")
    _, missing = columns.numbers(rows, "price", problems)
    assert not problems.by_row
    problems.report(rows, missing, "price", "a number")
    assert [problem.found for problem in problems.by_row.values()] == ['"n/a"', "nothing"]


def test_nanoseconds_which_python_has_no_type_for_are_shown_as_text():
    """pyarrow gives them to pandas, which need not be there."""
    odd = pa.array([1, 1], pa.timestamp("ns"))
    durations = (pa.array([[1]], pa.list_(pa.duration("ns"))), pa.array([2**60], pa.duration("s")))
    for values in (odd, *durations, pa.array([1], pa.time64("ns")), pa.array([2**55], pa.timestamp("ms"))):
        said = line(columns.labels, values)
        assert said.startswith("items.parquet row 1201, column x: found ") and "\n" not in said
    assert line(columns.numbers, odd).startswith(
        'items.parquet row 1201, column x: found "1970-01-01 00:00:00.000000001"'
    )


# ---------------------------------------------------------------------------------------------- casts


@pytest.mark.parametrize(
    "values",
    [
        ["1", " 2.50 ", "-3e2", ".5", None, "", "N/A", "NaN", "+7", "true", "False"],
        pa.array([1, 2.5, -300, 0.5, None, None, float("nan"), None, 7, 1, 0], pa.float64()),
        pa.array([1, 2.5, -300, 0.5, None, None, float("nan"), None, 7, 1, 0], pa.float32()),
        pa.array(["1", "2.5", "-300", "0.5", None, "", "null", None, "7", "1", "0"]).dictionary_encode(),
        pa.array(["1", "2.5", "-300", "0.5", None, "", "null", None, "7", "1", "0"], pa.large_string()),
        [decimal.Decimal(n) if n else None for n in ["1", "2.5", "-300", "0.5", "", "", "", "", "7", "1", "0"]],
    ],
)
def test_numbers(values):
    numbers, missing = cast(columns.numbers, values)
    assert numbers.dtype == np.float64
    assert numbers.tolist() == [1, 2.5, -300, 0.5, 0, 0, 0, 0, 7, 1, 0]
    assert missing.tolist() == [False] * 4 + [True] * 4 + [False] * 3


@pytest.mark.parametrize("values", [[1, 0, None], [True, False, None], pa.array([1, 0, None], pa.uint8())])
def test_numbers_of_integers_and_booleans(values):
    numbers, missing = cast(columns.numbers, values)
    assert numbers.tolist() == [1, 0, 0] and missing.tolist() == [False, False, True]


@given(st.lists(st.floats(-3.4e38, 3.4e38), min_size=1))
def test_text_holds_the_same_numbers(values):
    assert cast(columns.numbers, [repr(value) for value in values])[0].tolist() == values


@pytest.mark.parametrize("value", ["1,000", "12 EUR", "0x10", "1_000", "inf", "1e999", "--1", "1.2.3", "１"])
def test_text_that_is_no_number(value):
    assert line(columns.numbers, ["3", value]) == (
        f'items.parquet row 1202, column x: found "{value}", expected a number'
    )


def test_types_that_are_no_number():
    assert "found a list of 2: [1, 2], expected a number" in line(columns.numbers, [None, [1, 2]])
    assert 'found "2024-01-05", expected a number' in line(columns.numbers, [datetime.date(2024, 1, 5)])
    assert "found Infinity, expected a number" in line(columns.numbers, [1.0, float("inf")])
    assert "found -1.0, expected a number >= 0" in line(columns.non_negative, [1.0, -1.0])


def test_texts():
    day = datetime.date(2024, 1, 5)
    cases = [
        (["a", "", "  ", None, " b "], ["a", None, None, None, " b "]),
        ([3, None, -4], ["3", None, "-4"]),
        ([3.0, None, 0.5, float("nan"), 2.0**52], ["3", None, "0.5", None, "4503599627370496"]),
        (pa.array([3, 0.1, None], pa.float32()), ["3", "0.1", None]),
        ([True, False, None], ["true", "false", None]),
        (pa.array([3, 0.5, None], pa.float16()), ["3", "0.5", None]),
        ([b"a", None, "红".encode()], ["a", None, "红"]),
        ([day, None], ["2024-01-05", None]),
        (pa.array([datetime.datetime(2024, 1, 5, 10)], pa.timestamp("s")), ["2024-01-05 10:00:00"]),
        (pa.array([None, None]), [None, None]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
    ]
    for values, expected in cases:
        found = cast(columns.texts, values)
        assert found.type == pa.string() and found.to_pylist() == expected
    assert line(columns.texts, [["a"]]).endswith('found a list of 1: ["a"], expected text')
    assert "row 1202" in line(columns.texts, [b"a", b"\xff\xfe"])


def test_text_lists():
    expected = [["a", "b"], ["3"], None, [], ["c d"]]
    for values in (
        [["a", None, "b"], ["3"], None, [], ["c d", ""]],
        pa.array([["a", "b"], ["3"], None, [], ["c d"]], pa.large_list(pa.large_string())),
        ['["a", null, "b"]', "3", "", "[]", "c d"],
        ["a|b", "[3]", None, "[]", " c d |"],
    ):
        found = cast(columns.text_lists, values)
        assert found.type == pa.list_(pa.string()) and found.to_pylist() == expected
    assert cast(columns.text_lists, [7, None]).to_pylist() == [["7"], None]
    assert cast(columns.text_lists, pa.array([None, None])).to_pylist() == [None, None]
    sliced = pa.array([["z"], ["a"], None, ["b", "c"]]).slice(1)
    assert cast(columns.text_lists, sliced).to_pylist() == [["a"], None, ["b", "c"]]
    for value in ('["a"', '["a", ["b"]]'):
        assert "expected a list (in text: a JSON list, or values separated by |) of text" in line(
            columns.text_lists, ["a", value]
        )


def test_vectors():
    for values in (
        [[1.0, 2.5], None, [0.0, -1.0]],
        pa.array([[1, 2.5], None, [0, -1]], pa.list_(pa.float32(), 2)),
        [["1", "2.5"], None, ["0", "-1"]],
        ["[1, 2.5]", "", "0|-1"],
    ):
        vectors, missing = cast(columns.vectors, values, 2)
        assert vectors.dtype == np.float32
        assert vectors.tolist() == [[1, 2.5], [0, 0], [0, -1]] and missing.tolist() == [False, True, False]
    assert "row 1202" in line(columns.vectors, [[1.0, 2.0], [1.0]], 2)
    assert line(columns.vectors, [["1", "x"]], 2).endswith(
        'found a list of 2: ["1", "x"], expected a list of 2 numbers'
    )
    assert "expected a list of 2 numbers" in line(columns.vectors, [[1.0, None]], 2)
    vectors, missing = columns.vectors(chunk(x=[[1.0], [1.0, 2.0]]), "x", 2, Problems("skip"))
    assert vectors.tolist() == [[0, 0], [1, 2]] and missing.tolist() == [True, False]


def test_times():
    noon = datetime.datetime(2024, 1, 5, 12, tzinfo=datetime.UTC)
    seconds = noon.timestamp()
    for values in (
        [noon, None],
        pa.array([noon, None], pa.timestamp("ns")),
        pa.array([noon, None], pa.timestamp("s", "Asia/Shanghai")),
        ["2024-01-05T12:00:00", ""],
        ["2024-01-05 12:00:00Z", None],
        ["2024-01-05T20:00:00+08:00", None],
        [seconds, None],
        [str(int(seconds)), None],
    ):
        times, missing = cast(columns.times, values)
        assert times[0] == seconds and missing.tolist() == [False, True]
    assert cast(columns.times, [noon.date()])[0][0] == cast(columns.times, ["2024-01-05"])[0][0] == seconds - 43200
    assert "row 1202" in line(columns.times, ["2024-01-05", "yesterday"])
    assert 'found "7", expected a date or time' in line(columns.times, ["2024-01-05", "7"])


def test_labels():
    for values in (
        ["0", "1", "true", "False", "0.25", ""],
        pa.array([0, 1, 1, 0, 0.25, None], pa.float64()),
    ):
        labels, missing = cast(columns.labels, values)
        assert labels.dtype == np.float32
        assert labels.tolist() == [0, 1, 1, 0, 0.25, 0] and missing.tolist() == [False] * 5 + [True]
    labels, missing = columns.labels(chunk(x=["E", "S", "", None]), "x", Problems(), positive="E")
    assert labels.tolist() == [1, 0, 0, 0] and missing.tolist() == [False, False, True, True]
    assert line(columns.labels, [0, 1, 2]) == (
        "items.parquet row 1203, column x: found 2, expected 0, 1, true, false or a probability between "
        "(for text, name the positive value: Task.positive)"
    )
    assert 'found "yes"' in line(columns.labels, ["yes"])
    assert "found -0.5" in line(columns.labels, [-0.5])


def test_click_rates():
    rows = chunk(clicks=[1, 0, 0, None], shown=[4, 2, 0, 3])
    rates, shown, missing = columns.click_rates(rows, "clicks", "shown", Problems())
    assert rates.tolist() == [0.25, 0, 0, 0] and shown.tolist() == [4, 2, 0, 3]
    assert missing.tolist() == [False, False, True, True]
    with pytest.raises(InputError) as caught:
        columns.click_rates(chunk(clicks=[1, 5], shown=[4, 2]), "clicks", "shown", Problems())
    assert str(caught.value) == (
        "items.parquet row 1202, column clicks: found 5, expected no more clicks than column shown counts impressions"
    )


# ---------------------------------------------------------------------------------------------- explode


def test_explode_lists_and_structs():
    rows = chunk(
        query=["q0", "q1", "q2", "q3"],
        item=[["a", "b"], [], None, ["c"]],
        seen=pa.array([[{"pos": 1}, None], None, [], [{"pos": 3}]]),
    )
    exploded, parent = columns.explode(rows, ["item", "seen"], Problems())
    assert exploded.batch.to_pydict() == {
        "query": ["q0", "q0", "q3"],
        "item": ["a", "b", "c"],
        "seen.pos": [1, None, 3],
    }
    assert parent.dtype == np.int64 and parent.tolist() == [0, 0, 3]
    assert [exploded.where(row) for row in range(3)] == [f"items.parquet row {n}" for n in (1201, 1201, 1204)]


def test_explode_lists_in_text():
    rows = chunk(item=['["a", "b"]', "c", ""], click=["1|0", "[0]", None])
    exploded, parent = columns.explode(rows, ["item", "click"], Problems())
    assert exploded.batch.to_pydict() == {"item": ["a", "b", "c"], "click": ["1", "0", "0"]}
    assert parent.tolist() == [0, 0, 1]


def test_explode_keeps_vectors_of_candidates():
    rows = chunk(vector=[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]])
    exploded, _ = columns.explode(rows, ["vector"], Problems())
    assert columns.vectors(exploded, "vector", 2, Problems())[0].tolist() == [[1, 2], [3, 4], [5, 6]]


def test_explode_refuses_unequal_lengths():
    rows = chunk(item=[["a"], ["b", "c"], ["d"]], click=[[1], [0], [1]])
    with pytest.raises(InputError) as caught:
        columns.explode(rows, ["item", "click"], Problems())
    assert str(caught.value) == (
        "items.parquet row 1202, column click: found a list of 1: [0], expected as many elements as column item of the "
        "row has"
    )
    problems = Problems("skip")
    exploded, parent = columns.explode(rows, ["item", "click"], problems)
    assert exploded.batch.to_pydict() == {"item": ["a", "d"], "click": [1, 1]}
    assert parent.tolist() == [0, 2] and list(problems.by_row) == [1]
    assert "expected a list" in line(lambda rows, name, problems: columns.explode(rows, [name], problems), ["[1", "2"])


@given(st.lists(st.one_of(st.none(), st.lists(st.integers(0, 9), max_size=4)), min_size=1, max_size=8))
def test_explode_gives_every_element_once(lists):
    rows = chunk(number=range(len(lists)), value=pa.array(lists, pa.list_(pa.int64())))
    exploded, parent = columns.explode(rows, ["value"], Problems())
    expected = [(row, value) for row, values in enumerate(lists) for value in values or []]
    found = list(zip(exploded.batch["number"].to_pylist(), exploded.batch["value"].to_pylist(), strict=True))
    assert found == expected and parent.tolist() == [row for row, _ in expected]


# ---------------------------------------------------------------------------------------------- found by the fuzz


def test_a_number_that_float32_cannot_hold_is_bad():
    assert "row 1202" in line(columns.numbers, ["1", "1e39"])
    assert 'found "-1e39", expected a number (in size at most 3.4e38' in line(columns.numbers, ["1", "-1e39"])
    assert "row 1202" in line(columns.numbers, [1.0, 3.5e38]) and "row 1202" in line(columns.non_negative, [1.0, 1e39])
    assert "row 1202" in line(columns.vectors, [[1.0, 2.0], [1.0, 1e39]], 2)
    assert "row 1202" in line(columns.times, [1.0, 1e39])
    problems = Problems("skip")
    values, missing = columns.numbers(chunk(x=[3.4e38, 1e39]), "x", problems)
    assert values.tolist() == [3.4e38, 0] and missing.tolist() == [False, True] and list(problems.by_row) == [1]


@pytest.mark.parametrize(
    "values",
    [["1704448800", "2024-01-05T12:00:00", "1704448801"], ["2024-01-05", "7", "2024-01-06", "2024-01-07"]],
    ids=["a date among numbers", "a number among dates"],
)
def test_the_time_that_is_unlike_the_others_is_named(values):
    said = line(columns.times, values)
    assert "row 1202" in said and f'found "{values[1]}"' in said


def test_lists_within_lists_without_end_are_bad_rows():
    assert "row 1202" in line(columns.text_lists, ["[1]", "[" * 100_000])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(2)], ids=str)
def test_bytes_that_are_no_text_are_a_bad_row(kind):
    assert "row 1202" in line(columns.texts, pa.array([b"ok", b"\xff\xfe"], kind))
    assert cast(columns.texts, pa.array([b"ok", None], kind)).to_pylist() == ["ok", None]


def test_half_a_character_in_a_list_is_a_bad_row():
    assert "row 1202" in line(columns.text_lists, [r'["\ud83d\ude42"]', r'["\ud83d"]'])
