"""Reading tables: every format and compression gives the same rows, in flat memory, and bad files one line."""

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from child_memory import needs_status, peak_memory

from srsjax.config import Table
from srsjax.data.reading import files, tables
from srsjax.errors import InputError

ROWS = [
    {"id": str(i), "title": f'Läufer {i}, 红色 "{i}"' + ("\nzweite Zeile" if i % 7 == 0 else ""), "price": None}
    | ({"price": f"{i}.50"} if i % 3 else {})
    for i in range(100)
]
NAMES = list(ROWS[0])


def write(path, rows=ROWS):
    """Writes a table in the format and compression of the name."""
    table = pa.Table.from_pylist(rows)
    format_, compression = [*path.name.split("."), ""][1:3]
    if format_ == "parquet":
        pa.parquet.write_table(table, path, row_group_size=500)
        return path
    if format_ == "jsonl":
        # An absent key and a null are the same: nulls are left out here.
        lines = [{name: value for name, value in row.items() if value is not None} for row in rows]
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    else:
        sink = pa.BufferOutputStream()
        pa.csv.write_csv(table, sink, pa.csv.WriteOptions(delimiter="\t" if format_ == "tsv" else ","))
        data = sink.getvalue().to_pybytes()
    if compression == "gz":
        data = gzip.compress(data)
    elif compression == "zst":
        data = pa.Codec("zstd").compress(data, asbytes=True)
    path.write_bytes(data)
    return path


def contents(table, columns=None, batch_rows=32768):
    return [row for chunk in tables.read(table, columns, batch_rows) for row in chunk.batch.to_pylist()]


def error(table, columns=None) -> str:
    with pytest.raises(InputError) as caught:
        contents(table, columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["a.parquet", *(f"a.{text}{zipped}" for text in ("csv", "tsv", "jsonl") for zipped in ("", ".gz", ".zst"))],
)
@pytest.mark.parametrize("batch_rows", [1, 7, 32768])
def test_every_format_gives_the_same_rows(tmp_path, name, batch_rows, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 512)  # so that the file is many blocks
    table = Table(str(write(tmp_path / name)))
    assert contents(table, batch_rows=batch_rows) == ROWS
    assert contents(table, ["price", "id"], batch_rows) == [{"price": row["price"], "id": row["id"]} for row in ROWS]
    assert list(tables.table_schema(table)) == NAMES


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl"])
def test_a_chunk_knows_where_its_rows_are(tmp_path, name):
    path = write(tmp_path / name)
    seen = [
        (int(row_id), chunk.where(row))
        for chunk in tables.read(Table(str(path)), ["id"], 7)
        for row, row_id in enumerate(chunk.batch["id"].to_pylist())
    ]
    assert seen == [(i, f"{path} row {i + 1}") for i in range(100)]
    first = next(tables.read(Table(str(path)), ["id"], 50))
    twice = first.take(np.array([40, 9, 4])).take(np.array([1]))
    assert twice.where(0) == f"{path} row 10" and twice.batch["id"].to_pylist() == ["9"]


