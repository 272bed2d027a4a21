"""Turns rows of candidate indices into the arrays of a packed batch.

A row is a sequence of contexts, each followed by its candidates. In `cross` every candidate has its own copy of the
context, and the two are one sequence with consecutive positions; in the other interactions the candidates of an
impression follow one context, and each of them starts at the same position; in `towers` each is a sequence of its own.

Everything is array operations over the whole batch: no Python code runs per row, pair or token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.layout import Layout
from srsjax.data.store.arrays import Items, Split
from srsjax.data.store.ragged import Ragged, spans


@dataclass(frozen=True)
class Assembler:
    """Makes packed batches of the M candidates of a split."""

    split: Split
    items: Items
    layout: Layout

    def context_lengths(self) -> np.ndarray:
        """Tokens of each impression's context, special ones included, [N] int32."""
        special = self.layout.context_special
        if not self.layout.has_context:
            return np.full(len(self.split), special, np.int32)
        return self.split.context.lengths.astype(np.int32) + np.int32(special)

    def candidate_lengths(self) -> np.ndarray:
        """Tokens of each candidate without its context, special ones included, [M] int32."""
        special = np.int32(self.layout.candidate_special)
        return self.items.tokens.lengths.astype(np.int32)[self.split.item] + special

    def pair_lengths(self) -> np.ndarray:
        """Tokens of each pair, special ones included, [M] int32."""
        return self.candidate_lengths() + np.repeat(self.context_lengths(), np.diff(self.split.candidates))

    def assemble(self, rows: Ragged, tokens: int, candidates: int) -> tuple[PackedBatch, np.ndarray]:
        """Packs the candidates of each row, [R] ragged int64, into a batch of L = `tokens` and C = `candidates`.

        Returns the batch and the candidate number in each slot, [R, C] int64, -1 in empty slots. A row must hold at
        most C candidates and L tokens. Where contexts are shared, consecutive candidates of an
        impression share one.
        """
        number = np.asarray(rows.values)  # [K], as all arrays of candidates below
        row = np.repeat(np.arange(len(rows)), rows.lengths)
        slot = np.arange(len(number)) - np.repeat(rows.offsets[:-1], rows.lengths)
        # An impression without candidates has the same offset as the next one; "right" skips it.
        impression = np.searchsorted(self.split.candidates, number, side="right") - 1
        item = self.split.item[number]

        begins = np.ones(len(number), bool)  # a context precedes this candidate
        if self.layout.shares_context:
            begins[1:] = (np.diff(row) != 0) | (np.diff(impression) != 0)
        places = self._places(rows, row, impression, item, begins, tokens)
        of = np.cumsum(begins) - 1  # [K] number of each candidate's context in the batch
        context_row, context_slot = row[begins], slot[begins]
        if self.layout.shares_context:
            context_slot = np.arange(len(context_row)) - np.searchsorted(context_row, context_row)
        slots = _Slots((len(rows), candidates), row, slot)
        contexts = _Slots((len(rows), candidates), context_row, context_slot)
        batch = PackedBatch(
            **self._token_arrays(places, of, slot, context_slot, len(rows), tokens),
            context_readout=contexts.put(places.context - context_row * tokens, 0, np.int32),
            readout=slots.put(places.candidate - row * tokens, 0, np.int32),
            context_of=slots.put(context_slot[of], 0, np.int32),
            group=slots.put(impression % 2**31, -1, np.int32),
            labels=slots.put(self.split.labels[number], 0, np.float32),
            weights=slots.put(self.split.weights[number], 0, np.float32),
            context_features=contexts.put_each(self.split.context_features, impression[begins]),
            candidate_features=slots.put_each(self.items.features, item)
            | slots.put_each(self.split.candidate_features, number),
        )
        return batch, slots.put(number, -1, np.int64)

    def _places(self, rows: Ragged, row, impression, item, begins, tokens: int) -> _Places:
        """Positions of the K candidates of a batch and their contexts, consecutive in each row."""
        context = self.split.context.take(impression[begins]) if self.layout.has_context else None
        before = np.full(int(begins.sum()), self.layout.context_special)
        if context is not None:
            before += context.lengths
        text = self.items.tokens.take(item)
        after = text.lengths + self.layout.candidate_special
        ahead = np.zeros(len(item), np.int64)  # tokens of the context right before the candidate
        ahead[begins] = before
        ends = np.concatenate([[0], np.cumsum(ahead + after)])
        start = row * tokens + ends[:-1] - np.repeat(ends[rows.offsets[:-1]], rows.lengths)
        return _Places(context, text, start[begins], before, start + ahead, after)

    def _token_arrays(self, places: _Places, of, slot, context_slot, rows: int, tokens: int) -> dict[str, np.ndarray]:
        """The [R, L] arrays of a batch by name."""
        layout = self.layout
        first, second = spans(places.context, places.before), spans(places.candidate, places.after)
        starts = places.before[of] if layout.candidate_start is None else layout.candidate_start  # position ids
        arrays = {
            name: np.zeros(rows * tokens, np.int32) for name in ("positions", "token_types", "segment", "candidate")
        }
        arrays["tokens"] = np.full(rows * tokens, layout.pad_id, np.int32)
        arrays["positions"][first] = first - np.repeat(places.context, places.before)
        arrays["positions"][second] = second - np.repeat(places.candidate - starts, places.after)
        arrays["segment"][first] = np.repeat(context_slot + 1, places.before)
        arrays["segment"][second] = np.repeat(context_slot[of] + 1, places.after)
        arrays["candidate"][second] = np.repeat(slot + 1, places.after)
        if layout.has_context:
            arrays["token_types"][second] = layout.template.candidate_type

        put, prefix = arrays["tokens"], layout.template.prefix
        _put_special(put, places.context, prefix)
        if places.text_of_context is not None:
            text = places.text_of_context
            put[spans(places.context + len(prefix), text.lengths)] = text.values
        _put_special(put, places.context + places.before - len(layout.between), layout.between)
        _put_special(put, places.candidate, layout.template.opening)
        put[spans(places.candidate + len(layout.template.opening), places.text.lengths)] = places.text.values
        _put_special(put, places.candidate + places.after - len(layout.template.suffix), layout.template.suffix)
        return {name: array.reshape(rows, tokens) for name, array in arrays.items()}


