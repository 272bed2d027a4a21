"""The manifest: what a store was made from, its statistics, and whether it still matches its input."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table as Grid

from srsjax.config import Schema, Table, TrainConfig
from srsjax.config_data import LABELS
from srsjax.console import Console
from srsjax.data.kinds import kind_of
from srsjax.data.reading import files
from srsjax.data.store.arrays import SPLITS, Store
from srsjax.data.store.tokenizer import TextEncoder

# Incremented whenever the same input and settings would give a different store.
FORMAT = 1
END_BYTES = 1 << 20
BLOCK = 1 << 17  # impressions described at a time, with all their candidates
LABEL_FIELDS = ("name", "column", "positive", "impressions", "weight", "kind", "classes")
"""What of a task a store depends on; the rest is about training."""
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


# ---------------------------------------------------------------------------------------------- fingerprints


def describe_input(train: TrainConfig, tokenizer: TextEncoder | None, secret: str = "") -> dict:
    """Everything a store depends on, as plain data; equal descriptions give equal stores.

    `tokenizer` is None if one is to be trained; `secret` is the fingerprint of that of `data.hash_key_env`. Raises
    InputError if a file is missing.
    """
    apart = ("log", "catalogues", "shop", "store", "keys", "engine", "workers", "private", "hash_key_env")
    settings = {name: value for name, value in _without_defaults(train.data).items() if name not in apart}
    trained = {"vocab_size": train.tokenizer.vocab_size, "lowercase": train.tokenizer.lowercase}
    return {
        "format": FORMAT,
        "schema": describe_schema(train.schema),
        "data": json.loads(json.dumps(settings)),
        "tokenizer": {"fingerprint": tokenizer.fingerprint} if tokenizer else {"trained": trained},
        "log": describe_table(train.data.log),
        "catalogues": {catalogue.name: describe_table(catalogue) for catalogue in train.data.catalogues},
        **({"secret": secret} if secret else {}),
    } | describe_vectors(train)


def fingerprint(described: dict) -> str:
    """The first 12 hex digits of its SHA-256."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


def describe_schema(schema: Schema) -> dict:
    """A schema as plain data: what a store depends on. `type` is the kind of each feature."""
    sides = {
        side: [{"type": type(f).__name__} | _without_defaults(f, "private") for f in getattr(schema, side)]
        for side in ("context", "candidate")
    }
    tasks = [{k: v for k, v in _without_defaults(task).items() if k in LABEL_FIELDS} for task in schema.tasks]
    return json.loads(json.dumps(sides | {"tasks": tasks}))


def changes(old: dict, new: dict) -> list[str]:
    """Names of what differs between two descriptions of input."""
    found = [name for name in ("schema", "tokenizer") if old.get(name) != new[name]]
    found += ["files of vectors"] if old.get("vectors") != new.get("vectors") else []
    found += ["the secret of data.hash_key_env"] if old.get("secret") != new.get("secret") else []
    found += ["format of the store"] if old.get("format") != new["format"] else []
    before, now = old.get("data", {}), new["data"]
    found += [f"data.{name}" for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    old_tables = {"log": old.get("log", {})} | old.get("catalogues", {})
    for name, table in ({"log": new["log"]} | new["catalogues"]).items():
        before = old_tables.get(name, {})
        if {key: value for key, value in table.items() if key != "files"} != {
            key: value for key, value in before.items() if key != "files"
        }:
            found.append(f"table {name}")
        before_files = {file["name"]: file for file in before.get("files", [])}
        found += [file["name"] for file in table["files"] if before_files.pop(file["name"], None) != file]
        found += [f"{name} (gone)" for name in before_files]
    return found


def describe_vectors(train: TrainConfig) -> dict:
    """The files of vectors by feature; nothing where no feature has any."""
    kinds = map(kind_of, (*train.schema.context, *train.schema.candidate))
    found = {kind.feature.name: place.describe() for kind in kinds if (place := kind.place(train.data.store))}
    return {"vectors": found} if found else {}


def _without_defaults(settings: Any, *besides: str) -> dict[str, Any]:
    """The fields of a dataclass that are not as they are by default, but for some: a field that is added later changes
    nothing."""
    given, plain = asdict(settings), {field.name: field.default for field in fields(settings)}
    kept = [name for name in given if name not in besides and getattr(settings, name) != plain[name]]
    return {name: given[name] for name in kept}


def describe_table(table: Table) -> dict:
    """How a table is read, and each of its files: name, size, time of the last change, SHA-256 of the ends.

    Raises InputError if a file is missing.
    """
    settings = {key: value for key, value in asdict(table).items() if key != "files"}
    return json.loads(json.dumps(settings)) | {"files": [describe_file(path) for path in files.expand(table.files)]}


def describe_file(path: Path) -> dict:
    """Name and time of the last change, and `describe_ends`."""
    return {"name": path.name, "mtime_ns": os.stat(path).st_mtime_ns} | describe_ends(path)


def describe_ends(path: Path) -> dict:
    """Size, and SHA-256 of the first and last MiB."""
    size, digest = os.path.getsize(path), hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(END_BYTES))
        file.seek(max(size - END_BYTES, 0))
        digest.update(file.read(END_BYTES))
    return {"size": size, "sha256_ends": digest.hexdigest()}


