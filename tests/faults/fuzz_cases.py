"""Small good inputs, and seeded damage to them: what `fuzz.py` hands to the functions that commands call."""

from __future__ import annotations

import gzip
import io
import json
import random
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROWS, ITEMS = 24, 6
FORMATS = ("csv", "tsv", "jsonl", "parquet")
WORDS = ("red", "blue", "coat", "hat", "wool", "大衣", "été")
LISTS = ("items", "clicks")
"""Columns of the log that hold a list."""

CONFIG = """
from srsjax.config import *

def get_config():
    return TrainConfig(
        schema=Schema(
            context=(
                Text("query", max_tokens=6),
                Categorical("device"),
                History("history", catalogue="items", fields=("title",), max_items=3, item_tokens=4, max_tokens=12),
            ),
            candidate=(
                Text("title", column="items.title", max_tokens=6),
                Categorical("brand", column="items.brand", missing="most_frequent"),
                Categorical("tags", column="items.tags", max_values=3),
                Vector("picture", column="items.picture", size=3, missing="constant"),
                Numeric("price", missing="median"),
                Numeric("sales", column="items.sales", scale="log", missing="constant"),
                Numeric("hour", column="at", scale="cyclic", missing="constant"),
                Numeric("age", column="at", since="shown", scale="quantile", missing="indicator"),
            ),
            tasks=(
                Task("click"),
                Task("spent", kind="regression", weight="weight"),
                Task("grade", kind="listwise"),
                Task("kind", kind="multiclass"),
            ),
        ),
        data=Data(
            log=Table("log.csv"),
            catalogues=(Catalogue("items.csv", name="items", key="item"),),
            user="user", store="stores", split=Split(valid=0.2, test=0.2, column="request"),
        ),
        tokenizer=Tokenizer(vocab_size=120),
    )
"""
LIST_CONFIG = """
from srsjax.config import *

def get_config():
    return TrainConfig(
        schema=Schema(
            context=(Text("query", max_tokens=6),),
            candidate=(Categorical("item", column="items"), Numeric("price", missing="mean")),
            tasks=(Task("click", column="clicks"),),
        ),
        data=Data(log=Table("log.csv"), explode=("items", "clicks"), store="stores", split=Split(valid=0.2, test=0.2)),
        tokenizer=Tokenizer(vocab_size=120),
    )
"""


