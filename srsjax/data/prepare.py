"""Tables to a token store: `prepare(config)` is the only way from files to training data."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from srsjax.config import TrainConfig, columns
from srsjax.data import fit, manifest, order, tables
from srsjax.data.catalogue import Catalogue, read_catalogues
from srsjax.data.clean import Cleaner
from srsjax.data.columns import Problem
from srsjax.data.encode import Encoder
from srsjax.data.folders import building
from srsjax.data.schema import Sources, check_schema
from srsjax.data.shop import write_shop
from srsjax.data.store import SPLITS, Store, open_store
from srsjax.data.tokenizer import TextEncoder, load_tokenizer, train_tokenizer
from srsjax.data.writer import StoreWriter
from srsjax.errors import InputError


def prepare(config: TrainConfig, log=print) -> Store:
    """The store of this config: an existing one where nothing it depends on has changed, else a new one.

    What it depends on: schema, data settings, tokenizer, the input files and the code's format version. `log` is told
    which of the two happened and why. Raises InputError for wrong settings and for bad input.
    """
    if config.data.shop.folder:
        write_shop(config.data.shop)
    sources = check_schema(config)
    tokenizer = _given_tokenizer(config)
    described = manifest.describe_input(config, tokenizer)
    folder = Path(config.data.store) / f"{_stem(config)}-{manifest.fingerprint(described)}"
    if (folder / "manifest.json").exists():
        log(f"{folder}: prepared before, and nothing it depends on has changed")
        return open_store(folder)
    log(f"{folder}: preparing, {_reason(folder, described)}")
    with building(folder) as partial:
        _build(config, sources, tokenizer, described, partial)
    store = open_store(folder)
    log(manifest.summary(store.manifest))
    return store


@dataclass
class _Rows:
    """The clean rows that go into the store."""

    in_order: Iterator[pa.RecordBatch]
    """Whole impressions, with their settled `split`."""
    fitted: fit.Fitted = fit.Fitted()
    text: TextEncoder | None = None
    duplicates: int = 0
    moved: int = 0


def _build(config: TrainConfig, sources: Sources, tokenizer: TextEncoder | None, described: dict, folder: Path) -> None:
    """Writes the store into an empty folder."""
    began = time.monotonic()
    with _BadRows(folder / "bad_rows.jsonl") as bad_rows:
        catalogues = read_catalogues(sources, bad_rows.add)
        cleaner = Cleaner(sources, catalogues, bad_rows.add, on_bad_row=config.data.on_bad_row)
        clean = (rows for _, rows in cleaner.read(config.data.log))
        if _needs_second_look(sources, tokenizer):
            rows = _look_twice(config, sources, catalogues, tokenizer, clean, cleaner, folder / "scratch")
        else:
            rows = _Rows(order.as_they_come(clean), text=tokenizer)
        encoder = Encoder(sources, catalogues, rows.text, rows.fitted)
        writer = StoreWriter(folder, sources, encoder.items)
        for batch in rows.in_order:
            split = batch["split"].to_numpy()
            for number in np.unique(split).tolist():
                writer.append(number, encoder.encode(batch.filter(pa.array(split == number))))
        writer.close()
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    rows.text.save(folder / "tokenizer")
    left_out = {"bad row": bad_rows.count} | cleaner.left_out | {"duplicate": rows.duplicates}
    found = {
        "fingerprint": manifest.fingerprint(described),
        "input": described,
        "rows": {
            "read": cleaner.rows_read,
            "log_rows": cleaner.impressions_read,
            "left_out": {reason: count for reason, count in left_out.items() if count},
            "moved": rows.moved,
        },
        "missing": {
            feature.name: {"rows": cleaner.missing[feature.name], "became": _became(feature, rows.fitted)}
            for feature in sources.features
            if cleaner.missing[feature.name]
        },
        "unknown_history_items": {name: count for name, count in cleaner.lost_items.items() if count},
        "cut": {name: count for name, count in writer.cut.items() if count},
        "tokenizer": {
            "source": _tokenizer_source(config) or "trained on the training rows",
            "fingerprint": rows.text.fingerprint,
            "vocab_size": rows.text.vocab_size,
        },
        "fitted": rows.fitted.to_json(),
    }
    _write_json(folder / "manifest.json", found)
    splits = manifest.describe_splits(open_store(folder), config.schema)
    _check_splits(config, splits, found["rows"])
    _write_json(folder / "manifest.json", found | {"splits": splits, "seconds": round(time.monotonic() - began, 2)})


# ---------------------------------------------------------------------------------------------- the second look


def _needs_second_look(sources: Sources, tokenizer: TextEncoder | None) -> bool:
    """Whether some rows must wait until all are read; without that the log is streamed straight through."""
    data = sources.data
    waits = columns(data.group_by) or columns(data.unique) or data.split.by == "time"
    return bool(waits) or tokenizer is None or fit.needs_fit(sources)


def _look_twice(
    config: TrainConfig,
    sources: Sources,
    catalogues: dict[str, Catalogue],
    tokenizer: TextEncoder | None,
    clean: Iterator[pa.RecordBatch],
    cleaner: Cleaner,
    scratch: Path,
) -> _Rows:
    """Spills the clean rows, settles where each belongs, and fits what the training rows decide."""
    spill = order.Spill(scratch, clean)
    if not spill.rows:
        raise InputError(_empty_split("train", config, [0, 0, 0], cleaner.rows_read, cleaner.left_out))
    settled = order.settle(spill, config.data.split.valid, config.data.split.test)
    fitted = fit.Fitted()
    if fit.needs_fit(sources):
        fitted = fit.fit(sources, catalogues, order.training_rows(spill, settled), scratch)
    if tokenizer is None:
        texts = fit.training_texts(sources, catalogues, order.training_rows(spill, settled))
        tokenizer = train_tokenizer(texts, config.tokenizer.vocab_size, config.tokenizer.lowercase)
    return _Rows(order.in_impressions(spill, settled), fitted, tokenizer, settled.duplicates, settled.moved)


def _check_splits(config: TrainConfig, splits: dict, rows: dict) -> None:
    """Raises InputError for an empty split: train always, the others if they were asked for."""
    split = config.data.split
    asked = split.values if split.by == "column" else (True, split.valid, split.test)
    counts = [splits[name]["candidates"] for name in SPLITS]
    for name, count, wanted in zip(SPLITS, counts, asked, strict=True):
        if wanted and not count:
            raise InputError(_empty_split(name, config, counts, rows["read"], rows["left_out"]))


def _empty_split(name: str, config: TrainConfig, counts: list[int], read: int, left_out: dict[str, int]) -> str:
    split = config.data.split
    by = f"{split.by} of {', '.join(columns(split.column)) or ', '.join(columns(config.data.group_by)) or 'the row'}"
    got = ", ".join(f"{count} {each}" for each, count in zip(SPLITS, counts, strict=True))
    why = "".join(f", {count} left out ({reason})" for reason, count in left_out.items() if count)
    advice = (
        f"check data.split.values {split.values}"
        if split.by == "column"
        else f"set data.split.{name} to 0 or use more rows"
    )
    log = tables.expand(config.data.log.files)[0]
    return f"{log}: the {name} split is empty: of {read} rows read {got}{why}, by {by}; {advice}"


# ---------------------------------------------------------------------------------------------- small parts


def _tokenizer_source(config: TrainConfig) -> str:
    return config.tokenizer.source or config.model.pretrained


def _given_tokenizer(config: TrainConfig) -> TextEncoder | None:
    """The tokenizer the config names; None where one is to be trained."""
    source = _tokenizer_source(config)
    return load_tokenizer(source) if source else None


def _stem(config: TrainConfig) -> str:
    """What the store is called: the name of the first log file."""
    name = tables.expand(config.data.log.files)[0].name.partition(".")[0]
    return re.sub(r"[^\w-]+", "_", name) or "log"


def _reason(folder: Path, described: dict) -> str:
    """Why a new store is prepared: what has changed since the newest one of the same log."""
    others = folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*/manifest.json")
    newest = max(others, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        return "the first store of this log"
    old = json.loads(newest.read_text(encoding="utf-8"))["input"]
    return f"changed since {newest.parent}: {', '.join(manifest.changes(old, described))}"


def _became(feature, fitted: fit.Fitted) -> str:
    """What a missing value became, in words."""
    match feature.missing:
        case "error":
            return "set aside"
        case "drop":
            return "left out"
        case "constant":
            return f"the constant {feature.fill!r}"
        case policy:
            return f"the {policy.replace('_', ' ')} value {fitted.fills[feature.name]!r}"


class _BadRows:
    """The rows that were set aside, as a file that is there only if there are any."""

    def __init__(self, path: Path):
        self.path, self.file, self.count = path, None, 0

    def __enter__(self) -> _BadRows:
        return self

    def __exit__(self, *_) -> None:
        if self.file:
            self.file.close()

    def add(self, problem: Problem) -> None:
        self.file = self.file or open(self.path, "w", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self.file.write(json.dumps(asdict(problem), ensure_ascii=False) + "\n")
        self.count += 1


def _write_json(path: Path, data: dict) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
