"""Casting the columns of a chunk, with errors that name file, row, column, the value found and what was expected.

Every cast takes the chunk, the column's name and a `Problems`, and gives one value a row. A value is *missing* where it
is null, NaN or blank, or, in a column of numbers or labels, one of `MISSING_WORDS`; how to treat it is up to the
caller. A value that is present but cannot be read is a problem: depending on the policy, it stops the run or marks the
row as bad (and its result as missing).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srsjax.data.reading.tables import Chunk
from srsjax.errors import InputError

MISSING_WORDS = ("na", "n/a", "nan", "null", "none")
"""Spellings of a missing number (compared in lower case)."""

_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"

_LABEL = "0, 1, true, false or a probability between (for text, name the positive value: Task.positive)"
_LIST = "a list (in text: a JSON list, or values separated by |)"
_TIME = "a date or time (ISO 8601)"


# ---------------------------------------------------------------------------------------------- problems


@dataclass(frozen=True)
class Problem:
    """A row that cannot be read as the schema says."""

    file: str
    row: int
    """Row of the file, from 1."""
    column: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.file} row {self.row}, column {self.column}: found {self.found}, expected {self.expected}"


class Problems:
    """The problems of ONE chunk's rows, and the policy for them: `error` raises InputError at the first, `skip` keeps
    the first problem of each row. Values of `private` columns are not shown."""

    def __init__(self, on_bad_row: Literal["error", "skip"] = "error", private: Collection[str] = ()):
        self.on_bad_row, self.private = on_bad_row, private
        self.by_row: dict[int, Problem] = {}
        """Problem of each bad row of the chunk (from 0)."""

    def report(self, chunk: Chunk, bad: np.ndarray, column: str, expected: str) -> None:
        """Reports the rows where `bad` [n] bool is true: `column` does not hold what was `expected` (the end of the
        message, advice included: `a number; clean it or set Numeric("price", missing="median")`). Also used for checks
        of the caller, such as missing values under `missing="error"`."""
        file_rows = chunk.file_rows + 1
        hidden = any(name.partition(".")[0] == column or name == column for name in self.private)
        for row in np.flatnonzero(bad).tolist():
            value = _value(chunk.batch[column], row)
            found = "a private value" if hidden and value is not None else _shown(value)
            problem = Problem(str(chunk.path), int(file_rows[row]), column, found, expected)
            if self.on_bad_row == "error":
                raise InputError(str(problem))
            self.by_row.setdefault(row, problem)

    def mask(self, chunk: Chunk) -> np.ndarray:
        """[n] bool, the rows of the chunk that have a problem."""
        bad = np.zeros(len(chunk), bool)
        bad[list(self.by_row)] = True
        return bad


def _value(column: pa.Array, row: int):
    """As Python has it; what it has no type for (nanoseconds, years beyond 9999) as text."""
    try:
        return column[row].as_py()
    except (ValueError, OverflowError):
        return " ".join(column.slice(row, 1).to_string().split()).removeprefix("[ ").removesuffix(" ]")


def _shown(value) -> str:
    """A value as shown in an error message, cut to 60 characters."""
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"a list of {len(value)}: {text}" if isinstance(value, list) else text


# ---------------------------------------------------------------------------------------------- casts


def numbers(chunk: Chunk, column: str, problems: Problems, expected: str = "a number") -> tuple[np.ndarray, np.ndarray]:
    """Numbers that float32 can hold, [n] float64 (0 where missing), and missing [n] bool. Integers, floats, decimals,
    booleans (0, 1), and text that holds one of these are accepted."""
    values, missing, bad = _numbers(chunk.batch[column])
    problems.report(chunk, bad, column, expected)
    large = overflows(values)
    problems.report(chunk, large, column, f"{expected} (in size at most 3.4e38: numbers are stored as float32)")
    bad |= large
    return np.where(bad, 0, values), missing | bad


def non_negative(chunk: Chunk, column: str, problems: Problems) -> tuple[np.ndarray, np.ndarray]:
    """Numbers >= 0 (weights, counts, grades), [n] float64 (0 where missing), and missing [n] bool."""
    values, missing, bad = _numbers(chunk.batch[column])
    bad |= values < 0
    problems.report(chunk, bad, column, "a number >= 0")
    large = overflows(values)
    problems.report(chunk, large, column, "a number from 0 to 3.4e38: numbers are stored as float32")
    bad |= large
    return np.where(bad, 0, values), missing | bad


def overflows(values: np.ndarray) -> np.ndarray:
    """[n] bool, where a number [n] float64 would be infinite in a store, which holds float32."""
    with np.errstate(over="ignore"):
        return np.isinf(values.astype(np.float32))


def texts(chunk: Chunk, column: str, problems: Problems) -> pa.Array:
    """[n] string, null where missing. Numbers, booleans, dates and timestamps are cast to text; a float that is a
    whole number (below 2**53) is written as an integer, `3`, so that keys join whatever type they were stored as."""
    values, bad = _texts(chunk.batch[column])
    problems.report(chunk, bad, column, "text")
    return values


def text_lists(chunk: Chunk, column: str, problems: Problems) -> pa.Array:
    """[n] list<string>, null where missing; missing elements are dropped. A text cell (CSV) holds a JSON list if it
    begins with `[`, else elements separated by `|`; a single number is a list of one."""
    values, lengths, missing, bad = _lists(chunk.batch[column])
    values, bad_values = _texts(values)
    bad |= _any_in_row(bad_values, lengths)
    problems.report(chunk, bad, column, f"{_LIST} of text")
    kept = pc.is_valid(values).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(_count_in_row(kept, lengths))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values.drop_null(), mask=pa.array(missing | bad))


def vectors(chunk: Chunk, column: str, size: int, problems: Problems) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of finite numbers, [n, size] float32 (0 where missing), and missing [n] bool. Text cells as in
    `text_lists`."""
    values, lengths, missing, bad = _lists(chunk.batch[column])
    values, missing_values, bad_values = _numbers(values)
    bad_values |= missing_values | overflows(values)
    bad |= _any_in_row(bad_values, lengths) | (~missing & (lengths != size))
    problems.report(chunk, bad, column, f"a list of {size} numbers")
    out = np.zeros((len(chunk), size), np.float32)
    good = ~(missing | bad)
    out[good] = values[np.repeat(good, lengths)].reshape(-1, size)
    return out, ~good