def test_globs_variables_and_several_files(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGS", str(tmp_path))
    for i in (2, 0, 1):
        write(tmp_path / f"part{i}.csv", ROWS[i * 10 : i * 10 + 10])
    paths = [tmp_path / f"part{i}.csv" for i in range(3)]
    assert files.expand("${LOGS}/part*.csv") == paths
    assert files.expand((str(paths[2]), "${LOGS}/part[01].csv", "${LOGS}/part0.csv")) == paths
    assert contents(Table("${LOGS}/*.csv")) == ROWS[:30]


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "utf-8-sig", "gb18030", "utf-16"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes("id,title\n1,红色连衣裙\n2,跑鞋\n".encode(encoding))
    assert contents(Table(str(path), encoding=encoding)) == [
        {"id": "1", "title": "红色连衣裙"},
        {"id": "2", "title": "跑鞋"},
    ]


def test_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    (tmp_path / "a.csv").write_bytes("a,b\n1,2\n".encode("utf-8-sig"))
    (tmp_path / "a.jsonl").write_bytes('{"a": 1, "b": 2}\n'.encode("utf-8-sig"))
    assert contents(Table(f"{tmp_path}/a.csv")) == contents(Table(f"{tmp_path}/a.jsonl")) == [{"a": "1", "b": "2"}]


def test_cells_of_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,"x, ""y""\nz"\n\n,""\n007,1.0\n')
    assert contents(Table(str(path))) == [
        {"a": "1", "b": 'x, "y"\nz'},
        {"a": None, "b": None},
        {"a": "007", "b": "1.0"},
    ]


def test_a_quote_within_a_cell_is_a_quote(tmp_path):
    (tmp_path / "a.csv").write_text('size,name\n5" disc,"the ""big"" one"\n')
    assert contents(Table(f"{tmp_path}/a.csv")) == [{"size": '5" disc', "name": 'the "big" one'}]


def test_json_types_do_not_depend_on_the_lines_read_first(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 16)  # one line a block
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"x": null, "l": [], "c": []}\n'
        '{"x": 3, "l": [1, 2.50, null], "c": [{"id": 1}]}\n'
        "\n"
        '{"x": "drei", "c": [{"id": "b", "label": true}, null], "late": 1e3}\n'
    )
    schema = tables.table_schema(Table(str(path)))
    struct = pa.struct([("id", pa.string()), ("label", pa.string())])
    assert schema == {"x": pa.string(), "l": pa.list_(pa.string()), "c": pa.list_(struct), "late": pa.string()}
    assert contents(Table(str(path))) == [
        {"x": None, "l": [], "c": [], "late": None},
        {"x": "3", "l": ["1", "2.50", None], "c": [{"id": "1", "label": None}], "late": None},
        {"x": "drei", "l": None, "c": [{"id": "b", "label": "true"}, None], "late": "1e3"},
    ]
    assert tables.require_columns(Table(str(path)), ["c.label", "x", "c.id"], explode=["c"]) == ["c", "x"]


def test_a_changed_json_file_is_read_again(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n')
    assert contents(Table(str(path))) == [{"a": "1"}]
    path.write_text('{"a": [1], "b": 2}\n')
    assert contents(Table(str(path))) == [{"a": ["1"], "b": "2"}]


def test_missing_column_names_the_nearest(tmp_path):
    table = Table(str(write(tmp_path / "a.csv")))
    assert tables.require_columns(table, ["price", "id", "price"]) == ["price", "id"]
    assert (
        error(table, ["titel"])
        == f"{tmp_path}/a.csv: no column 'titel'; did you mean 'title'? It has: id, title, price"
    )


# ---------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.csv", b"", "an empty file (0 bytes)"),
        ("a.parquet", b"", "an empty file (0 bytes)"),
        ("a.jsonl", b"", "an empty file (0 bytes)"),
        ("a.csv", b"a,b\n", "no rows"),
        ("a.jsonl", b"\n", "no rows"),
        ("a.csv", b"\n\n", "no header"),
        ("a.csv", b"a,a\n1,2\n", "column 'a' stands there twice"),
        ("a.csv", b'a,b\n1,"x\ny"\n\n3\n', "a.csv row 2 (line 5): found 1 field(s), expected 2"),
        ("a.csv", b"a,b\n1,2\n3,4,5\n", "a.csv row 2 (line 3): found 3 field(s), expected 2"),
        ("a.csv", b"a,b\n1,2\n3,\xff\n", "a.csv row 2 (line 3), column b: bytes that are not utf-8"),
        ("a.csv", b'a,b\n1,2\n3,"x\n5,6\n', "a.csv line 3: unexpected end of data"),
        ("a.csv", b"a,\xff\n1,2\n", "header has bytes that are not utf-8"),
        ("a.csv.gz", b"a,b\n1,2\n", "cannot be read"),
        ("a.csv.gz", gzip.compress(bytes(range(256)) * 100)[:-20], "cannot be read"),
        ("a.jsonl.zst", b'{"a": 1}\n', "cannot be read"),
        ("a.parquet", b"a,b\n1,2\n", "not a Parquet file"),
        ("a.parquet", b"a", "not a Parquet file"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": 2,\n', "a.jsonl line 3: Expecting property name"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "a.jsonl line 2: found a list"),
        ("a.jsonl", b'{"a": 1}\n{"a": [1]}\n', "a.jsonl line 2, key a: found a list, expected a scalar"),
        ("a.jsonl", b'{"a": [{"b": [1]}]}\n{"a": [{"b": 1}]}\n', "line 2, key a.b: found a scalar, expected a list"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl line 2: 'utf-8' codec can't decode"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\\ud83d"}\n', "a.jsonl line 2: 'utf-8' codec can't encode"),
        ("a.txt", b"a,b\n1,2\n", "the name does not say the format"),
    ],
)
def test_bad_files_get_one_line(tmp_path, name, data, expected):
    (tmp_path / name).write_bytes(data)
    message = error(Table(str(tmp_path / name)))
    assert message.startswith(str(tmp_path / name))
    assert expected in message


