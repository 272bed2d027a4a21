"""What a run keeps of the rows that it was tested on, to find drift by: `reference.json`.

It has counts of categories, words and items, quantiles of numbers and scores, how true the scores were, and which words
and items training had; of clusters no more than how much they make counts vary (`srsjax.metrics.drift`). Nothing is in
it of single users, nor of private columns. It is bound to the checkpoint that the run's report is about.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from srsjax.config import TrainConfig, Vector
from srsjax.data.kinds import kind_of
from srsjax.data.preparing.sources import Sources
from srsjax.data.reading import hashing
from srsjax.data.store.arrays import Items, Split, Store
from srsjax.data.store.checksums import is_sealed, sealed
from srsjax.data.store.tokenizer import TextEncoder
from srsjax.errors import InputError
from srsjax.files import write_text
from srsjax.metrics.drift import FEWEST, Sample, sample
from srsjax.model.spec import Outputs
from srsjax.runs import observation
from srsjax.runs.observation import SIDES, Mean, Mix, Numbers, Rows, Series, Share
from srsjax.runs.run_folder import RunFolder

FORMAT = 1
"""Incremented whenever a file of before says something else."""
BINS, PLACES = 10, 256
"""Cells of a number, with equally many rows; places at which its distribution function is kept."""
TOP, TAIL = 64, 32
"""The commonest categories in training, which have cells of their own; cells of all others, by hash."""
ITEM_HASHES = 8192
"""Items of training that are kept, by hash: of more, those of the lowest ones, which are as good as drawn by lot."""
TOKENS = 1 << 24
"""Tokens counted at a time."""


@dataclass(frozen=True)
class Known:
    """What training had."""

    tokens: Mapping[str, np.ndarray]
    """By side, [V] bool."""
    items: np.ndarray
    """Hashes of items, sorted, [n] uint64: all those of at most `limit`."""
    limit: int
    top: Mapping[str, list[int]]
    """By mix, its commonest ids."""
    means: Mapping[str, list[float]]
    """By vector, its mean."""

    @classmethod
    def of(cls, config: TrainConfig, train: Split, items: Items, text: TextEncoder) -> Known:
        """That of a training split."""
        everything = Rows(config, train, items, text)
        tokens = {side: _seen(everything, side) for side in SIDES if observation.reads_text(everything.sources, side)}
        hashes = np.zeros(0, np.uint64)
        if observation.knows_items(everything.sources):
            hashes = np.unique(everything.identities)
        limit = int(hashes[ITEM_HASHES - 1]) if len(hashes) > ITEM_HASHES else 2**64 - 1
        some = Rows.of(config, train, items, text)
        top = {mix.name: _commonest(mix.ids) for mix in observation.mixes(some)}
        means = {
            feature.name: np.nan_to_num(np.nanmean(values.astype(np.float64), axis=0)).tolist()
            for side in SIDES
            for feature, values, _ in some.arrays(side)
            if isinstance(feature, Vector)
        }
        return cls(tokens, hashes[:ITEM_HASHES], limit, top, means)

    def to_json(self) -> dict[str, Any]:
        """As plain data; arrays as base64."""
        return {
            "tokens": {side: [len(seen), _text(np.packbits(seen))] for side, seen in self.tokens.items()},
            "items": _text(self.items.astype("<u8")),
            "limit": self.limit,
            "top": dict(self.top),
            "means": dict(self.means),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Known:
        """The inverse of `to_json`."""
        tokens = {
            side: np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8), count=size).astype(bool)
            for side, (size, bits) in data["tokens"].items()
        }
        items = np.frombuffer(base64.b64decode(data["items"]), "<u8").astype(np.uint64)
        return cls(tokens, items, data["limit"], data["top"], data["means"])


@dataclass(frozen=True)
class Reference:
    """What new rows are compared with."""

    split: str
    """Of which split."""
    step: int
    """The checkpoint that scored it."""
    run: str
    """The run's name (`RunFolder.identity`)."""
    rows: int
    """Candidates that it is of."""
    users: int
    """Users (impressions, without `data.user`) that it is of."""
    known: Known
    series: Mapping[str, Mapping[str, Any]]
    """By name, from `summary`."""
    lacking: Mapping[str, float]
    """Shares of the rows of the log (`lacking`)."""

    def save(self, folder: RunFolder) -> None:
        """Writes `reference.json`."""
        data = asdict(self) | {"format": FORMAT, "known": self.known.to_json()}
        write_text(folder.reference_file, json.dumps(sealed(data)))

    @classmethod
    def load(cls, folder: RunFolder) -> Reference:
        """That of a finished run.

        Raises InputError where the run is not finished or has none, and where the file is damaged or of another run.
        """
        step, file = folder.best_step(), folder.reference_file
        again = "train it again to have one"
        if not file.exists():
            raise InputError(
                f"{folder.path}: no {file.name}; runs of earlier versions, pruned ones and those without a valid and "
                f"a test split have none; {again}"
            )
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: not JSON ({error}); {again}") from None
        if not isinstance(data, dict) or not is_sealed(data):
            raise InputError(f"{file}: damaged: found other contents than its checksum is of; {again}")
        if data.get("format") != FORMAT:
            raise InputError(f"{file}: found format {data.get('format')}, expected {FORMAT}; {again}")
        fields = {name: data[name] for name in ("split", "step", "run", "rows", "users", "series", "lacking")}
        made = cls(known=Known.from_json(data["known"]), **fields)
        if (made.step, made.run) != (step, folder.identity()):
            raise InputError(f"{file}: of another run or step ({made.step}, expected {step}); {again}")
        if made.users < FEWEST:
            raise InputError(
                f"{file}: the {made.split} split has {made.users} users, expected at least {FEWEST} to tell drift from "
                "chance; train with more rows held out (data.split)"
            )
        return made


