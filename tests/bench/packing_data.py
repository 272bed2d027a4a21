"""Token lengths of the data sets, as impressions of a context and its candidates; for the packing table."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from srsjax.data.store.tokenizer import TextEncoder


@dataclass(frozen=True)
class Lengths:
    """N impressions and their M candidates; lengths are in tokens without special ones."""

    name: str
    texts: str
    """What is the context and what the candidate, in words."""
    tokens: int
    """Row length L that suits the texts."""
    context: np.ndarray | None
    """[N] int64; None where there is no context text."""
    candidate: np.ndarray
    """[M] int64."""
    impressions: np.ndarray
    """[N + 1] int64, first candidate of each impression."""
    train: np.ndarray
    """[N] bool; the others are evaluated."""
    whole: bool
    """Whether training compares the candidates of an impression, so that they must be in one row."""

    def select(self, train: bool) -> Lengths:
        """The impressions of the training split, or the others."""
        keep = self.train == train
        counts = np.diff(self.impressions)
        return Lengths(
            **vars(self)
            | {
                "context": None if self.context is None else self.context[keep],
                "candidate": self.candidate[np.repeat(keep, counts)],
                "impressions": np.concatenate([[0], np.cumsum(counts[keep])]),
                "train": self.train[keep],
            }
        )


class _Impressions:
    """Collects impressions; each text is measured once."""

    def __init__(self, measure: Callable[[list[str]], np.ndarray]):
        self._measure = measure
        self._number: dict[str, int] = {}
        self._context: list[list[int]] = []
        self._candidates: list[list[int]] = []
        self._train: list[bool] = []

    def add(self, context: Iterable[str], candidates: Iterable[str], split: str) -> None:
        """`context`: its parts (a query, or the texts of a history), newest last."""
        self._context.append([self._of(text) for text in context])
        self._candidates.append([self._of(text) for text in candidates])
        self._train.append(split == "train")

    def lengths(self, name: str, texts: str, tokens: int, context: int, candidate: int) -> Lengths:
        """With budgets for the tokens of a context (0: there is none) and of a candidate."""
        measured = self._measure(list(self._number))
        counts = [len(candidates) for candidates in self._candidates]
        flat = measured[np.concatenate([np.array(c, np.int64) for c in self._candidates])]
        contexts = np.array([measured[parts].sum() for parts in map(_index, self._context)])
        return Lengths(
            name,
            texts,
            tokens,
            np.minimum(contexts, context) if context else None,
            np.clip(flat, 1, candidate),
            np.concatenate([[0], np.cumsum(counts)]),
            np.array(self._train),
            name in LISTWISE,
        )

    def _of(self, text: str) -> int:
        return self._number.setdefault(text, len(self._number))


def read(name: str, data: Path, encoder: TextEncoder) -> Lengths:
    """The lengths of one of `DATA_SETS`, with the tokens of `encoder`; KeyError for another name."""
    impressions = _Impressions(lambda texts: encoder.encode(texts, 512)[0].lengths)
    reader, *rest = DATA_SETS[name]
    reader(data / name, impressions.add)
    return impressions.lengths(name, *rest)


def _index(parts: list[int]) -> np.ndarray:
    return np.array(parts, np.int64)


def _rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def _join(row: dict, *columns: str) -> str:
    return " ".join(str(row[column]) for column in columns if row[column] is not None)


def _grouped(rows: Iterable[dict], key: Callable[[dict], Hashable]) -> dict[Hashable, list[dict]]:
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _single(*columns: str, group: str = "", file: str = "utterances") -> Callable:
    """Texts without a context; those with the same `group` are one impression."""

    def reader(folder: Path, add: Callable) -> None:
        rows = _rows(folder / f"{file}.parquet")
        numbers = iter(range(len(rows)))
        for each in _grouped(rows, lambda row: row[group] if group else next(numbers)).values():
            add([], [_join(row, *columns) for row in each], each[0]["split"])

    return reader


def _judged(query: tuple[str, ...], item: tuple[str, ...]) -> Callable:
    """Queries with judged products: `labels`, `queries` and `products`."""

    def reader(folder: Path, add: Callable) -> None:
        queries = {row["query_id"]: row for row in _rows(folder / "queries.parquet")}
        place = "locale" if "esci" in folder.name else "product_id"  # the same product may be sold in several
        products = {(row["product_id"], row[place]): row for row in _rows(folder / "products.parquet")}
        for key, labels in _grouped(_rows(folder / "labels.parquet"), lambda row: row["query_id"]).items():
            found = [products[row["product_id"], row[place]] for row in labels]
            add([_join(queries[key], *query)], [_join(row, *item) for row in found], queries[key]["split"])

    return reader


def _matching(folder: Path, add: Callable) -> None:
    left = {(r["source"], r["left_id"]): r for r in _rows(folder / "left_products.parquet")}
    right = {(r["source"], r["right_id"]): r for r in _rows(folder / "right_products.parquet")}
    pairs = _grouped(_rows(folder / "pairs.parquet"), lambda r: (r["source"], r["left_id"], r["split"]))
    for (source, number, split), rows in pairs.items():
        texts = [_join(right[source, row["right_id"]], "title", "brand") for row in rows]
        add([_join(left[source, number], "title", "brand")], texts, split)


def _bought(key: str, item: tuple[str, ...], time: str, basket: str, last: int = 10) -> Callable:
    """Baskets of users in the order of time; the context is the last items bought or rated before."""

    def reader(folder: Path, add: Callable) -> None:
        items = {row[key]: _join(row, *item) for row in _rows(folder / "items.parquet")}
        rows = sorted(_rows(folder / "interactions.parquet"), key=lambda row: row[time])
        history: dict[Any, deque] = defaultdict(lambda: deque(maxlen=last))
        for each in _grouped(rows, lambda row: (row["user_id"], row[basket])).values():
            texts, before = [items[row[key]] for row in each if row[key] in items], history[each[0]["user_id"]]
            if texts:
                add(list(before), texts, each[0]["split"])
            before.extend(texts)

    return reader


def _dialogue(folder: Path, add: Callable) -> None:
    """The response among others, after the turns before it (the last six)."""
    turns = _grouped(_rows(folder / "turns.parquet"), lambda row: row["dialogue_id"])
    candidates = {row["example_id"]: row["candidates"] for row in _rows(folder / "eval_candidates.parquet")}
    for row in _rows(folder / "responses.parquet"):
        before = [turn["text"] for turn in turns[row["dialogue_id"]] if turn["turn"] < row["turn"]][-6:]
        add(before, candidates.get(row["example_id"], [row["response"]]), row["split"])


def _chat(folder: Path, add: Callable) -> None:
    """A customer's turn, after the three before it."""
    for turns in _grouped(_rows(folder / "utterances.parquet"), lambda row: row["conversation_id"]).values():
        turns = sorted(turns, key=lambda row: row["turn"])
        for i, turn in enumerate(turns):
            add([row["text"] for row in turns[max(i - 3, 0) : i]], [turn["text"]], turn["split"])


