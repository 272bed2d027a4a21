"""Tables to a token store: `prepare(config)` is the only way from files to training data."""

from __future__ import annotations

import json
import re
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, TextIO

import pyarrow as pa

from srsjax.config import Feature, Schema, Split, Table, TrainConfig, columns
from srsjax.data.kinds import has_text, kind_of
from srsjax.data.preparing import fit, order, privacy
from srsjax.data.preparing.catalogue import read_catalogues
from srsjax.data.preparing.clean import Cleaner
from srsjax.data.preparing.encode import Encoder, refuse
from srsjax.data.preparing.engine import Engine, Local, open_engine
from srsjax.data.preparing.schema_checks import check_schema
from srsjax.data.preparing.sources import Sources
from srsjax.data.preparing.statistics import Fitted
from srsjax.data.preparing.writer import StoreWriter
from srsjax.data.reading import files
from srsjax.data.reading.cells import Problem
from srsjax.data.shop import write_shop
from srsjax.data.store import manifest
from srsjax.data.store.arrays import SPLITS, Store, has_checksums, open_store, write_manifest
from srsjax.data.store.tokenizer import TextEncoder, load_tokenizer, train_tokenizer
from srsjax.errors import InputError
from srsjax.files import atomic_folder, remove_leftovers


def prepare(config: TrainConfig, log=print) -> Store:
    """The store of this config: an existing one where nothing it depends on has changed, else a new one.

    What it depends on: schema, data settings, tokenizer, the input files and the code's format version. `log` is told
    which of the two happened and why. Raises InputError for wrong settings and for bad input.
    """
    if config.data.shop.folder:
        write_shop(config.data.shop)
    sources = check_schema(config)
    tokenizer = _given_tokenizer(config)
    described = manifest.describe_input(config, tokenizer, privacy.fingerprint(sources.secret))
    folder = Path(config.data.store) / f"{_stem(config)}-{manifest.fingerprint(described)}"
    remove_leftovers(folder.parent)  # also where nothing is prepared, and those of other fingerprints
    there = (folder / "manifest.json").exists()
    if there and has_checksums(folder):
        store = open_store(folder, manifest.fingerprint(described))
        log(f"{folder}: prepared before, and nothing it depends on has changed")
        return store
    log(f"{folder}: preparing, {'again: it has no checksums' if there else _reason(folder, described)}")
    began = time.monotonic()
    # A folder that is there now is no store, or has no checksums; another process may make one meanwhile.
    with atomic_folder(folder, exists="replace" if folder.exists() else "keep") as partial:
        _build(config, sources, tokenizer, described, partial)
    store = open_store(folder)
    log(manifest.summary(store.manifest))
    log(_rates(store.manifest, time.monotonic() - began))
    return store


def labelled_store(
    encoder: Encoder,
    table: Table,
    folder: str | Path,
    labels: bool = True,
    set_aside: Callable[[Problem], None] | None = None,
) -> Store:
    """A store of labelled files, for evaluation: all rows are its test split. Without `labels` those need not be there,
    nor what only training reads.

    They are cleaned, joined and grouped as the encoder's config says, except that nothing is fitted and that a bad row
    is an error, or taken by `set_aside`. Written into `folder`, which does not exist yet and is the caller's to remove.
    """
    folder = Path(folder)
    data = replace(encoder.sources.data, log=table, split=Split(valid=0.0, test=1.0))
    sources = Sources(encoder.sources.schema, data)
    on_bad_row: Literal["error", "skip"] = "skip" if set_aside else "error"
    cleaner = Cleaner(sources, encoder.catalogues, set_aside or refuse, labels=labels, on_bad_row=on_bad_row)
    engine = Local(data.workers)
    rows: Iterator[pa.RecordBatch] = map(cleaner.add, engine.clean(cleaner, table))
    settled = None
    if _must_wait(sources):
        spill = order.Spill(folder / "scratch", rows)
        settled = order.settle(spill, data.split.valid, data.split.test)
        rows = order.in_impressions(spill, settled)
    written = _write_rows(folder, encoder, rows, engine)
    return _finish(folder, _counts(cleaner, encoder.fitted, settled, written), sources.schema)


