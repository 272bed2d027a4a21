"""Bad input for the commands, as a user may give it: what `refusals.py` hands in, one case after the other."""

from __future__ import annotations

import csv
import gzip
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from refusal_values import VALUES

SMALL = (
    *("--data.shop.impressions", "1000", "--data.shop.items", "400", "--data.shop.users", "800"),
    *("--model.hidden_size", "32", "--model.intermediate_size", "64", "--model.num_layers", "1"),
    *("--batch.rows", "8", "--evaluate.every", "20", "--log_every", "5", "--max_steps", "20"),
)
"""Overrides of the run that all commands are about."""
NEW = ("--config", "ctr.py", *SMALL, "--run_dir", "runs/new")
"""A run beside that one, of the same data."""
FILES = ("--data.shop.folder", "", "--data.log.files", "log.parquet", "--data.catalogues.0.files", "items.parquet")
"""The same data, from files that a case may spoil."""
CSV = (*FILES, "--data.log.files", "log.csv")


@dataclass(frozen=True)
class Case:
    """One bad input: a command with its arguments, in a copy of the folder that `spoil` has changed."""

    name: str
    command: str
    arguments: tuple[str, ...]
    spoil: Callable[[Path], object] | None = None


def every() -> list[Case]:
    """All cases."""
    return [*options(), *configs(), *tables(), *of_runs(), *damaged_runs(), *damaged_stores()]


# ---------------------------------------------------------------------------------------------- options of train


def options() -> Iterator[Case]:
    """A training with one option that is impossible."""
    for field, values in VALUES.items():
        for value in values:
            yield Case(f"--{field} {value[:24]}", "train", (*NEW, f"--{field}", value))
    for name, more in (
        ("an option that there is not", ("--optimizer.lerning_rate", "1")),
        ("an option without its value", ("--seed",)),
        ("a word that is no option", ("ctr.py",)),
    ):
        yield Case(name, "train", (*NEW, *more))


# ---------------------------------------------------------------------------------------------- config files

CONFIGS = {
    "not Python": "def get_config(:",
    "nothing in it": "",
    "returns nothing": "def get_config(): pass",
    "raises": "def get_config(): raise ValueError('no')",
    "a field that there is not": "from srsjax.config import *\ndef get_config(): return TrainConfig(lerning=1)",
    "imports what is not installed": "import a_module_that_nobody_has",
    "a column of another kind": "from srsjax.config import *\ndef get_config(): return Batch()",
}


def configs() -> Iterator[Case]:
    """A config file that is none."""
    for name, text in CONFIGS.items():
        yield Case(f"config: {name}", "train", ("--config", "bad.py"), config_of(text))
    yield Case("config: not there", "train", ("--config", "nowhere.py"))
    yield Case("config: a folder", "train", ("--config", "."))
    yield Case("config: a table", "train", ("--config", "log.parquet"))
    yield Case("config: none given", "train", ())


# ---------------------------------------------------------------------------------------------- tables


def config_of(text: str) -> Callable[[Path], None]:
    """A config file of that text."""
    return lambda folder: write(folder / "bad.py", text)


def write(path: Path, data: str | bytes) -> None:
    """A file with these contents."""
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def cell(column: str, value: object, kind: Callable, file: str = "log") -> Callable[[Path], None]:
    """Row 42 of the column becomes the value; all its values become of that kind."""

    def spoil(folder: Path) -> None:
        path = folder / f"{file}.parquet"
        table = pq.read_table(path)
        values = [kind(each) for each in table[column].to_pylist()]
        values[41] = value
        pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(values)), path)

    return spoil


def renamed(file: str, column: str) -> Callable[[Path], None]:
    """A table without the column."""

    def spoil(folder: Path) -> None:
        table = pq.read_table(folder / file)
        pq.write_table(table.rename_columns({column: f"{column}x"}), folder / file)

    return spoil