def times(chunk: Chunk, column: str, problems: Problems) -> tuple[np.ndarray, np.ndarray]:
    """Sort keys of rows in time, [n] float64 (0 where missing), and missing [n] bool: dates, timestamps and ISO 8601
    text as seconds since 1970 (UTC where no zone is named), numbers as they are."""
    values, missing, bad = _seconds(_plain(chunk.batch[column]))
    problems.report(chunk, bad, column, f"{_TIME} in every row, or a number in every row")
    return np.where(bad, 0, values), missing | bad


def time_lists(chunk: Chunk, column: str, problems: Problems) -> pa.Array:
    """[n] large_list<float64> of seconds since 1970, null where missing; a missing element is null. Lists as
    `text_lists` takes them, times as `times`."""
    flat, lengths, missing, bad = _lists(chunk.batch[column])
    values, absent, bad_values = _seconds(flat)
    bad |= _any_in_row(bad_values, lengths)
    problems.report(chunk, bad, column, f"a list of times: {_TIME} in each, or a number in each")
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    elements = pa.array(values, mask=absent | bad_values)
    return pa.LargeListArray.from_arrays(offsets, elements, mask=pa.array(missing | bad))


def _seconds(array: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values [n] float64, missing [n] bool and bad [n] bool."""
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        micros = array.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        values, missing, bad = _numbers(micros)
        values /= 1e6
    else:
        values, missing, bad = _numbers(array)
        bad |= overflows(values)
        if bad.any() and pa.types.is_string(array.type):
            seconds, no_date = _iso_seconds(array, missing)
            if no_date.sum() <= bad.sum():  # what most rows are
                values, bad = seconds, no_date
    return values, missing, bad


def labels(chunk: Chunk, column: str, problems: Problems, positive: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Labels in [0, 1], [n] float32 (0 where missing), and missing [n] bool: 0, 1, true, false, or a probability. With
    `positive` the column is read as text: that value is 1, every other is 0; with `>=8` as numbers, of which those of
    at least 8 are 1."""
    if positive.startswith(">="):
        found, missing = numbers(chunk, column, problems)
        return ((found >= float(positive[2:])) & ~missing).astype(np.float32), missing
    if positive:
        words = texts(chunk, column, problems)
        return _numpy(pc.equal(words, positive).fill_null(False)).astype(np.float32), _numpy(words.is_null())
    values, missing, bad = _numbers(chunk.batch[column])
    bad |= (values < 0) | (values > 1)
    problems.report(chunk, bad, column, _LABEL)
    return np.where(bad, 0, values).astype(np.float32), missing | bad


def click_rates(
    chunk: Chunk, clicks: str, impressions: str, problems: Problems
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Aggregated rows: clicks / impressions [n] float32, impressions [n] float64, and missing [n] bool (also where
    impressions are 0). More clicks than impressions is a problem."""
    clicked, no_clicks = non_negative(chunk, clicks, problems)
    shown, no_shown = non_negative(chunk, impressions, problems)
    missing = no_clicks | no_shown
    bad = ~missing & (clicked > shown)
    problems.report(chunk, bad, clicks, f"no more clicks than column {impressions} counts impressions")
    missing |= bad | (shown == 0)
    rates = np.divide(clicked, shown, out=np.zeros(len(chunk)), where=~missing)
    return rates.astype(np.float32), shown, missing


def explode(chunk: Chunk, columns: Sequence[str], problems: Problems) -> tuple[Chunk, np.ndarray]:
    """One row a candidate: list columns of equal lengths in a row become one value a row, the others are repeated.

    Gives the exploded chunk (m rows; its `where` still names the row of the file) and parent [m] int64, the row of
    `chunk` each came from. A list of structs `c` gives columns `c.field`. An empty or missing list has no candidate.
    Unequal lengths, and a column that holds no list, are a problem of the row (and give no candidate). Text cells as in
    `text_lists`. Repeated texts cost memory: drop the columns that are not needed for each candidate.
    """
    lists = {column: _lists(chunk.batch[column]) for column in columns}
    good = np.ones(len(chunk), bool)
    _, expected_lengths, _, _ = lists[columns[0]]
    for column, (_, lengths, _, unreadable) in lists.items():
        problems.report(chunk, unreadable, column, _LIST)
        unequal = good & ~unreadable & (lengths != expected_lengths)
        problems.report(chunk, unequal, column, f"as many elements as column {columns[0]} of the row has")
        good &= ~(unreadable | unequal)

    parent = np.repeat(np.arange(len(chunk)), np.where(good, expected_lengths, 0))
    repeated = [name for name in chunk.batch.schema.names if name not in lists]
    out = dict(zip(repeated, chunk.batch.select(repeated).take(pa.array(parent)).columns, strict=True))
    for column, (values, lengths, _, _) in lists.items():
        values = values if good.all() else values.filter(pa.array(np.repeat(good, lengths)))
        if pa.types.is_struct(values.type):
            names = [f"{column}.{field.name}" for field in values.type]
            out |= dict(zip(names, values.flatten(), strict=True))
        else:
            out[column] = values
    batch = pa.RecordBatch.from_pydict(out)
    return Chunk(chunk.path, chunk.first_row, batch, chunk.file_rows[parent]), parent


# ---------------------------------------------------------------------------------------------- arrays


def _plain(array: pa.Array) -> pa.Array:
    """Dictionaries and extension types decoded; the several string types, and bytes that are UTF-8, as `string`."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        array = array.cast(pa.string())
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        array = array.cast(pa.binary())  # some writers do not mark it as text
        with contextlib.suppress(pa.ArrowInvalid):
            array = array.cast(pa.string())
    return array


def _numpy(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)


def _unreadable(array: pa.Array) -> np.ndarray:
    """All rows that are not null, for a type that cannot be cast."""
    return _numpy(array.is_valid())


def _numbers(array: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values [n] float64 (0 where missing or bad), missing [n] bool and bad [n] bool."""
    array = _plain(array)
    kind = array.type
    if pa.types.is_string(kind):
        return _numbers_in_text(array)
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        bad = _unreadable(array)
        return np.zeros(len(array)), ~bad, bad
    values = _numpy(array.cast(pa.float64(), safe=False))  # nulls become NaN
    missing, bad = np.isnan(values), np.isinf(values)
    return np.where(missing | bad, 0, values), missing, bad


def _numbers_in_text(array: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    words = pc.utf8_lower(pc.utf8_trim_whitespace(array))
    missing = pc.or_(pc.equal(words, ""), pc.is_in(words, pa.array(MISSING_WORDS))).fill_null(True)
    words = pc.if_else(pc.equal(words, "true"), "1", pc.if_else(pc.equal(words, "false"), "0", words))
    number = pc.match_substring_regex(words, _NUMBER).fill_null(False)
    values, _, infinite = _numbers(pc.utf8_ltrim(pc.if_else(number, words, None), "+").cast(pa.float64()))
    return values, _numpy(missing), _numpy(pc.invert(pc.or_(missing, number))) | infinite


def _texts(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Texts [n] string (null where missing or bad) and bad [n] bool."""
    array = _plain(array)
    if pa.types.is_floating(array.type):
        array = _texts_of_floats(array)
    if pa.types.is_binary(array.type):
        texts = pa.array([_text_of_bytes(cell) for cell in array.to_pylist()], pa.string())
    elif pa.types.is_nested(array.type):
        texts = pa.nulls(len(array), pa.string())
    else:
        texts = array.cast(pa.string())
    bad = _numpy(pc.and_(array.is_valid(), texts.is_null()))
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), None, texts), bad


def _text_of_bytes(cell: bytes | None) -> str | None:
    """UTF-8 text, or None where it is not."""
    try:
        return None if cell is None else cell.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _texts_of_floats(array: pa.Array) -> pa.Array:
    array = array.cast(pa.float32()) if pa.types.is_float16(array.type) else array
    array = pc.if_else(pc.is_nan(array), None, array)
    whole = pc.and_(pc.equal(array, pc.trunc(array)), pc.less(pc.abs(array), 2.0**53))
    return pc.if_else(whole, pc.if_else(whole, array, None).cast(pa.int64()).cast(pa.string()), array.cast(pa.string()))


def _lists(array: pa.Array) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray]:
    """Elements of all rows, lengths [n] int64, missing [n] bool and bad [n] bool; length 0 where missing or bad."""
    array = _plain(array)
    bad = np.zeros(len(array), bool)
    if pa.types.is_string(array.type):
        array, bad = _lists_in_text(array)
    elif not hasattr(array.type, "value_type"):
        values, bad = _texts(array)
        array = pa.ListArray.from_arrays(pa.array(np.arange(len(array) + 1), pa.int32()), values, mask=values.is_null())
    lengths = _numpy(pc.list_value_length(array).fill_null(0)).astype(np.int64)
    return _plain(array.flatten()), lengths, _numpy(array.is_null()) & ~bad, bad