def log_rows(chance: random.Random, lists: bool) -> list[dict]:
    """A good log."""
    kind = chance.choice(("iso", "epoch", "datetime"))
    out = []
    for number in range(ROWS):
        shown = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=number)
        times = {"iso": shown.isoformat(), "epoch": shown.timestamp(), "datetime": shown}
        row = {
            "request": f"r{number // 2}",
            "user": f"u{number % 5}",
            "query": " ".join(random.Random(number // 2).choices(WORDS, k=3)),
            "device": "phone" if number // 2 % 2 else "desk",
            "history": [f"i{chance.randrange(ITEMS)}" for _ in range(number // 2 % 3)],
            "price": chance.randrange(1, 90) / 4,
            "at": times[kind],
            "shown": times[kind],
        }
        if lists:
            count = chance.randrange(1, 4)
            row["items"] = [f"i{chance.randrange(ITEMS)}" for _ in range(count)]
            row["clicks"] = [chance.randrange(2) for _ in range(count)]
        else:
            row |= {"item": f"i{chance.randrange(ITEMS)}", "click": number % 2, "spent": chance.random() * 9}
            row |= {"grade": number % 3, "kind": "abc"[number % 3], "weight": 1.5}
        out.append(row)
    return out


def item_rows(chance: random.Random) -> list[dict]:
    """A good catalogue."""
    return [
        {
            "item": f"i{number}",
            "title": " ".join(chance.choices(WORDS, k=4)),
            "brand": f"b{number % 3}",
            "tags": chance.choices(WORDS, k=number % 3),
            "picture": [chance.random() for _ in range(3)],
            "sales": number * 10,
        }
        for number in range(ITEMS)
    ]


# ---------------------------------------------------------------------------------------------- values

NASTY = (
    *(None, "", " ", "\t", "nan", "NaN", "NULL", "none", "inf", "-inf", "Infinity", "1e39", "-1e39", "1e308", "1e309"),
    *(
        "1e-400",
        "0x10",
        "1_000",
        "٣",
        "１２",
        "+1",
        "-0",
        "--1",
        "1.2.3",
        "1,5",
        "9" * 400,
        "-" + "9" * 30,
        "1e" + "9" * 9,
    ),
    *("2024-01-01", "2024-01-01T00:00:00Z", "0001-01-01", "9999-12-31T23:59:59+23:59", "0001-01-01T00:00:00+14:00"),
    *("2024-13-01", "24:00", "2024-W01-1", "20240101", "01/02/2024", "true", "False", "[", "[]", "[[1]]", "[1, null]"),
    *(
        '{"a": 1}',
        "[NaN]",
        "[true]",
        "|",
        "a||b",
        "[" * 2000,
        '["\\ud800"]',
        "\x00",
        "\x00a",
        "\ufeff",
        "\u2028",
        "\u202e",
    ),
    *("�", "🙂" * 50, "a" * 5000, "\r\n", 'a "b" c', "'", "=1+1", "[SEP]", "[PAD] [CLS]", "-1", "0", "1", "0.5", "2"),
)
"""What a cell of text may hold."""
TYPED = (
    *(0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, 1e39, -1e39, 1e308, 5e-324, 0.5, float("nan")),
    *(float("inf"), float("-inf"), True, False, b"", b"\xff\xfe", b"plain", "text", Decimal("1e37"), Decimal("0.1")),
    *(date(1, 1, 1), date(9999, 12, 31), datetime(1, 1, 1), datetime(9999, 12, 31, 23), time(1, 2), timedelta(days=9)),
    *([], [None], [1.0, None, float("inf")], [[1]], ["a"], [b"\xff"], {"a": 1}, {"a": [1]}, {}, [{"a": 1}, None]),
)
"""What a column of Parquet or a value of JSON may hold, and text."""
TYPES = (
    *(pa.int8(), pa.uint64(), pa.int64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.string()),
    *(pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary(3), pa.date32(), pa.date64()),
    *(pa.timestamp("s"), pa.timestamp("ms", "UTC"), pa.timestamp("ns"), pa.time32("s"), pa.time64("ns")),
    *(pa.duration("us"), pa.decimal128(38, 2), pa.decimal256(60, 30), pa.null(), pa.list_(pa.int64())),
    *(pa.large_list(pa.string()), pa.list_(pa.float32(), 3), pa.struct([("a", pa.string())]), pa.list_(pa.binary())),
    *(pa.map_(pa.string(), pa.int64()), pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.list_(pa.float64()))),
    *(pa.list_(pa.struct([("a", pa.int64())])), pa.dictionary(pa.int8(), pa.float64())),
)


def nasty(chance: random.Random, kind: str) -> object:
    """A value that nobody expects, of what a format may hold."""
    if kind in ("csv", "tsv") or chance.random() < 0.5:
        return chance.choice(NASTY)
    return chance.choice(TYPED)


def damaged_rows(chance: random.Random, rows: list[dict], kind: str) -> list[dict]:
    """Rows some of whose cells, columns or whole rows are changed."""
    rows = [dict(row) for row in rows]
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 8))):
        name = chance.choice([*rows[0]]) if rows and rows[0] else ""
        row = chance.randrange(len(rows)) if rows else 0
        match chance.randrange(14):
            case 0 | 1 | 2 | 3 | 4 | 5 if rows:
                rows[row][name] = nasty(chance, kind)
            case 6 if rows:
                value = nasty(chance, kind)
                rows = [each | {name: value} for each in rows]
            case 7 if rows:
                rows = [{key: value for key, value in each.items() if key != name} for each in rows]
            case 8 if rows:
                rows[row] = dict(chance.sample([*rows[row].items()], len(rows[row])))
            case 9 if rows:
                rows.append(dict(rows[row]))
            case 10 if rows:
                new = chance.choice(
                    (f"{name}.x", "", " ", "a,b", name.upper(), "x" * 3000, "items.title", "\x00", "__")
                )
                rows = [{new if key == name else key: value for key, value in each.items()} for each in rows]
            case 11 if rows:
                rows = [{key: each[other] for key, other in zip(each, [*each][::-1], strict=True)} for each in rows]
            case 12:
                rows = rows[: chance.randrange(len(rows) + 1)]
            case 13 if rows:
                cells = [value for each in rows for value in each.values()]
                rows[row][name] = chance.choice(cells)
    return rows


# ---------------------------------------------------------------------------------------------- files


def encoded(chance: random.Random, rows: list[dict], kind: str) -> bytes:
    """Rows as a file of a format."""
    if kind == "jsonl":
        return "".join(json.dumps(row, default=str, ensure_ascii=chance.random() < 0.5) + "\n" for row in rows).encode(
            "utf-8", "surrogatepass"
        )
    if kind == "parquet":
        return parquet(chance, rows)
    comma = "," if kind == "csv" else "\t"
    names = [*rows[0]] if rows else ["request", "query"]
    lines = [names, *([cell_text(row.get(name)) for name in names] for row in rows)]
    return "".join(comma.join(map(quoted, line)) + "\n" for line in lines).encode("utf-8", "surrogatepass")


def cell_text(value: object) -> str:
    """A cell of CSV."""
    if value is None:
        return ""
    return json.dumps(value, default=str) if isinstance(value, list | dict) else str(value)


