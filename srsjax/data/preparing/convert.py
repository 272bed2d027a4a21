"""Columns of texts and histories to the tokens that the store holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srsjax.config import History
from srsjax.data.store.ragged import Ragged, join
from srsjax.data.store.tokenizer import TextEncoder

# Enough for a token of nearly all texts, English ones having about 5.
HEAD_CHARACTERS = 10


@dataclass(frozen=True)
class CodedText:
    """Texts of n rows by their code: row i has `tokens[codes[i]]`, and `cut[codes[i]]` says whether it was cut."""

    tokens: Ragged
    codes: np.ndarray
    cut: np.ndarray


def tokenize(text: TextEncoder, values: pa.Array, max_tokens: int) -> CodedText:
    """Each distinct text tokenised once and cut to `max_tokens`; a null is an empty text."""
    coded = pc.fill_null(values, "").dictionary_encode()
    # One token more than the budget tells a text that was cut from one that just fits.
    tokens = _first_tokens(text, coded.dictionary.to_pylist(), max_tokens + 1)
    return CodedText(tokens.truncate(max_tokens), coded.indices.to_numpy(), tokens.lengths > max_tokens)


def _first_tokens(text: TextEncoder, texts: list[str], count: int) -> Ragged:
    """The first `count` tokens of each text, as if the whole of it were tokenised.

    Long texts are cut at a space first, which no token reaches over, and tokenised whole only where that was too short.
    """
    heads = [_head(whole, count * HEAD_CHARACTERS) for whole in texts]
    tokens, _ = text.encode(heads, count)
    cut = np.fromiter((len(head) < len(whole) for head, whole in zip(heads, texts, strict=True)), bool, len(texts))
    short = np.flatnonzero(cut & (tokens.lengths < count))
    whole, _ = text.encode([texts[row] for row in short], count)
    rows = np.arange(len(texts))
    rows[short] = len(texts) + np.arange(len(short))
    return tokens.append(whole).take(rows) if len(short) else tokens


def _head(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: max(text.rfind(" ", 0, characters), 0)] or text


def distinct(columns: list[np.ndarray], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows of several columns of codes [n]: where each first appears [D], and the number of each row's [n]."""
    code = np.zeros(rows, np.int64)
    for column in columns:
        _, code = np.unique(code * (int(column.max(initial=0)) + 1) + column, return_inverse=True)
    _, first, code = np.unique(code, return_index=True, return_inverse=True)
    by_place = np.argsort(first)  # numbered in the order in which they first appear
    return first[by_place], np.argsort(by_place)[code]


@dataclass(frozen=True)
class HistoryItems:
    """Texts of the V items that histories name."""

    tokens: Ragged
    """[V], each cut to the item's budget; a separator before every text that is not empty."""
    cut: np.ndarray
    """[V] bool."""


def history_items(fields: list[Ragged], item_tokens: int, separator: int) -> HistoryItems:
    """Items whose text is that of their `fields` one after another."""
    tokens = join(fields)
    cut = tokens.lengths > item_tokens
    filled = tokens.lengths > 0
    before = Ragged.from_lengths(np.full(int(filled.sum()), separator, tokens.values.dtype), filled)
    return HistoryItems(join([before, tokens.truncate(item_tokens)]), cut)


@dataclass(frozen=True)
class ReadHistory:
    """Histories of n rows as text."""

    tokens: Ragged
    """[n], newest item first, a separator between items."""
    cut: np.ndarray
    """[n] bool, whether text of the items that are read did not fit into the history's budget."""
    items_left: int
    """Items not read because there were more than `max_items`."""
    items_cut: int
    """Items read whose text was cut to the item's budget."""


def read_history(feature: History, lists: pa.Array, items: HistoryItems, separator: int) -> ReadHistory:
    """The newest `max_items` items of each list of item rows ([n] list<int64>, null is empty), newest first, cut to
    `max_tokens` from the oldest on."""
    listed = np.asarray(pc.fill_null(pc.list_value_length(lists), 0), np.int64)
    ends = np.cumsum(listed)
    read = np.minimum(listed, feature.max_items)
    newest, step = (ends - listed, 1) if feature.order == "newest_first" else (ends - 1, -1)
    outer = np.concatenate([[0], np.cumsum(read)])
    place = np.arange(outer[-1]) - np.repeat(outer[:-1], read)
    picked = pc.list_flatten(lists).to_numpy()[np.repeat(newest, read) + step * place]
    joined = items.tokens.take(picked).regroup(outer)  # begins with a separator that is not wanted
    whole = np.maximum(joined.lengths - 1, 0)
    starts = joined.offsets[:-1] + (joined.lengths > 0)
    lengths = np.minimum(whole, feature.max_tokens)
    last = joined.values[np.maximum(starts + lengths - 1, 0)] if len(joined.values) else np.zeros(len(lengths))
    lengths -= (lengths > 0) & (lengths < whole) & (last == separator)
    # Rows `starts[i]:starts[i] + lengths[i]`, through offsets that list each row and what lies between.
    spans = np.stack([starts, starts + lengths], 1).reshape(-1)
    tokens = Ragged(joined.values, spans).take(np.arange(0, len(spans) - 1, 2))
    return ReadHistory(tokens, whole > feature.max_tokens, int((listed - read).sum()), int(items.cut[picked].sum()))