def _lists_in_text(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    rows = [None if cell is None or not cell.strip() else _split(cell.strip()) for cell in array.to_pylist()]
    bad = np.array([row is _BAD for row in rows], bool)
    return pa.array([None if row is _BAD else row for row in rows], pa.list_(pa.string())), bad


_BAD = object()
_decode = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str).decode


def _split(cell: str):
    """Elements of a list in text, or `_BAD`."""
    if not cell.startswith("["):
        return [part.strip() for part in cell.split("|")]
    try:
        elements = [json.dumps(value) if isinstance(value, bool) else value for value in _decode(cell)]
        if "\\ud" in cell.lower():  # half of an escaped surrogate pair is not a character
            json.dumps(elements, ensure_ascii=False).encode("utf-8")
    except (json.JSONDecodeError, UnicodeError, RecursionError):
        return _BAD
    return _BAD if any(isinstance(element, list | dict) for element in elements) else elements


def _count_in_row(flags: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[n] int64, how many elements of each row are flagged."""
    total = np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])
    ends = np.cumsum(lengths)
    return total[ends] - total[ends - lengths]


def _any_in_row(flags: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return _count_in_row(flags, lengths) > 0


def _iso_seconds(array: pa.Array, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Seconds since 1970 [n] float64 and bad [n] bool of ISO 8601 text."""
    seconds, bad = np.zeros(len(array)), np.zeros(len(array), bool)
    cells = array.to_pylist()
    for row in np.flatnonzero(~missing):
        try:
            time = datetime.fromisoformat(cells[row].strip())
            seconds[row] = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
        except ValueError:
            bad[row] = True
    return seconds, bad