def quoted(cell: str) -> str:
    """A cell in quotes where it needs them."""
    return f'"{cell.replace(chr(34), chr(34) * 2)}"' if set(cell) & set(',"\t\r\n') else cell


def parquet(chance: random.Random, rows: list[dict]) -> bytes:
    """A Parquet file; a column that has no common type is text, and some are of a type drawn by chance."""
    names = [*rows[0]] if rows else ["request", "query"]
    arrays = [column(chance, [row.get(name) for row in rows]) for name in names]
    file = io.BytesIO()
    try:
        pq.write_table(
            pa.Table.from_arrays(arrays, names),
            file,
            row_group_size=chance.choice((1, 7, 100)),
            compression=chance.choice(("none", "snappy", "zstd")),
            use_dictionary=chance.random() < 0.5,
            store_schema=chance.random() < 0.7,
        )
    except (pa.ArrowException, ValueError, OSError):  # what Parquet cannot hold
        return b"PAR1" + chance.randbytes(20) + b"PAR1"
    return file.getvalue()


def column(chance: random.Random, values: list) -> pa.Array:
    """Values as a column, some of another type than they are, or bytes that say they are text."""
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        array = pa.array([None if value is None else cell_text(value) for value in values], pa.string())
    if chance.random() < 0.1:
        kind = chance.choice(TYPES)
        try:
            # A cast to a map whose keys are null ends the process, in Arrow itself.
            array = pa.nulls(len(values), kind) if pa.types.is_map(kind) else array.cast(kind, safe=False)
        except (pa.ArrowException, OverflowError, ValueError):
            try:
                array = pa.array(
                    [chance.choice((None, *TYPED)) if chance.random() < 0.3 else None for _ in values], kind
                )
            except (pa.ArrowException, OverflowError, ValueError, TypeError, AttributeError):
                array = pa.nulls(len(values), kind)
    if chance.random() < 0.03:
        cells = [chance.choice((b"\xff\xfe", b"\xc3", b"ok", None, b"\xed\xa0\x80")) for _ in values]
        raw = pa.array(cells, pa.binary())
        array = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers(), raw.null_count)
    return array


def damaged_bytes(chance: random.Random, content: bytes) -> bytes:
    """A file that lost, gained or changed some bytes."""
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 5, 40))):
        if not content:
            break
        at, to = sorted((chance.randrange(len(content)), chance.randrange(len(content) + 1)))
        match chance.randrange(9):
            case 0 | 1 | 2:
                content[at] ^= 1 << chance.randrange(8)
            case 3:
                del content[to:]
            case 4:
                del content[at : min(to, at + 200)]
            case 5:
                content[to:to] = content[at : min(to, at + 500)]
            case 6:
                content[at:at] = chance.choice(
                    (b"\xff", b"\xc3\x28", b"\x00", b'"', b"\n", b"\r", b",", b"\xef\xbb\xbf")
                )
            case 7:
                content[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\x01\x00\x00\x00"))
            case 8:
                content[at] = chance.randrange(256)
    return bytes(content)


def write_table(chance: random.Random, folder: Path, stem: str, rows: list[dict], kind: str, damage: bool) -> str:
    """Writes a table, damaged or not; returns its name."""
    rows = damaged_rows(chance, rows, kind) if damage else rows
    content = encoded(chance, rows, kind)
    if damage and chance.random() < 0.4:
        content = (
            chance.choice((b"", b"\n", b"\xef\xbb\xbf")) if chance.random() < 0.03 else damaged_bytes(chance, content)
        )
    name = f"{stem}.{kind}"
    if kind != "parquet" and chance.random() < 0.1:
        name, content = f"{name}.gz", gzip.compress(content)
        if damage and chance.random() < 0.5:
            content = damaged_bytes(chance, content)
    (folder / name).write_bytes(content)
    return name


# ---------------------------------------------------------------------------------------------- JSON files


def damaged_json(chance: random.Random, data: object) -> object:
    """JSON data with one of its values changed, left out, or of another type."""
    if isinstance(data, dict) and data and chance.random() < 0.9:
        key = chance.choice([*data])
        if chance.random() < 0.15:
            return {name: value for name, value in data.items() if name != key}
        if chance.random() < 0.05:
            return data | {"other": 1}
        return data | {key: damaged_json(chance, data[key])}
    if isinstance(data, list) and data and chance.random() < 0.9:
        at = chance.randrange(len(data))
        if chance.random() < 0.2:
            return data[:at] + data[at + chance.randrange(2) :] * chance.randrange(1, 3)
        return [*data[:at], damaged_json(chance, data[at]), *data[at + 1 :]]
    other = (None, True, 0, -1, 1e39, 10**30, float("nan"), "", "x", "../x", [], {}, [None], {"a": None}, 2.5, "1")
    return chance.choice(other)