class _Places(NamedTuple):
    """The J contexts and K candidates of a batch. A place is an index into the whole batch: row * L + token slot."""

    text_of_context: Ragged | None
    """Context token ids, [J] ragged."""
    text: Ragged
    """Candidate token ids, [K] ragged."""
    context: np.ndarray
    """[J] int64, place of a context's first token."""
    before: np.ndarray
    """[J] int64, tokens of a context: prefix, text, between."""
    candidate: np.ndarray
    """[K] int64, place of a candidate's first token."""
    after: np.ndarray
    """[K] int64, tokens of a candidate: opening, text, suffix."""


class _Slots(NamedTuple):
    """The slots of K candidates or contexts, for scattering values."""

    shape: tuple[int, int]
    row: np.ndarray
    slot: np.ndarray

    def put(self, values: np.ndarray, empty: int, dtype) -> np.ndarray:
        """`values` [K, ...] in an array [R, C, ...]; other slots hold `empty`."""
        out = np.full((*self.shape, *values.shape[1:]), empty, dtype)
        out[self.row, self.slot] = values
        return out

    def put_each(self, features: dict[str, np.ndarray], source: np.ndarray) -> dict[str, np.ndarray]:
        """Rows `source` [K] of each feature; other slots hold zeros."""
        return {name: self.put(values[source], 0, values.dtype) for name, values in features.items()}


def _put_special(tokens: np.ndarray, places: np.ndarray, ids: tuple[int, ...]) -> None:
    for offset, token in enumerate(ids):
        tokens[places + offset] = token