def bytes_of(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A file with other bytes."""
    return lambda folder: write(folder / file, change((folder / file).read_bytes()))


def text(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    """The log as CSV, with other lines."""

    def spoil(folder: Path) -> None:
        table = pq.read_table(folder / "log.parquet").drop_columns(["history"])
        pc.write_csv(table, folder / "log.csv")
        lines = (folder / "log.csv").read_bytes().splitlines(keepends=True)
        write(folder / "log.csv", b"".join(change(lines)))

    return spoil


def line(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """The log as CSV, with another line 42."""
    return text(lambda lines: [*lines[:41], change(lines[41]), *lines[42:]])


def csv_cell(column: str, value: str) -> Callable[[Path], None]:
    """The log as CSV, with this value in line 42."""

    def change(lines: list[bytes]) -> list[bytes]:
        header, row = (next(csv.reader([each.decode()])) for each in (lines[0], lines[41]))
        row[header.index(column)] = value
        made = io.StringIO()
        csv.writer(made).writerow(row)
        return [*lines[:41], made.getvalue().encode(), *lines[42:]]

    return text(change)


def invalid_utf8(folder: Path) -> None:
    """A string in Parquet that is none."""
    table = pq.read_table(folder / "log.parquet")
    values = [each.encode() for each in table["query"].to_pylist()]
    values[41] = b"red \xff\xfe coat"
    column = pa.array(values, pa.binary()).view(pa.string())
    pq.write_table(table.set_column(table.column_names.index("query"), "query", column), folder / "log.parquet")


def twice(folder: Path) -> None:
    """A catalogue with one key twice, with different texts."""
    table = pq.read_table(folder / "items.parquet")
    first = table.slice(0, 1).to_pylist()[0] | {"title": "something else"}
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist([first], table.schema)]), folder / "items.parquet")


PARQUET = {
    "no column of a text": renamed("log.parquet", "query"),
    "no column of the label": renamed("log.parquet", "click"),
    "no key in the log": renamed("log.parquet", "item_id"),
    "no key in the catalogue": renamed("items.parquet", "item_id"),
    "no title in the catalogue": renamed("items.parquet", "title"),
    "a label of 2": cell("click", 2, int),
    "a label of -1": cell("click", -1, int),
    "a label that is text": cell("click", "maybe", str),
    "an infinite label": cell("click", float("inf"), float),
    "a list as label": cell("click", [1, 0], lambda value: [value]),
    "a key that is missing": cell("item_id", None, str),
    "an item that is not in the catalogue": cell("item_id", "nobody", str),
    "a list as text": cell("query", ["red"], lambda value: [value]),
    "a key of the catalogue that is missing": cell("item_id", None, str, "items"),
    "a key of the catalogue that is there twice": twice,
    "a string that is not UTF-8": invalid_utf8,
    "an empty file": bytes_of("log.parquet", lambda whole: b""),
    "half a file": bytes_of("log.parquet", lambda whole: whole[: len(whole) // 2]),
    "without its last bytes": bytes_of("log.parquet", lambda whole: whole[:-5]),
    "without its first bytes": bytes_of("log.parquet", lambda whole: whole[5:]),
    "zeros in the middle": bytes_of("log.parquet", lambda whole: whole[:2000] + bytes(500) + whole[2500:]),
    "another format": bytes_of("log.parquet", lambda whole: b"query,click\nred,1\n"),
    "an empty catalogue": bytes_of("items.parquet", lambda whole: b""),
    "half a catalogue": bytes_of("items.parquet", lambda whole: whole[: len(whole) // 2]),
    "no rows": lambda at: pq.write_table(pq.read_table(at / "log.parquet").slice(0, 0), at / "log.parquet"),
    "one row": lambda at: pq.write_table(pq.read_table(at / "log.parquet").slice(0, 1), at / "log.parquet"),
    "no file": lambda at: (at / "log.parquet").unlink(),
    "no catalogue": lambda at: (at / "items.parquet").unlink(),
    "a folder": lambda at: ((at / "log.parquet").unlink(), (at / "log.parquet").mkdir()),
    "a link to nowhere": lambda at: ((at / "log.parquet").unlink(), (at / "log.parquet").symlink_to("nowhere")),
    "a link to itself": lambda at: ((at / "log.parquet").unlink(), (at / "log.parquet").symlink_to("log.parquet")),
}
LINES = {
    "only the header": text(lambda lines: lines[:1]),
    "no header": text(lambda lines: lines[1:]),
    "nothing": text(lambda lines: []),
    "a column name twice": text(lambda lines: [lines[0].replace(b'"time"', b'"query"'), *lines[1:]]),
    "a value too many": line(lambda each: each.rstrip() + b",1,1\n"),
    "a value too few": line(lambda each: each.rpartition(b",")[0] + b"\n"),
    "a quote that does not end": line(lambda each: b'"' + each.replace(b'"', b"")),
    "a byte that is not UTF-8": line(lambda each: b'"\xff' + each[1:]),
    "UTF-16": text(lambda lines: [b"".join(lines).decode().encode("utf-16")]),
    "compressed, without the name": text(lambda lines: [gzip.compress(b"".join(lines))]),
    "a label of 1e400": csv_cell("click", "1e400"),
    "zeros": text(lambda lines: [bytes(4096)]),
}


def tables() -> Iterator[Case]:
    """A log or a catalogue that cannot be read, or not as the config says."""
    for name, spoil in PARQUET.items():
        yield Case(f"Parquet: {name}", "train", (*NEW, *FILES), spoil)
    for name, spoil in LINES.items():
        yield Case(f"CSV: {name}", "train", (*NEW, "--config", "one_text.py", *CSV), spoil)
    for field, value in (
        ("log.files", "nowhere-*.parquet"),
        ("log.files", ""),
        ("log.format", "csv"),
        ("log.format", "xml"),
        ("log.encoding", "utf-88"),
        ("catalogues.0.files", "nowhere.csv"),
        ("catalogues.0.format", "jsonl"),
    ):
        yield Case(f"--data.{field} {value}", "train", (*NEW, *FILES, f"--data.{field}", value))


# ---------------------------------------------------------------------------------------------- finished runs

RUN, INPUT = ("--run", "runs/ctr"), ("--input", "log.parquet")
NEEDS = {
    "evaluate": RUN,
    "score": (*RUN, *INPUT),
    "export": (*RUN, "--output", "out"),
    "compress": (*RUN, "--output", "out"),
    "watch": (*RUN, *INPUT),
    "compare": ("--runs", "runs/ctr", "runs/other"),
}
"""What each command is given."""


def of_runs() -> Iterator[Case]:
    """Commands about a run, asked for what cannot be."""
    for command in NEEDS:
        name = "--runs" if command == "compare" else "--run"
        rest = NEEDS[command][3 if command == "compare" else 2 :]
        for at in ("nowhere", "log.parquet", "data", ""):
            runs = (at, "runs/other") if command == "compare" else (at,)
            yield Case(f"{command} {name} {at}", command, (name, *runs, *rest))
        yield Case(f"{command}, no run", command, ())
        yield Case(f"{command} --nonsense", command, (*NEEDS[command], "--nonsense", "1"))
    for command, option, values in (
        ("evaluate", "--split", ("nope", "")),
        ("evaluate", "--input", ("nowhere.parquet",)),
        ("evaluate", "--output", ("log.parquet/below.json", "data")),
        ("evaluate", "--batch.eval_rows", ("-1",)),
        ("score", "--input", ("nowhere.parquet", "data", "items.parquet")),
        ("score", "--output", ("log.parquet", "log.parquet/below")),
        ("score", "--part_rows", ("-1",)),
        ("score", "--unknown", ("guess",)),
        ("score", "--quantize", ("int2",)),
        ("export", "--output", ("data", "log.parquet", "log.parquet/below")),
        ("export", "--format", ("tensorflow",)),
        ("compress", "--output", ("data", "log.parquet/below")),
        ("compress", "--bound", ("0", "-1", "nan")),
        ("compress", "--pairs", ("0",)),
        ("compress", "--method", ("zip", "prune")),
        ("compress", "--layers", ("-1", "1")),
        ("compress", "--heads", ("-1", "1")),
        ("compress", "--split", ("nope",)),
        ("watch", "--input", ("nowhere.parquet", "items.parquet")),
        ("watch", "--alpha", ("2", "nan")),
        ("watch", "--psi", ("-1",)),
        ("watch", "--ignore", ("nope",)),
        ("compare", "--split", ("nope",)),
        ("compare", "--slices", ("nope",)),
        ("compare", "--categories", ("0",)),
    ):
        for value in values:
            yield Case(f"{command} {option} {value}", command, (*NEEDS[command], option, value))
    yield Case("compare, one run", "compare", ("--runs", "runs/ctr"))
    yield Case("score: half a table", "score", NEEDS["score"], PARQUET["half a file"])
    yield Case("score: no column of a text", "score", NEEDS["score"], PARQUET["no column of a text"])
    yield Case("score: no key", "score", NEEDS["score"], PARQUET["no key in the log"])
    yield Case("watch: no column of a text", "watch", NEEDS["watch"], PARQUET["no column of a text"])


# ---------------------------------------------------------------------------------------------- damage

JSON = ("", "{", "[]", "null", '{"a": 1}', "\x00" * 64, '{"format": 1e999}')
"""What may stand in a file that should be a certain JSON."""
READ = {
    "config.json": "evaluate",
    "model.json": "score",
    "manifest.json": "score",
    "checksums.json": "evaluate",
    "calibration.json": "evaluate",
    "tokenizer/tokenizer.json": "score",
    "reference.json": "watch",
}
"""Files of a run, and a command that reads each."""


def damaged_runs() -> Iterator[Case]:
    """A run whose files are not what they were."""
    for file, command in READ.items():
        for number, data in enumerate(JSON):
            spoil = lambda at, file=file, data=data: write(at / "runs/ctr" / file, data)  # noqa: E731
            yield Case(
                f"{file} is {data[:12]!r}" if data.isprintable() else f"{file} is zeros", command, NEEDS[command], spoil
            )
            del number
    for file in ("config.json", "model.json", "manifest.json", "tokenizer/tokenizer.json", "reference.json"):
        yield Case(f"{file} is gone", READ[file], NEEDS[READ[file]], of_run(file, None))
    for command in NEEDS:
        yield Case(f"{command}: checkpoints are gone", command, NEEDS[command], without_checkpoints)
    yield Case("score: parameters are cut", "score", NEEDS["score"], cut_parameters)
    resumed = ("--config", "ctr.py", *SMALL)
    yield Case("train goes on: config.json is {", "train", resumed, of_run("config.json", "{"))
    yield Case("train goes on with another config", "train", (*resumed, "--seed", "3"))


def of_run(file: str, data: str | None) -> Callable[[Path], None]:
    """A file of the run with other contents, or none."""

    def spoil(folder: Path) -> None:
        path = folder / "runs/ctr" / file
        path.unlink() if data is None else write(path, data)

    return spoil


def without_checkpoints(folder: Path) -> None:
    """A run without them."""
    shutil.rmtree(folder / "runs/ctr/checkpoints")


def cut_parameters(folder: Path) -> None:
    """The largest file of parameters of each checkpoint, cut to half."""
    for step in (folder / "runs/ctr/checkpoints").iterdir():
        files = [path for path in (step / "params").rglob("*") if path.is_file()]
        if files:
            largest = max(files, key=lambda path: path.stat().st_size)
            write(largest, largest.read_bytes()[: largest.stat().st_size // 2])


def damaged_stores() -> Iterator[Case]:
    """A store whose files are not what they were: said by `prepare --verify`, and by what reads them."""
    for name, change in (
        ("cut", lambda whole: whole[: len(whole) // 2]),
        ("empty", lambda whole: b""),
        ("flipped", lambda whole: whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:]),
    ):
        for command, arguments in (
            ("prepare", ("--config", "ctr.py", *SMALL, "--verify", "true")),
            ("evaluate", RUN),
        ):
            yield Case(f"{command}: an array of the store is {name}", command, arguments, of_arrays(change))
    for data in JSON[:4]:
        yield Case(f"the manifest of the store is {data!r}", "evaluate", RUN, of_manifest(data))


def of_arrays(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """The labels of the test split, changed."""

    def spoil(folder: Path) -> None:
        (path,) = (folder / "stores").glob("*/test/labels.npy")
        write(path, change(path.read_bytes()))

    return spoil


def of_manifest(data: str) -> Callable[[Path], None]:
    """Other contents of a store's manifest."""

    def spoil(folder: Path) -> None:
        (path,) = (folder / "stores").glob("*/manifest.json")
        write(path, data)

    return spoil