def make_reference(
    folder: RunFolder,
    config: TrainConfig,
    outputs: Sequence[Outputs],
    text: TextEncoder,
    store: Store,
    name: str,
    split: Split,
    items: Items,
    logits: np.ndarray,
    step: int,
) -> Reference:
    """The reference of a run: of the split `name`, with the logits [M, K] that are reported of it."""
    known = Known.of(config, store.split("train"), items, text)
    rows, of = chosen(config, split, items, text)
    series = [*observe(rows, known, outputs, logits[of])]
    summaries = {each.name: summary(each, known.top.get(each.name, [])) for each in series}
    of_rows = (len(rows.split.item), users(rows), known, summaries, lacking(config, store.manifest))
    return Reference(name, step, folder.identity(), *of_rows)


def users(rows: Rows) -> int:
    """Users, whose rows are not independent of each other; impressions, without `data.user`."""
    return len(np.unique(rows.of_context))


def chosen(config: TrainConfig, split: Split, items: Items, text: TextEncoder) -> tuple[Rows, np.ndarray | slice]:
    """The rows of a split that are looked at, and their places among its candidates."""
    if len(split.item) <= observation.MOST:
        return Rows(config, split, items, text), slice(None)
    impressions = observation.by_lot(split, observation.MOST)
    kept = np.isin(split.impression, impressions)
    return Rows(config, split.take(impressions), items, text), np.flatnonzero(kept)


def observe(rows: Rows, known: Known, outputs: Sequence[Outputs], logits: np.ndarray) -> list[Series]:
    """All that is watched of rows."""
    return [
        *observation.mixes(rows),
        *observation.numbers(rows, known.means),
        *observation.shares(rows, known.tokens, known.items, known.limit),
        *observation.scores(rows, outputs, logits),
        *observation.truth(rows, outputs, logits),
    ]


def lacking(config: TrainConfig, manifest: Mapping[str, Any]) -> dict[str, float]:
    """What rows of a log lack, as shares of all: values, by feature; a key that a catalogue has; whatever else they
    were set aside for. Rows are counted whether they were left out for it or not.

    `manifest` is that of their store; one that was prepared before keys were counted gives fewer.
    """
    sources, rows = Sources(config.schema, config.data), manifest["rows"]
    count = {"rows that cannot be read": rows["left_out"].get("bad row", 0)}
    for feature in sources.features:
        kind = kind_of(feature)
        if kind.policy and not kind.training_only and not sources.is_private(feature):
            count[f"{feature.name} missing"] = manifest["missing"].get(feature.name, {}).get("rows", 0)
    for name in sources.joined(splitting=False):
        if "unknown_keys" in manifest:
            count[f"{name} not in the catalogue"] = manifest["unknown_keys"].get(name, 0)
    return {name: number / max(rows["read"], 1) for name, number in count.items()}