def _build(config: TrainConfig, sources: Sources, tokenizer: TextEncoder | None, described: dict, folder: Path) -> None:
    """Writes the store into an empty folder. `tokenizer` is None where one is to be trained."""
    began = time.monotonic()
    fitted, settled = Fitted(), None
    with _BadRows(folder / "bad_rows.jsonl") as bad_rows, open_engine(config.data, folder / "engine") as engine:
        catalogues = read_catalogues(sources, bad_rows.add)
        cleaner = Cleaner(sources, catalogues, bad_rows.add, on_bad_row=config.data.on_bad_row)
        rows: Iterator[pa.RecordBatch] = map(cleaner.add, engine.clean(cleaner, config.data.log))
        if _must_wait(sources) or fit.needs_fit(sources) or tokenizer is None:
            spill = order.Spill(folder / "scratch", rows)
            settled = order.settle(spill, config.data.split.valid, config.data.split.test)
            _check_splits(config, cleaner, settled.counts)
            if fit.needs_fit(sources):
                fitted = fit.fit(sources, catalogues, order.training_rows(spill, settled), spill.folder)
            if tokenizer is None:
                texts = fit.training_texts(sources, catalogues, order.training_rows(spill, settled))
                tokenizer = train_tokenizer(texts, config.tokenizer.vocab_size, config.tokenizer.lowercase)
            rows = order.in_impressions(spill, settled)
        written = _write_rows(folder, Encoder(sources, catalogues, tokenizer, fitted), rows, engine)
    tokenizer.save(folder / "tokenizer")
    found = {
        "fingerprint": manifest.fingerprint(described),
        "input": described,
        **_counts(cleaner, fitted, settled, written),
        "set_aside": bad_rows.count,
        "tokenizer": {
            "source": _tokenizer_source(config) or ("trained on the training rows" if has_text(config.schema) else ""),
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
        },
        "fitted": fitted.to_json(),
    }
    store = _finish(folder, found, sources.schema)
    _check_splits(config, cleaner, [store.manifest["splits"][name]["candidates"] for name in SPLITS])
    write_manifest(folder, store.manifest | {"seconds": round(time.monotonic() - began, 2)})


def _must_wait(sources: Sources) -> bool:
    """Whether where a row belongs is only known once all are read; else the log is streamed straight through."""
    data = sources.data
    return bool(columns(data.group_by) or columns(data.unique)) or data.split.by == "time"


def _write_rows(folder: Path, encoder: Encoder, rows: Iterator[pa.RecordBatch], engine: Engine) -> StoreWriter:
    """Encodes and writes clean rows of whole impressions; returns the closed writer, which counted what was cut."""
    writer = StoreWriter(folder, encoder.sources, encoder.items)
    for encoded in engine.encode(encoder, order.by_impression(rows)):
        for split, part in encoded:
            writer.append(split, part)
    writer.close()
    return writer


def _counts(cleaner: Cleaner, fitted: Fitted, settled: order.Order | None, written: StoreWriter) -> dict:
    """What the manifest says of the rows."""
    left_out = cleaner.left_out | Counter({"duplicate": settled.duplicates if settled else 0})
    return {
        "rows": {
            "read": cleaner.rows_read,
            "log_rows": cleaner.impressions_read,
            "left_out": {reason: count for reason, count in left_out.items() if count},
            "moved": settled.moved if settled else 0,
        },
        "periods": settled.periods if settled else {},
        "missing": {
            feature.name: {"rows": cleaner.missing[feature.name], "became": _became(feature, fitted)}
            for feature in cleaner.sources.features
            if cleaner.missing[feature.name]
        },
        "unknown_keys": {name: count for name, count in cleaner.unknown_keys.items() if count},
        "unknown_history_items": {name: count for name, count in cleaner.lost_items.items() if count},
        "cut": {name: count for name, count in written.cut.items() if count},
        "unseen_classes": {name: count for name, count in written.unseen.items() if count},
    }


def _became(feature: Feature, fitted: Fitted) -> str:
    """What a missing value became, for people."""
    return "a private value" if getattr(feature, "private", False) else kind_of(feature).became(fitted)