LISTWISE = ("chorus_electronics", "upworthy_ctr")
# Reader, texts, row length L, and the budgets of context and candidate.
DATA_SETS: dict[str, tuple] = {
    "banking77": (_single("text"), "– / question", 128, 0, 96),
    "bitext_customer_support": (_single("utterance"), "– / utterance", 128, 0, 64),
    "chorus_electronics": (
        _judged(("query",), ("title", "short_description")),
        "query / title, description",
        1280,
        24,
        200,
    ),
    "clinc150": (_single("text"), "– / utterance", 128, 0, 64),
    "completejourney_sample": (
        _bought("item_id", ("department", "product_category", "product_type"), "transaction_timestamp", "basket_id"),
        "last 10 items / item",
        512,
        160,
        32,
    ),
    "crosswoz_zh": (_dialogue, "last 6 turns / response", 768, 160, 80),
    "esci_sample": (_judged(("query",), ("product_title", "product_brand")), "query / title, brand", 128, 24, 80),
    "movietweetings_100k": (
        _bought("item_id", ("title", "genres"), "timestamp", "timestamp"),
        "last 10 films / film",
        256,
        192,
        32,
    ),
    "multidogo_intents": (_chat, "3 turns / turn", 128, 64, 48),
    "online_retail": (
        _bought("stock_code", ("description",), "invoice_date", "invoice_no"),
        "last 10 items / item",
        256,
        160,
        32,
    ),
    "product_matching": (_matching, "offer / offer", 128, 48, 48),
    "taskmaster4_coffee": (_dialogue, "last 6 turns / response", 1024, 160, 64),
    "upworthy_ctr": (_single("headline", group="test_id", file="packages"), "– / headline", 192, 0, 64),
    "womens_clothing_reviews": (_single("title", "review_text", file="reviews"), "– / title, review", 256, 0, 144),
}
