"""Rows of candidate numbers into the arrays of a packed batch, for `cross`: each pair has its own copy of the context.

All of it is array operations over the whole batch: no Python runs per row, pair or token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from srsjax.data.batch import PackedBatch
from srsjax.data.ragged import Ragged, spans
from srsjax.data.store import Items, Split

if TYPE_CHECKING:
    from srsjax.data.tokenizer import PairTemplate


@dataclass(frozen=True)
class Pairs:
    """The pairs (context, candidate) of a split, one for each of its M candidates."""

    split: Split
    items: Items
    template: PairTemplate
    pad_id: int
    has_context: bool
    """Whether the schema has context text. Without it a pair is a single sequence, prefix + candidate + suffix, all of
    token type 0; the prefix is its context token."""

    @property
    def between(self) -> tuple[int, ...]:
        """Special tokens between the context's text and the candidate's; none in a single sequence."""
        return self.template.between if self.has_context else ()

    @property
    def special_tokens(self) -> int:
        """Special tokens of a pair."""
        return len(self.template.prefix) + len(self.between) + len(self.template.suffix)

    def lengths(self) -> np.ndarray:
        """Tokens of each pair, special ones included, [M] int32."""
        lengths = self.items.tokens.lengths.astype(np.int32)[self.split.item] + np.int32(self.special_tokens)
        if self.has_context:
            lengths += np.repeat(self.split.context.lengths.astype(np.int32), np.diff(self.split.candidates))
        return lengths

    def assemble(self, rows: Ragged, tokens: int, candidates: int) -> tuple[PackedBatch, np.ndarray]:
        """Packs the candidates of each row, [R] ragged int64, into a batch of L = `tokens` and C = `candidates`.

        Returns the batch and the candidate number in each slot, [R, C] int64, -1 in empty slots. A row must hold at
        most C candidates and L tokens.
        """
        number = np.asarray(rows.values)  # [K], as all arrays of pairs below
        row = np.repeat(np.arange(len(rows)), rows.lengths)
        slot = np.arange(len(number)) - np.repeat(rows.offsets[:-1], rows.lengths)
        # An impression without candidates begins where the next one does; "right" steps over it.
        impression = np.searchsorted(self.split.candidates, number, side="right") - 1
        item = self.split.item[number]

        layout = self._layout(rows, row, impression, item, tokens)
        slots = _Slots((len(rows), candidates), row, slot)
        column = layout.start - row * tokens
        batch = PackedBatch(
            **self._token_arrays(layout, slot, len(rows), tokens),
            context_readout=slots.put(column, 0, np.int32),
            readout=slots.put(column + layout.before, 0, np.int32),
            context_of=slots.put(slot, 0, np.int32),
            group=slots.put(impression % 2**31, -1, np.int32),
            labels=slots.put(self.split.labels[number], 0, np.float32),
            weights=slots.put(self.split.weights[number], 0, np.float32),
            context_features=slots.put_each(self.split.context_features, impression),
            candidate_features=slots.put_each(self.items.features, item)
            | slots.put_each(self.split.candidate_features, number),
        )
        return batch, slots.put(number, -1, np.int64)

    def _layout(self, rows: Ragged, row: np.ndarray, impression: np.ndarray, item: np.ndarray, tokens: int) -> _Layout:
        """Where the K pairs of a batch stand, one behind the other in each row."""
        text = self.items.tokens.take(item)
        context = self.split.context.take(impression) if self.has_context else None
        before = np.full(len(item), len(self.template.prefix) + len(self.between))
        if context is not None:
            before += context.lengths
        after = text.lengths + len(self.template.suffix)
        ends = np.concatenate([[0], np.cumsum(before + after)])
        column = ends[:-1] - np.repeat(ends[rows.offsets[:-1]], rows.lengths)
        return _Layout(context, text, row * tokens + column, before, after)

    def _token_arrays(self, layout: _Layout, slot: np.ndarray, rows: int, tokens: int) -> dict[str, np.ndarray]:
        """The [R, L] arrays of a batch by name."""
        start, length, middle = layout.start, layout.before + layout.after, layout.start + layout.before
        occupied, second = spans(start, length), spans(middle, layout.after)
        arrays = {
            name: np.zeros(rows * tokens, np.int32) for name in ("positions", "token_types", "segment", "candidate")
        }
        arrays["tokens"] = np.full(rows * tokens, self.pad_id, np.int32)
        arrays["positions"][occupied] = occupied - np.repeat(start, length)
        arrays["segment"][occupied] = np.repeat(slot + 1, length)
        arrays["candidate"][second] = np.repeat(slot + 1, layout.after)
        if self.has_context:
            arrays["token_types"][second] = self.template.candidate_type

        put = arrays["tokens"]
        _put_special(put, start, self.template.prefix)
        if layout.context is not None:
            put[spans(start + len(self.template.prefix), layout.context.lengths)] = layout.context.values
        _put_special(put, middle - len(self.between), self.between)
        put[spans(middle, layout.text.lengths)] = layout.text.values
        _put_special(put, middle + layout.text.lengths, self.template.suffix)
        return {name: array.reshape(rows, tokens) for name, array in arrays.items()}


class _Layout(NamedTuple):
    """The K pairs of a batch. Places are counted through the whole batch: row * L + token slot."""

    context: Ragged | None
    """Context token ids, [K] ragged."""
    text: Ragged
    """Candidate token ids, [K] ragged."""
    start: np.ndarray
    """[K] int64, place of the first token."""
    before: np.ndarray
    """[K] int64, tokens of the first part: prefix, context, between."""
    after: np.ndarray
    """[K] int64, tokens of the second part: candidate, suffix."""


class _Slots(NamedTuple):
    """The candidate slots of K candidates, to put values in."""

    shape: tuple[int, int]
    row: np.ndarray
    slot: np.ndarray

    def put(self, values: np.ndarray, empty: int, dtype) -> np.ndarray:
        """`values` [K, ...] in an array [R, C, ...]; `empty` stands in the other slots."""
        out = np.full((*self.shape, *values.shape[1:]), empty, dtype)
        out[self.row, self.slot] = values
        return out

    def put_each(self, features: dict[str, np.ndarray], source: np.ndarray) -> dict[str, np.ndarray]:
        """Rows `source` [K] of each feature; zeros stand in the other slots."""
        return {name: self.put(values[source], 0, values.dtype) for name, values in features.items()}


def _put_special(tokens: np.ndarray, places: np.ndarray, ids: tuple[int, ...]) -> None:
    for offset, token in enumerate(ids):
        tokens[places + offset] = token