def _finish(folder: Path, found: dict, schema: Schema) -> Store:
    """Completes a written store with its manifest, and opens it."""
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    write_manifest(folder, found)
    store = open_store(folder)
    store = replace(store, manifest=store.manifest | {"splits": manifest.describe_splits(store, schema)})
    store.checks.wait()  # what was just read is what was written
    write_manifest(folder, store.manifest)
    return store


def _check_splits(config: TrainConfig, cleaner: Cleaner, counts: list[int]) -> None:
    """Raises InputError for an empty split: train always, the others if they were asked for."""
    split = config.data.split
    asked = split.values if split.by == "column" else (True, split.valid, split.test)
    for name, count, wanted in zip(SPLITS, counts, asked, strict=True):
        if wanted and not count:
            key = columns(split.column) or columns(config.data.group_by) or ("the whole row",)
            got = ", ".join(f"{count} {each}" for each, count in zip(SPLITS, counts, strict=True))
            why = "".join(f", {count} left out ({reason})" for reason, count in cleaner.left_out.items() if count)
            advice = f"check data.split.values {split.values}" if split.by == "column" else "change data.split"
            log = files.expand(config.data.log.files)[0]
            raise InputError(
                f"{log}: the {name} split is empty; of {cleaner.rows_read} rows {got}"
                f"{why}, by {split.by} of {', '.join(key)}; {advice} or use more rows"
            )


# ---------------------------------------------------------------------------------------------- small parts


def _tokenizer_source(config: TrainConfig) -> str:
    source = config.tokenizer.source or config.model.pretrained
    own = Path(source) / "tokenizer"  # of a run folder
    return str(own) if source and own.is_dir() else source


def _given_tokenizer(config: TrainConfig) -> TextEncoder | None:
    """The tokenizer the config names; None where one is to be trained; any where the schema has no text."""
    if not has_text(config.schema):
        return train_tokenizer(["no text"], 100, lowercase=True)
    source = _tokenizer_source(config)
    return load_tokenizer(source) if source else None


def _stem(config: TrainConfig) -> str:
    """What the store is called: the name of the first log file, without a number at its end."""
    name = files.expand(config.data.log.files)[0].name.partition(".")[0]
    return re.sub(r"[^\w-]+", "_", re.sub(r"[-_]?\d+$", "", name)) or "log"


def _reason(folder: Path, described: dict) -> str:
    """Why a new store is prepared: what has changed since the newest one of the same log."""
    others = folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*/manifest.json")
    newest = max(others, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        return "the first store of this log"
    try:
        old = json.loads(newest.read_text(encoding="utf-8"))["input"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"the manifest of {newest.parent} cannot be read"
    return f"changed since {newest.parent}: {', '.join(manifest.changes(old, described))}"


def _rates(made: dict, seconds: float) -> str:
    """How fast a store was made, in words; MB are those of the log's files."""
    rows, size = made["rows"]["read"], sum(file["size"] for file in made["input"]["log"]["files"])
    return (
        f"{rows:,} rows in {seconds:.1f} s: {rows / seconds:,.0f} rows/s, {size / seconds / 1e6:.1f} MB/s, "
        f"peak memory {peak_memory():,} MiB"
    )


def peak_memory() -> int:
    """MiB that this process held at most."""
    status = Path("/proc/self/status")  # ru_maxrss begins at what the parent process had when it forked
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+)", status.read_text())):
        return int(found[1]) >> 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)


class _BadRows:
    """The rows that were set aside, as a file that is there only if there are any."""

    def __init__(self, path: Path):
        self.path, self.count = path, 0
        self.file: TextIO | None = None
        self.last: Problem | None = None

    def __enter__(self) -> _BadRows:
        return self

    def __exit__(self, *_) -> None:
        if self.file:
            self.file.close()

    def add(self, problem: Problem) -> None:
        if problem == self.last:  # what is wrong with a context is wrong with each of its candidates
            return
        self.file = self.file or open(self.path, "w", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self.file.write(json.dumps(asdict(problem), ensure_ascii=False) + "\n")
        self.count, self.last = self.count + 1, problem
