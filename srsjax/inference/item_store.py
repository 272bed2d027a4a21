"""Stored items: what a `split` model computes of a candidate alone is computed once and looked up ever after.

PreTTR (MacAvaney et al. 2020) and DeFormer (Cao et al. 2020): below `model.split_layers` a candidate sees only itself
and always stands at the same positions, so the states of an item after these layers depend on the item alone. A batch
then computes its contexts in all layers, its candidates in the upper ones. The states are kept in the compute dtype, in
which the layers pass them on: scores are those without a store, to float tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from srsjax.compilation import compiler_options
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.layout import BatchShape, Layout
from srsjax.data.batches.packing import plan_rows
from srsjax.data.store.arrays import Items
from srsjax.data.store.ragged import Ragged, join, spans
from srsjax.model import ctr
from srsjax.runs.session import Session
from srsjax.runs.sharding import ROWS, put_same

CONTEXT_STEPS = 8
"""Context slots K of a batch are a multiple of L / 8: this many programs at most, and little padding."""


@dataclass(frozen=True)
class ItemStore:
    """The states of all items of a catalogue, on the devices."""

    states: jax.Array
    """[S, D] in the compute dtype, the tokens of one item after the other; whole on every device."""
    offsets: np.ndarray
    """[V + 1] int64, first token of each item."""
    jitted: Callable
    """`ctr.forward_stored` on the mesh."""

    def step(self, params: dict[str, jax.Array], batch: tuple[PackedBatch, ctr.StoredPlaces]) -> jax.Array:
        """Logits [R, C, T] float32 of a completed batch, whole on every device."""
        return self.jitted(params, self.states, *batch)

    def complete(
        self, item: np.ndarray, batch: PackedBatch, numbers: np.ndarray
    ) -> tuple[PackedBatch, ctr.StoredPlaces]:
        """A batch [R, ...] and where its states are. `item` [M]: item of each candidate; `numbers` [R, C]: candidates
        in the slots."""
        tokens = batch.tokens.shape[1]
        first = np.where(numbers < 0, 0, self.offsets[item[numbers]]) - batch.readout  # [R, C]
        of = np.take_along_axis(first, np.maximum(batch.candidate - 1, 0), axis=1) + np.arange(tokens)
        state = np.where(batch.candidate > 0, of, -1).astype(np.int32)

        is_context = (batch.segment > 0) & (batch.candidate == 0)
        count = is_context.sum(axis=1)
        step = -(-tokens // CONTEXT_STEPS)
        slots = max(1, -(-int(count.max(initial=0)) // step)) * step
        if jax.process_count() > 1:
            slots = tokens  # the longest context of all hosts is not known here, and shapes must be those of all
        context = np.argsort(~is_context, axis=1, kind="stable")[:, :slots]
        context = np.where(np.arange(context.shape[1]) < count[:, None], context, tokens).astype(np.int32)
        return batch, ctr.StoredPlaces(state, context)


def build_item_store(session: Session, params: dict, items: Items, shape: BatchShape) -> ItemStore:
    """Runs the lower layers over every item once. `shape`: that of the run's evaluation batches."""
    texts = _with_special_tokens(items.tokens, shape.layout)
    rows = NamedSharding(session.mesh, PartitionSpec(ROWS))
    whole = NamedSharding(session.mesh, PartitionSpec())
    step = jax.jit(
        partial(ctr.item_states, session.graphdef),
        in_shardings=(session.shardings, rows, rows, rows, rows),
        out_shardings=whole,
        compiler_options=compiler_options(session.mesh),
    )
    states = None
    for arrays, source, target in _batches(texts, shape):
        made = np.asarray(step(params, *(put_same(array, rows) for array in arrays)))
        if states is None:
            states = np.zeros((len(texts.values), made.shape[-1]), made.dtype)
        states[target] = made.reshape(-1, made.shape[-1])[source]
    if states is None:
        raise ValueError("no items to store")
    jitted = jax.jit(
        partial(ctr.forward_stored, session.graphdef),
        in_shardings=(session.shardings, whole, rows, rows),
        out_shardings=whole,
        compiler_options=compiler_options(session.mesh),
    )
    return ItemStore(put_same(states, whole), texts.offsets, jitted)


def _with_special_tokens(texts: Ragged, layout: Layout) -> Ragged:
    """The tokens of each item as they stand in a row."""
    suffix = np.tile(np.array(layout.template.suffix, np.int32), len(texts))
    return join([texts, Ragged.from_lengths(suffix, np.full(len(texts), len(layout.template.suffix)))])


def _batches(texts: Ragged, shape: BatchShape) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]]:
    """Packed rows of items: the arrays of `ctr.item_states`, the slots [n] of the real tokens (row * L + slot), and
    their places in `texts.values`."""
    layout, tokens, rows = shape.layout, shape.tokens, shape.eval_rows
    ordered = plan_rows(texts.lengths, tokens=tokens, candidates=tokens).in_order()
    for start in range(0, len(ordered), rows):
        here = np.arange(start, start + rows)
        packed = ordered.take(np.where(here < len(ordered), here, -1))
        length, number = texts.lengths[packed.values], packed.values
        row = np.repeat(np.arange(rows), packed.lengths)
        ends = np.concatenate([[0], np.cumsum(length)])
        place = row * tokens + ends[:-1] - np.repeat(ends[packed.offsets[:-1]], packed.lengths)
        slots, source = spans(place, length), spans(texts.offsets[number], length)
        arrays = np.zeros((4, rows * tokens), np.int32)
        arrays[0] = layout.pad_id
        arrays[0, slots] = texts.values[source]
        arrays[1, slots] = slots - np.repeat(place - layout.candidate_start, length)
        arrays[2, slots] = layout.template.candidate_type
        arrays[3, slots] = np.repeat(np.arange(1, len(number) + 1), length)
        yield tuple(arrays.reshape(4, rows, tokens)), slots, source