def summary(series: Series, top: Sequence[int]) -> dict[str, Any]:
    """What is kept of a series, as plain data; `top` are the ids of a mix that have cells of their own."""
    match series:
        case Mean():
            return {"value": series.value, "error": series.error, "scale": series.scale}
        case Mix():
            tail = TAIL if len(top) == TOP else 1
            made = {"top": [*top], "tail": tail}
            return made | _of_sample(counted(series, made))
        case Share():
            return _of_sample(counted(series, {}))
        case Numbers():
            there = series.values[~np.isnan(series.values)]
            cuts, places = _quantiles(there, BINS), _quantiles(there, PLACES, lowest=True)
            # What is below the lowest number, or above the highest, is in a cell of its own.
            cuts = [float(np.nextafter(each, -np.inf)) for each in places[:1]] + cuts
            upto, below = distribution(series, places)
            return {
                "cuts": cuts,
                "places": places,
                "upto": upto.round(6).tolist(),
                "below": below.round(6).tolist(),
                "mean": float(there.mean()) if len(there) else None,
            } | _of_sample(counted(series, {"cuts": cuts}))


def counted(series: Numbers | Mix | Share, of: Mapping[str, Any]) -> Sample:
    """The sample of a series in the cells of its summary `of`."""
    match series:
        case Share():
            return sample(series.flags.astype(np.int64), series.clusters, 2)
        case Numbers():
            cuts = np.asarray(of["cuts"], np.float64)
            cell = np.searchsorted(cuts, series.values, side="left")
            cell = np.where(np.isnan(series.values), len(cuts) + 1, cell)
            return sample(cell, series.clusters, len(cuts) + 2)
        case Mix():
            top = np.asarray(of["top"], np.uint64)
            order = np.argsort(top)
            place = np.minimum(np.searchsorted(top, series.ids, sorter=order), max(len(top) - 1, 0))
            found = top[order][place] == series.ids if len(top) else np.zeros(len(series.ids), bool)
            tail = len(top) + (hashing.mix(series.ids) % np.uint64(of["tail"])).astype(np.int64)
            cell = np.where(found, order[place], tail) if len(top) else tail
            return sample(cell, series.clusters, len(top) + of["tail"])


def distribution(series: Numbers, places: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The shares of rows up to and below each place, [n] float64 each; missing ones are above all."""
    ordered = np.sort(series.values[~np.isnan(series.values)])
    found = [np.searchsorted(ordered, places, side=side) / max(len(series.values), 1) for side in ("right", "left")]
    return found[0], found[1]


def of_summary(of: Mapping[str, Any]) -> Sample:
    """The sample that a summary was made of."""
    first, second, third = of["excess"] or (math.nan,) * 3
    return Sample(np.asarray(of["counts"], np.float64), (first, second, third), of["step"] or math.nan)


def _of_sample(of: Sample) -> dict[str, Any]:
    excess, step = (None, None) if math.isnan(of.step) else ([*of.excess], of.step)  # of too few clusters
    return {"counts": of.counts.astype(np.int64).tolist(), "excess": excess, "step": step}


def _quantiles(values: np.ndarray, count: int, lowest: bool = False) -> list[float]:
    """The values [n] up to which 1 / count, 2 / count, ... of the rows are, and the lowest; each once, and all values
    that some row has."""
    if not len(values):
        return []
    at = np.arange(0 if lowest else 1, count + 1) / count
    return np.unique(np.quantile(values, at, method="inverted_cdf")).tolist()


def _commonest(ids: np.ndarray) -> list[int]:
    """All ids where they are few, else the commonest."""
    found, counts = np.unique(ids, return_counts=True)
    if len(found) < TOP:
        return found.tolist()
    return found[np.argsort(-counts, kind="stable")[:TOP]].tolist()


def _seen(rows: Rows, side: str) -> np.ndarray:
    """Which tokens the texts of a side have, [V] bool; the unknown word is never one that was seen."""
    seen = np.zeros(rows.text.vocab_size, bool)
    texts = rows.split.context if side == "context" else rows.items.tokens.take(np.unique(rows.split.item))
    for start in range(int(texts.offsets[0]), int(texts.offsets[-1]), TOKENS):
        part = texts.values[start : min(start + TOKENS, int(texts.offsets[-1]))]
        seen |= np.bincount(part, minlength=len(seen)) > 0
    if rows.text.unk_id is not None:
        seen[rows.text.unk_id] = False
    return seen


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