# ---------------------------------------------------------------------------------------------- what is in a store


def describe_splits(store: Store, schema: Schema) -> dict:
    """Counts, label rates and length quantiles of every split."""
    item_lengths = store.items.tokens.lengths
    out = {}
    for name in SPLITS:
        split = store.split(name)
        lengths = {"context": _Histogram(), "candidate": _Histogram(), "pair": _Histogram()}
        rates = np.zeros((4, len(schema.tasks)))
        for start in range(0, len(split), BLOCK):
            context = np.diff(split.context.offsets[start : start + BLOCK + 1])
            bounds = split.candidates[start : start + BLOCK + 1]
            candidate = item_lengths[split.item[bounds[0] : bounds[-1]]]
            lengths["context"].add(context)
            lengths["candidate"].add(candidate)
            lengths["pair"].add(candidate + np.repeat(context, np.diff(bounds)))
            labels, weights = (x[bounds[0] : bounds[-1]].astype(np.float64) for x in (split.labels, split.weights))
            known = weights > 0
            rates += np.stack([known.sum(0), (labels * known).sum(0), weights.sum(0), (labels * weights).sum(0)])
        out[name] = {
            "impressions": len(split),
            "candidates": len(split.item),
            "labels": {
                task.name: {
                    "known": int(known),
                    "mean": total / known if known and LABELS[task.kind] != "class" else None,
                    "weight": weight,
                    "weighted_mean": weighted / weight if weight and LABELS[task.kind] != "class" else None,
                }
                for task, known, total, weight, weighted in zip(schema.tasks, *rates.tolist(), strict=True)
            },
            "tokens": {part: histogram.quantiles() for part, histogram in lengths.items()},
        }
    return out


class _Histogram:
    """Exact quantiles of small integers that arrive in blocks."""

    def __init__(self):
        self.counts = np.zeros(0, np.int64)

    def add(self, values: np.ndarray) -> None:
        counts = np.bincount(values, minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts

    def quantiles(self) -> dict[str, int]:
        below = np.cumsum(self.counts)
        if not len(below) or not below[-1]:
            return dict.fromkeys(QUANTILES, 0)
        ranks = {name: max(int(np.ceil(share * below[-1])), 1) for name, share in QUANTILES.items()}
        return {name: int(np.searchsorted(below, rank)) for name, rank in ranks.items()}


# ---------------------------------------------------------------------------------------------- for people


def summary(manifest: dict) -> str:
    """The manifest as a table and notes for the terminal."""
    grid = Grid(
        "split", "impressions", "candidates", "label", "mean", "weighted", "text tokens of a pair: p50, p90, p99, max"
    )
    for name, split in manifest["splits"].items():
        pair = ", ".join(str(value) for value in split["tokens"]["pair"].values())
        for row, (task, label) in enumerate(split["labels"].items()):
            first = (name, f"{split['impressions']:,}", f"{split['candidates']:,}") if row == 0 else ("", "", "")
            grid.add_row(*first, task, _rate(label["mean"]), _rate(label["weighted_mean"]), pair if row == 0 else "")
    console = Console(width=120)
    with console.capture() as captured:
        console.print(grid)
    return captured.get() + "\n".join(_notes(manifest))


def _notes(manifest: dict) -> Iterator[str]:
    rows = manifest["rows"]
    yield f"rows read: {rows['read']:,}" + "".join(f"; {why}: {n:,}" for why, n in rows["left_out"].items())
    if manifest.get("set_aside"):
        yield f"rows set aside in bad_rows.jsonl: {manifest['set_aside']:,}"
    if rows["moved"]:
        yield f"rows that follow their impression into another split than their own: {rows['moved']:,}"
    for name, what in manifest["missing"].items():
        yield f"missing {name}: {what['rows']:,} ({what['became']})"
    for name, lost in manifest["unknown_history_items"].items():
        yield f"items left out of {name}, not in the catalogue: {lost:,}"
    for name, count in manifest["cut"].items():
        yield f"cut {name}: {count:,}"
    for name, count in manifest["unseen_classes"].items():
        yield f"unknown labels of {name}, of classes that no training row has: {count:,}"


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
