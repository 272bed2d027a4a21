"""Fuzzes each reader by itself: `python tests/faults/fuzz_readers.py --inputs 100000 --seed 0`.

What `fuzz.py` damages is prepared or scored as a whole, some 40 ms each. Here a damaged file goes to its reader alone:
tables (CSV, TSV, JSON lines, Parquet) to the reader and every cast of every column, the JSON files of a store and of a
run to what loads them, a damaged tokenizer to its loader, command lines to their parser. So many inputs for each
reader. Each must be read, or end with an `InputError` of one line. Prints counts and every failure; the exit code is 1
where anything failed. `--only READER N` does one input again, with its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import fuzz_cases as cases
import numpy as np
from fuzz import Fuzzer, damage, drop, outcome, word

from srsjax import cli
from srsjax.config import Table
from srsjax.config_io import leaves
from srsjax.data.preparing.encode import load_encoder
from srsjax.data.reading import cells, tables
from srsjax.data.store.arrays import open_store
from srsjax.data.store.checksums import sealed
from srsjax.data.store.tokenizer import load_tokenizer
from srsjax.runs.calibration import Calibration
from srsjax.runs.run_folder import CHECKSUMS, RunFolder
from srsjax.runs.warm_start import read_spec

FORMATS = ("csv", "tsv", "jsonl", "parquet")
READERS = (*FORMATS, "manifest", "run_file", "tokenizer", "options")
BLOCK = 5000
"""Inputs of a process, which may die of one."""
COLUMNS = 2
"""Columns of a table that are cast, drawn by chance."""
CASTS = (cells.numbers, cells.non_negative, cells.labels, cells.times)
LISTS = (cells.texts, cells.text_lists, cells.time_lists)


class Readers:
    """Damages one input after another in a folder of its own."""

    def __init__(self, folder: Path, seed: int):
        self.seed, self.folder = seed, folder
        made = Fuzzer(folder, seed)
        self.config, self.store, self.run_folder = made.config, made.store, made.good / "run"
        self.unchecked = made.good / "unchecked"  # as the first versions wrote it
        shutil.copytree(self.run_folder, self.unchecked)
        RunFolder(self.unchecked).checksums_file.unlink()
        drop(RunFolder(self.unchecked).config_file, CHECKSUMS)
        self.rows = {lists: cases.log_rows(random.Random(0), lists) for lists in (False, True)}
        self.fields = list(leaves(self.config))

    def run(self, reader: str, number: int, catch: bool = True) -> str:
        """What became of an input: `success`, `refused`, or what is wrong (raised without `catch`)."""
        chance = random.Random(f"{self.seed} {reader} {number}")
        call = self.table if reader in FORMATS else getattr(self, reader)
        return outcome(reader, lambda: call(chance, reader), catch)

    def table(self, chance: random.Random, kind: str) -> None:
        """A damaged table, each column cast to everything."""
        name = cases.write_table(chance, self.folder, "log", self.rows[chance.random() < 0.3], kind, damage=True)
        policy = chance.choice(("error", "skip", "skip", "skip"))
        for chunk in tables.read(Table(str(self.folder / name))):
            names = chunk.batch.schema.names
            for column in chance.sample(names, min(len(names), COLUMNS)):
                problems = cells.Problems(policy)
                for cast in CASTS:
                    values, missing = cast(chunk, column, problems)
                    assert np.isfinite(values[~missing]).all(), f"{cast.__name__}: a number that is not finite"
                for read in LISTS:
                    assert len(read(chunk, column, problems)) == len(chunk)
                cells.vectors(chunk, column, 3, problems)

    def manifest(self, chance: random.Random, _: str) -> None:
        """The manifest of a store."""
        with self.damaged(chance, self.store, ("manifest.json",)):
            file = self.store / "manifest.json"
            with contextlib.suppress(ValueError):
                if chance.random() < 0.7 and isinstance(data := json.loads(file.read_text()), dict):
                    file.write_text(json.dumps(sealed(data)))  # as if it had been written so
            open_store(self.store)
            load_encoder(self.config, self.store)

    def run_file(self, chance: random.Random, _: str) -> None:
        """A small file of a run."""
        names = ("config", "model", "manifest", "report", "calibration", "checksums")
        folder = RunFolder(chance.choice((self.run_folder, self.unchecked, self.unchecked)))
        with self.damaged(chance, folder.path, tuple(f"{name}.json" for name in names)):
            for read in chance.sample((folder.config, folder.verify, folder.precision, folder.best_step), 4):
                read()
            read_spec(folder)
            Calibration.load(folder)

    def tokenizer(self, chance: random.Random, _: str) -> None:
        """A file of a tokenizer."""
        names = ("tokenizer.json",) * 3 + ("tokenizer_config.json",)
        with self.damaged(chance, self.run_folder / "tokenizer", names):
            load_tokenizer(self.run_folder / "tokenizer")

    def options(self, chance: random.Random, _: str) -> None:
        """Fields on a command line."""
        argv = ["--config", str(self.run_folder.parent / "config.py")]
        for _ in range(chance.choice((1, 1, 2, 3))):
            leaf = chance.choice(self.fields)
            name = leaf.name if chance.random() < 0.95 else leaf.name[: chance.randrange(len(leaf.name))]
            argv += [f"--{name}", *(word(chance, leaf.value) for _ in range(chance.choice((0, 1, 1, 1, 2, 3))))]
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            cli.load_config(argv, "train")

    @contextlib.contextmanager
    def damaged(self, chance: random.Random, folder: Path, names: tuple[str, ...]):
        """One of the files is damaged meanwhile."""
        kept = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
        try:
            damage(chance, folder, names)
            yield
        finally:
            for name, content in kept.items():
                (folder / name).write_bytes(content)


def main() -> int:
    """Fuzzes as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--only", nargs=2, metavar=("READER", "N"), help="one input alone, with its traceback")
    given = parser.parse_args()
    if given.only:
        with tempfile.TemporaryDirectory(prefix="srsjax-fuzz-") as folder:
            print(Readers(Path(folder), given.seed).run(given.only[0], int(given.only[1]), catch=False))
        return 0
    failed = 0
    for reader in given.readers:
        began = time.monotonic()
        found = in_processes(reader, given.inputs, given.seed)
        failures = {number: said for number, said in found.items() if said.startswith("FAILURE")}
        counts = Counter(said.partition(": ")[2] for number, said in found.items() if number not in failures)
        told = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
        print(f"{reader}: {told}, {len(failures):,} failures, {time.monotonic() - began:,.0f} s", flush=True)
        for number, said in failures.items():
            print(f"input {reader} {number}: {said}", flush=True)
        failed += len(failures)
    return bool(failed)


def in_processes(reader: str, count: int, seed: int) -> dict[int, str]:
    """What became of each input; a process that dies is a failure of the input that it had."""
    found: dict[int, str] = {}
    start = 0
    while start < count:
        with tempfile.TemporaryDirectory(prefix="srsjax-fuzz-") as folder:
            numbers = range(start, min(start + BLOCK, count))
            process = multiprocessing.get_context("fork").Process(target=_block, args=(reader, numbers, seed, folder))
            process.start()
            process.join()
            lines = (Path(folder) / "found.txt").read_text().splitlines()
            found |= {int(number): said for number, _, said in (line.partition(" ") for line in lines)}
            start = numbers.stop
            if process.exitcode:
                lost = len(lines) + numbers.start
                found[lost], start = f"FAILURE: the process died, exit code {process.exitcode}", lost + 1
    return found


def _block(reader: str, numbers: range, seed: int, folder: str) -> None:
    made = Readers(Path(folder), seed)
    with open(Path(folder) / "found.txt", "w") as file:
        for number in numbers:
            file.write(f"{number} {' '.join(made.run(reader, number).split())}\n")
            file.flush()


if __name__ == "__main__":
    sys.exit(main())