def test_truncated_and_damaged_parquet(tmp_path):
    whole = write(tmp_path / "whole.parquet", ROWS * 50).read_bytes()
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole[: len(whole) // 2])
    assert error(Table(str(cut))).startswith(f"{cut}: a truncated Parquet file")
    cut.write_bytes(whole[:100] + whole[600:])  # the footer is there, pages are not
    assert error(Table(str(cut))).startswith(f"{cut}: cannot be read")


def test_missing_files(tmp_path, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    assert f"{tmp_path}/a.csv: no such file" in error(Table(f"{tmp_path}/a.csv"))
    assert f"{tmp_path}/*.csv: no file matches" in error(Table(f"{tmp_path}/*.csv"))
    assert "a folder, expected files" in error(Table(str(tmp_path)))
    assert "the environment variable NOT_SET is not set" in error(Table("${NOT_SET}/a.csv"))
    assert "names no files" in error(Table(""))


def test_unknown_encoding(tmp_path):
    path = write(tmp_path / "a.csv")
    assert error(Table(str(path), encoding="utf-88")).startswith(f"{path}: unknown encoding 'utf-88'")
    assert "unknown encoding 'hex'" in error(Table(str(path), encoding="hex"))  # a codec, but not of text


def test_files_of_a_table_have_the_same_columns(tmp_path):
    write(tmp_path / "a.csv", [{"x": "1", "y": "2"}])
    write(tmp_path / "b.csv", [{"y": "4", "x": "3"}])
    both = Table((f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"))
    assert contents(both) == [{"x": "1", "y": "2"}, {"x": "3", "y": "4"}]
    write(tmp_path / "b.csv", [{"x": "3"}])
    assert error(both) == f"{tmp_path}/b.csv: no column 'y', expected the columns of {tmp_path}/a.csv"
    write(tmp_path / "b.csv", [{"x": "3", "y": "4", "z": "5"}])
    assert error(both).startswith(f"{tmp_path}/b.csv: column 'z', which {tmp_path}/a.csv has not")


# ---------------------------------------------------------------------------------------------- ends

LEFT = """
import sys
from srsjax.config import Table
from srsjax.data.reading import tables
rows = tables.read(Table(sys.argv[1], encoding=sys.argv[2]))
next(rows)
sys.exit(3)
"""


@pytest.mark.parametrize(("name", "encoding"), [("a.csv", "utf-8"), ("a.csv.gz", "utf-8"), ("a.csv", "utf-16")])
def test_a_process_ends_as_it_wants_to_while_a_file_is_read_ahead(tmp_path, name, encoding):
    """Arrow's thread is at work then; it must neither abort the process nor hold it up. Several, since it is a race."""
    path, folder = tmp_path / name, tmp_path / "temporary"
    folder.mkdir()
    data = ("id,title\n" + "".join(f'{i},"title {i} {"of some length " * 100}"\n' for i in range(8000))).encode(
        encoding
    )
    path.write_bytes(gzip.compress(data, 1) if name.endswith("gz") else data)
    command = [sys.executable, "-c", LEFT, str(path), encoding]
    processes = [subprocess.Popen(command, env=os.environ | {"TMPDIR": str(folder)}) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [3] * 4
    assert not list(folder.iterdir())


def test_a_copy_without_room_says_where_it_should_have_gone(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_bytes(("id,title\n" + "1,text\n" * 100_000).encode("utf-16"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, allowed[1]))
    try:
        said = error(Table(str(path), encoding="utf-16"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
        signal.signal(signal.SIGXFSZ, handler)
    assert said.startswith(f"{path}: its copy in UTF-8 cannot be written to {tmp_path}") and "set TMPDIR" in said


# ---------------------------------------------------------------------------------------------- memory


# In a process of its own: Arrow's threads free blocks of CSV a little after the last row has been read.
MEASURED = """
import sys
from srsjax.config import Table
from srsjax.data.reading import files, tables
files.BLOCK_BYTES = 1 << 16
assert sum(len(chunk) for chunk in tables.read(Table(sys.argv[1]), batch_rows=500)) == int(sys.argv[2])
"""


def peak_of_reading(path, rows: int) -> int:
    """MiB that a process holds at most to read this many rows of 2 kB of text."""
    write(path, [{"id": str(i), "title": f"title {i} " * 200} for i in range(rows)])
    return peak_memory(MEASURED, path, rows)


@needs_status
@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.csv.gz", "a.jsonl"])
def test_memory_is_flat_when_rows_grow_tenfold(tmp_path, name):
    few, many = (peak_of_reading(tmp_path / f"{rows}{name}", rows) for rows in (4_000, 40_000))
    # 36,000 rows more are 70 MiB. What may differ is how much of 2 MiB (32 blocks of CSV) was read ahead.
    assert many - few < 15, f"{few} MiB for 4,000 rows, {many} MiB for 40,000"


@pytest.mark.parametrize("dictionary", [False, True])
def test_text_of_parquet_that_is_no_utf8_is_named(tmp_path, dictionary):
    """Arrow writes and reads such strings as they are."""
    text = pa.array([b"red", b"\xff\xfe"], pa.binary()).view(pa.string())
    text = pa.DictionaryArray.from_arrays(pa.array([0, 1]), text) if dictionary else text
    pyarrow.parquet.write_table(pa.table({"query": text}), tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"log\.parquet: cannot be read \(.*Invalid UTF8"):
        list(tables.read(Table(str(tmp_path / "log.parquet"))))


# ---------------------------------------------------------------------------------------------- found by faults


def test_two_stars_follow_no_links_and_no_file_is_read_twice(tmp_path, monkeypatch):
    write(tmp_path / "a.csv")
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / "deep/er/b.csv")
    write(tmp_path / ".hidden/c.csv")
    (tmp_path / "deep/loop").symlink_to(tmp_path)
    (tmp_path / "deep/other").symlink_to(tmp_path / "deep/er")
    (tmp_path / "deep/again.csv").symlink_to(tmp_path / "a.csv")
    found = files.expand(f"{tmp_path}/**/*.csv")
    assert found == [tmp_path / "a.csv", tmp_path / "deep/er/b.csv"]
    assert len(contents(Table(f"{tmp_path}/**/*.csv"))) == 2 * len(ROWS)
    assert files.expand((f"{tmp_path}/**", f"{tmp_path}/a.csv")) == found
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in files.expand("**/*.csv")] == ["a.csv", "deep/er/b.csv"]
    assert [str(path) for path in files.expand(("./a.csv", str(tmp_path / "a.csv")))] == [str(tmp_path / "a.csv")]
    assert [str(path) for path in files.expand("deep/*/*.csv")] == ["deep/er/b.csv", "deep/loop/a.csv"]


def test_views_of_text_and_bytes_are_text_and_bytes(tmp_path):
    views = {
        "text": pa.array(["a", None], pa.string_view()),
        "bytes": pa.array([b"a", b"\xff"], pa.binary_view()),
        "texts": pa.array([["a"], None], pa.list_(pa.string_view())),
    }
    pa.parquet.write_table(pa.table(views), tmp_path / "log.parquet")
    (chunk,) = tables.read(Table(str(tmp_path / "log.parquet")))
    taken = chunk.take(np.array([1, 0])).batch.to_pydict()
    assert taken == {"text": [None, "a"], "bytes": [b"\xff", b"a"], "texts": [None, ["a"]]}


def test_text_in_parquet_that_is_not_utf8_is_one_line(tmp_path):
    raw = pa.array([b"ok", b"\xff\xfe"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pa.parquet.write_table(pa.table({"title": text}), tmp_path / "log.parquet")
    said = error(Table(str(tmp_path / "log.parquet")))
    assert "log.parquet" in said and "UTF8" in said and "\n" not in said


def test_a_list_of_objects_is_no_column_once_it_is_exploded(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"c": [{"id": "a", "label": 1}]}\n')
    with pytest.raises(InputError, match=r"column 'c' is a list of objects, expected one of c\.id, c\.label"):
        tables.require_columns(Table(str(tmp_path / "log.jsonl")), ["c"], explode=["c"])


def test_a_message_does_not_list_very_many_columns(tmp_path):
    (tmp_path / "log.csv").write_text(",".join(f"c{n}" for n in range(1000)) + "\n" + "," * 999 + "\n")
    with pytest.raises(InputError, match=r"c99 and 900 more$"):
        tables.require_columns(Table(str(tmp_path / "log.csv")), ["other"])


def test_json_without_end_is_one_line(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"a": ' + "[" * 100_000 + "\n")
    assert "log.jsonl line 1: lists within lists too deep" in error(Table(str(tmp_path / "log.jsonl")))
