"""JSON-lines as record batches of text: one object per line, every scalar kept as its source text.

A column is text, a list of columns or a struct of them. The type is found by reading the whole file once, so that
neither the columns nor their types depend on the order of lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa

from srsjax.errors import InputError

# Numbers stay the text of the file: "3" and "4.50", whatever other lines hold.
_decode = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str).decode

# The shape of a value: None (only nulls so far), TEXT, [shape of the elements] or {name: shape}.
TEXT = "text"


def schema(path: Path, file: Iterable[bytes]) -> pa.Schema:
    """Columns of all lines, in the order in which they first appear. Columns with only nulls are text.

    Raises InputError, naming the line, for what is not a JSON object in UTF-8, and for a key that holds a list, an
    object or a scalar where another line has another of the three.
    """
    columns: dict[str, list] = {}
    for line, record in _records(path, file):
        try:
            _merge(columns, record)
        except _OtherShape as error:
            raise InputError(f"{path} line {line}, key {error}") from None
    return pa.schema([(name, _type(shape)) for name, shape in columns.items()])


def batches(path: Path, file: IO[bytes], schema: pa.Schema, block_bytes: int) -> Iterator[pa.RecordBatch]:
    """The columns of `schema`, in batches of about `block_bytes` of the file; an absent key is null."""
    line = 1
    while block := file.readlines(block_bytes):
        records = [record for _, record in _records(path, block, line)]
        line += len(block)
        arrays = [_array([record.get(field.name) for record in records], field.type) for field in schema]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _records(path: Path, lines: Iterable[bytes], first: int = 1) -> Iterator[tuple[int, dict]]:
    """Line number (from 1) and object of each line that is not blank."""
    for number, line in enumerate(lines, first):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.isspace():
            continue
        try:
            record = _decode(line.decode("utf-8").strip())
            if rb"\ud" in line.lower():  # half of an escaped surrogate pair is not a character
                json.dumps(record, ensure_ascii=False).encode("utf-8")
        except UnicodeError as error:
            raise InputError(f"{path} line {number}: {error}, expected JSON in UTF-8") from None
        except RecursionError:
            raise InputError(
                f"{path} line {number}: lists within lists too deep, expected one JSON object a line"
            ) from None
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path} line {number}: {error.msg} at character {error.pos + 1}, expected one JSON object a line"
            ) from None
        if not isinstance(record, dict):
            raise InputError(f"{path} line {number}: found {_kind(record)}, expected one JSON object a line")
        yield number, record


# ---------------------------------------------------------------------------------------------- shapes


class _OtherShape(Exception):
    """A value whose shape differs from earlier ones: `key: found a list, expected text as on earlier lines`."""


def _merge(columns: dict, record: dict, prefix: str = "") -> None:
    """Merges the shapes of `record`'s values into `columns`, in place."""
    for name, value in record.items():
        known = columns.get(name)
        if known is TEXT and type(value) is str:
            continue  # the common case, for speed
        columns[name] = _merged(known, value, prefix + name)


def _merged(known, value, name: str):
    if value is None:
        return known
    if isinstance(value, dict):
        shape = {} if known is None else known
        _expect(isinstance(shape, dict), known, value, name)
        _merge(shape, value, f"{name}.")
    elif isinstance(value, list):
        shape = [None] if known is None else known
        _expect(isinstance(shape, list), known, value, name)
        for element in value:
            if shape[0] is not TEXT or type(element) is not str:
                shape[0] = _merged(shape[0], element, name)
    else:
        shape = TEXT
        _expect(known in (None, TEXT), known, value, name)
    return shape


def _expect(same: bool, known, value, name: str) -> None:
    if not same:
        raise _OtherShape(f"{name}: found {_kind(value)}, expected {_kind(known)} as on the lines before")


def _kind(value) -> str:
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a scalar"


def _type(shape) -> pa.DataType:
    if isinstance(shape, dict):
        return pa.struct([(name, _type(inner)) for name, inner in shape.items()])
    if isinstance(shape, list):
        return pa.list_(_type(shape[0]))
    return pa.string()


# ---------------------------------------------------------------------------------------------- values


def _array(values: list, kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except pa.ArrowTypeError:  # true and false are the only scalars that are not text yet
        return pa.array([_as_text(value) for value in values], kind)


def _as_text(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return [_as_text(element) for element in value]
    if isinstance(value, dict):
        return {name: _as_text(inner) for name, inner in value.items()}
    return value
