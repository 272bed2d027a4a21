"""Fuzzes what reads input: `python tests/faults/fuzz.py --inputs 100000 --seed 0`.

Tables (CSV, TSV, JSON lines, Parquet), the JSON files of stores and runs, and command lines are damaged by chance, and
handed in this process to the functions that commands call. Each must succeed, with finite numbers in the store, or end
with an `InputError` of one line, which commands turn into exit code 2. Prints counts and every failure; what failed is
kept in the folder `--keep`, and `--only N` does input N alone. The exit code is 1 where anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fuzz_cases as cases
import numpy as np

from srsjax import cli
from srsjax.config_io import leaves, with_field
from srsjax.data.preparing.encode import load_encoder
from srsjax.data.preparing.prepare import labelled_store, prepare
from srsjax.data.preparing.schema_checks import check_schema
from srsjax.data.store.arrays import SPLITS, Store
from srsjax.data.store.tokenizer import load_tokenizer
from srsjax.errors import InputError
from srsjax.files import trouble
from srsjax.runs.calibration import Calibration
from srsjax.runs.run_folder import CHECKSUMS, RunFolder
from srsjax.runs.spec import make_spec
from srsjax.runs.warm_start import read_spec
from srsjax.score import Arguments as ScoreArguments
from srsjax.training.goodput import Goodput
from srsjax.training.log import drop_lines_after

SECONDS = 60
"""An input that takes longer counts as hung."""
BLOCK = 500
"""Inputs of a process, which may die of one."""
MEMORY = 24 << 30
"""Bytes of addresses of such a process."""
TARGETS = ("tables",) * 6 + ("stores", "runs", "options", "options")
NO_OPTIONS = ("data.shop", "tokenizer.source", "model.pretrained", "distill", "data.engine", "data.workers")
"""Fields that read another data set, the hub or a cluster."""


class Fuzzer:
    """Damages one input after another in a folder of its own."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self.good = folder / "good"
        self.good.mkdir(parents=True)
        chance = random.Random(0)
        self.log, self.lists = cases.log_rows(chance, lists=False), cases.log_rows(chance, lists=True)
        self.items = cases.item_rows(chance)
        (self.good / "config.py").write_text(cases.CONFIG)
        (self.good / "lists.py").write_text(cases.LIST_CONFIG)
        cases.write_table(chance, self.good, "items", self.items, "csv", damage=False)
        cases.write_table(chance, self.good, "log", self.log, "csv", damage=False)
        with contextlib.chdir(self.good):
            self.config = cli.read_config("config.py")
            self.store = prepare(self.config, log=_quiet).folder.absolute()
            self.encoder = load_encoder(self.config, self.store)
            self.make_run()

    def make_run(self) -> None:
        """A run folder as far as its small files go."""
        store = prepare(self.config, log=_quiet)
        spec = make_spec(self.config, load_tokenizer(store.folder / "tokenizer"), store.manifest)
        folder = RunFolder("run")
        folder.create(self.config, store.folder / "tokenizer", store.manifest, spec.to_json())
        Calibration(3).save(folder)
        folder.report_file.write_text(json.dumps({"best_step": 3, "steps": 9, "valid": {"auc": 0.5}}))
        folder.bind((folder.calibration_file,), 3)
        lines = [{"kind": "train", "step": step, "loss": 0.5} for step in range(1, 9)]
        folder.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        events = [{"event": "start", "at": 1.0}, {"event": "step", "at": 2.0}]
        folder.goodput_file.write_text("".join(json.dumps(line) + "\n" for line in events))

    def run(self, number: int, catch: bool = True) -> str:
        """What became of input `number`: `success`, `refused`, or what is wrong (raised without `catch`)."""
        chance = random.Random(f"{self.seed} {number}")
        target = chance.choice(TARGETS)
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        with contextlib.chdir(work):
            return outcome(target, lambda: getattr(self, target)(chance, work), catch)

    # -------------------------------------------------------------------------------------------- targets

    def tables(self, chance: random.Random, work: Path) -> None:
        """A damaged log or catalogue, prepared, evaluated or scored."""
        lists = chance.random() < 0.25
        damaged = chance.choice(("log", "log", "items"))
        rows = cases.log_rows(chance, lists)
        log = cases.write_table(chance, work, "log", rows, chance.choice(cases.FORMATS), damaged == "log")
        items = cases.write_table(chance, work, "items", self.items, chance.choice(cases.FORMATS), damaged == "items")
        shutil.copy(self.good / ("lists.py" if lists else "config.py"), work / "config.py")
        config = with_field(cli.read_config("config.py"), "data.log.files", log)
        if not lists:
            config = with_field(config, "data.catalogues.0.files", items)
        if not lists and chance.random() < 0.4:
            how = chance.randrange(3)
            encoder = self.encoder if how else load_encoder(config, self.store)
            table = replace(self.config.data.log, files=log)
            if how == 1:
                _check(labelled_store(encoder, table, work / "labelled"))
            else:
                for encoded in encoder.with_new_rows(table).encode_files(table, labels=False):
                    _check_finite(encoded.split.candidate_features | encoded.split.context_features)
            return
        config = with_field(config, "data.on_bad_row", chance.choice(("error", "skip")))
        for name, value in self.settings(chance, lists):
            config = with_field(config, name, value)
        store = prepare(config, log=_quiet)
        _check(store)
        prepare(config, log=_quiet)

    def settings(self, chance: random.Random, lists: bool):
        """Some settings of how rows are read and divided."""
        if chance.random() < 0.3:
            yield "data.split.by", "time"
            yield "data.split.column", "shown"
        elif chance.random() < 0.3:
            yield "data.split.column", ""
        if chance.random() < 0.2:
            yield "data.unique", chance.choice(("*", "user"))
        if chance.random() < 0.2 and not lists:
            yield "data.group_by", "request"
        if chance.random() < 0.2 and not lists:
            yield "data.negatives", 2
            yield "schema.candidate", self.config.schema.candidate[:4]
            yield "schema.tasks", self.config.schema.tasks[:1]

    def stores(self, chance: random.Random, work: Path) -> None:
        """A store one of whose files is damaged."""
        shutil.copytree(self.good, work, dirs_exist_ok=True)
        (folder,) = (work / "stores").iterdir()
        damage(chance, folder, ("manifest.json",) * 3 + ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"))
        if chance.random() < 0.3:
            drop(folder / "manifest.json", "files", "checksum")
        store = prepare(self.config, log=_quiet)
        store.checks.everything()
        _check(store)
        load_encoder(self.config, folder)

    def runs(self, chance: random.Random, work: Path) -> None:
        """A run one of whose small files is damaged, with checksums or of the first versions, which had none."""
        shutil.copytree(self.good, work, dirs_exist_ok=True)
        folder = RunFolder("run")
        if chance.random() < 0.7:
            folder.checksums_file.unlink()
            drop(folder.config_file, CHECKSUMS)
        names = ("config", "model", "manifest", "report", "calibration", "checksums")
        lines = ("metrics.jsonl", "goodput.jsonl", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")
        damage(chance, folder.path, tuple(f"{name}.json" for name in names) + lines)
        drop_lines_after(folder.metrics_file, 5)
        with contextlib.closing(Goodput()) as goodput:
            goodput.open(folder.goodput_file)
            goodput.said()
        config, _ = cli.load_run(ScoreArguments, ["--run", "run", "--input", "log.csv"], "score")
        folder.check(self.config)
        folder.verify()
        folder.check_data(self.store_manifest())
        folder.precision()
        read_spec(folder)
        Calibration.load(folder)
        load_encoder(config, folder.path)

    def store_manifest(self) -> dict:
        """The manifest of the good store."""
        return json.loads((self.store / "manifest.json").read_text())

    def options(self, chance: random.Random, work: Path) -> None:
        """Fields set on the command line, and what is checked and prepared by them."""
        shutil.copytree(self.good, work, dirs_exist_ok=True)
        argv = ["--config", "config.py"]
        fields = list(leaves(self.config))
        for _ in range(chance.choice((1, 1, 2, 3))):
            leaf = chance.choice(fields)
            name = leaf.name if chance.random() < 0.95 else leaf.name[: chance.randrange(len(leaf.name))]
            argv += [f"--{name}", *(word(chance, leaf.value) for _ in range(chance.choice((0, 1, 1, 1, 1, 2, 3))))]
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            config, _ = cli.load_config(argv, "train")
        if not any(word.startswith(tuple(f"--{name}" for name in NO_OPTIONS)) for word in argv):
            check_schema(config)
            store = prepare(config, log=_quiet)
            make_spec(config, load_tokenizer(store.folder / "tokenizer"), store.manifest)


def outcome(target: str, call: Callable[[], None], catch: bool) -> str:
    """What became of a call that reads damaged input; what is wrong is raised without `catch`."""
    signal.signal(signal.SIGALRM, _hung)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        call()
        return f"{target}: success"
    except InputError as error:
        return f"{target}: refused" if "\n" not in str(error) else f"FAILURE {target}: several lines: {error}"
    except Exception as error:
        if not catch:
            raise
        if trouble(error):
            return f"{target}: refused by the disk"
        last = traceback.extract_tb(error.__traceback__)
        own = [f"{Path(each.filename).name}:{each.lineno}" for each in last if "srsjax" in each.filename]
        said = " ".join(str(error).split())[:200]
        return f"FAILURE {target}: {type(error).__name__} at {' < '.join(own[-2:][::-1])}: {said}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def word(chance: random.Random, value: object) -> str:
    """A word for a field: one that it may hold, more or less, or one that none does."""
    if chance.random() < 0.4:
        return chance.choice(
            ("0", "1", "2", "7", "0.5", "true", "column", "time", "user", "item", "items", "items.title")
        )
    if chance.random() < 0.2:
        return str(value)
    return str(chance.choice(cases.NASTY)).replace("\x00", "")[:2000]  # no argument holds a NUL


def damage(chance: random.Random, folder: Path, names: tuple[str, ...]) -> None:
    path = folder / chance.choice(names)
    if not path.exists():
        return
    content = path.read_bytes()
    if path.suffix == ".json" and chance.random() < 0.7:
        data = json.loads(content)
        for _ in range(chance.choice((1, 1, 2, 4))):
            data = cases.damaged_json(chance, data)
        path.write_text(json.dumps(data))
    else:
        path.write_bytes(cases.damaged_bytes(chance, content))


def drop(path: Path, *names: str) -> None:
    try:
        data = json.loads(path.read_text())
    except (ValueError, OSError):
        return
    if isinstance(data, dict):
        path.write_text(json.dumps({name: value for name, value in data.items() if name not in names}))


def _check(store: Store) -> None:
    """Fails for a number in a store that is not finite, but for one that is missing by an indicator."""
    _check_finite(store.items.features)
    for name in SPLITS:
        split = store.split(name)
        _check_finite({"labels": split.labels, "weights": split.weights})
        _check_finite(split.candidate_features | split.context_features)


def _check_finite(arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if not (np.isfinite(array) | ((name == "age") & np.isnan(array))).all():
            raise AssertionError(f"{name}: a number that is not finite is in the store")


def _quiet(_: str) -> None:
    pass


def _hung(*_) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


# ---------------------------------------------------------------------------------------------- many inputs


def fuzz(inputs: range, seed: int, folder: Path, keep: Path | None = None, say=print) -> dict[int, str]:
    """What became of each input; also written to `found.txt`, in case the process dies."""
    fuzzer = Fuzzer(folder, seed)
    for number in inputs:
        (folder / "current").write_text(str(number))
        found = fuzzer.run(number)
        with open(folder / "found.txt", "a") as file:
            file.write(f"{number} {' '.join(found.split())}\n")
        if found.startswith("FAILURE"):
            say(f"input {number}: {found}")
            if keep:
                shutil.copytree(folder / "work", keep / f"{seed}-{number}", dirs_exist_ok=True)
    found = dict(line.split(" ", 1) for line in (folder / "found.txt").read_text().splitlines())
    return {int(number): said for number, said in found.items()}


def _block(inputs: range, seed: int, folder: Path, keep: Path | None) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    fuzz(inputs, seed, folder, keep)


def in_processes(count: int, seed: int, keep: Path | None) -> dict[int, str]:
    """As `fuzz`, in processes of some inputs each; one that dies is a failure of the input that it had."""
    found: dict[int, str] = {}
    start, began = 0, time.monotonic()
    while start < count:
        with tempfile.TemporaryDirectory(prefix="srsjax-fuzz-") as folder:
            arguments = (range(start, min(start + BLOCK, count)), seed, Path(folder), keep)
            process = multiprocessing.get_context("fork").Process(target=_block, args=arguments)
            process.start()
            process.join()
            lines = (Path(folder) / "found.txt").read_text().splitlines()
            found |= {int(number): said for number, said in (line.split(" ", 1) for line in lines)}
            start = arguments[0].stop
            if process.exitcode:
                number = int((Path(folder) / "current").read_text())
                found[number] = f"FAILURE: the process died, exit code {process.exitcode}"
                print(f"input {number}: {found[number]}")
                start = number + 1
        print(f"{start:,} inputs, {time.monotonic() - began:,.0f} s", flush=True)
    return found


def failures_of(found: dict[int, str]) -> dict[int, str]:
    """The inputs that did what none may do."""
    return {number: said for number, said in found.items() if said.startswith("FAILURE")}


def main() -> int:
    """Fuzzes as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this input alone, with its traceback")
    parser.add_argument("--keep", type=Path, help="folder for what failed")
    given = parser.parse_args()
    if given.only is not None:
        with tempfile.TemporaryDirectory(prefix="srsjax-fuzz-") as folder:
            Fuzzer(Path(folder), given.seed).run(given.only, catch=False)
        return 0
    found = in_processes(given.inputs, given.seed, given.keep)
    failures = failures_of(found)
    for name, number in sorted(Counter(found[number] for number in found.keys() - failures.keys()).items()):
        print(f"  {number:8,} {name}")
    print(f"  {len(failures):8,} failures")
    for number, said in failures.items():
        print(f"input {number}: {said}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
