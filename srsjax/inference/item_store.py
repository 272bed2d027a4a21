"""Stored items: what a `split` model computes of a candidate alone is computed once and looked up ever after.

PreTTR (MacAvaney et al. 2020) and DeFormer (Cao et al. 2020): below `model.split_layers` a candidate sees only itself
and always has the same positions, so the states of an item after these layers depend on the item alone. A batch
then computes its contexts in all layers, its candidates in the upper ones. The states are kept in the compute dtype, in
which the layers pass them on: scores are those without a store, to float tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from srsjax import distributed
from srsjax.compilation import compiler_options
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.contexts import items_alone
from srsjax.data.batches.layout import BatchShape
from srsjax.data.batches.loader import eval_batches
from srsjax.data.store.arrays import Items
from srsjax.errors import InputError
from srsjax.inference.fingerprint import model_fingerprint
from srsjax.inference.item_states import DTYPES, ItemStates, in_memory, update
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
    computed: int = 0
    """How many items had to be computed; the states of the others were in the folder."""

    def step(self, params: dict[str, jax.Array], batch: tuple[PackedBatch, ctr.StoredPlaces]) -> jax.Array:
        """Logits [R, C, K] float32 of a completed batch, whole on every device."""
        return self.jitted(params, self.states, *batch)

    def complete(
        self, item: np.ndarray, batch: PackedBatch, numbers: np.ndarray
    ) -> tuple[PackedBatch, ctr.StoredPlaces]:
        """A batch [R, ...] and where its states are. `item` [M]: item of each candidate; `numbers` [R, C]: candidates
        in the slots."""
        tokens = batch.tokens.shape[1]
        state = _places(self.offsets, np.where(numbers < 0, 0, item[numbers]), batch).astype(np.int32)

        is_context = (batch.segment > 0) & (batch.candidate == 0)
        count = is_context.sum(axis=1)
        step = _context_step(tokens)
        slots = max(1, -(-int(count.max(initial=0)) // step)) * step
        if not self.states.is_fully_addressable:
            slots = tokens  # the longest context of all hosts is not known here, and shapes must be those of all
        context = np.argsort(~is_context, axis=1, kind="stable")[:, :slots]
        context = np.where(np.arange(context.shape[1]) < count[:, None], context, tokens).astype(np.int32)
        return batch, ctr.StoredPlaces(state, context)

    def empty_places(self, rows: int, tokens: int) -> Iterator[ctr.StoredPlaces]:
        """The places of rows of padding, in every shape that `complete` gives."""
        step = _context_step(tokens)
        for slots in range(step, CONTEXT_STEPS * step + 1, step):
            context = np.full((rows, min(slots, tokens)), tokens, np.int32)
            yield ctr.StoredPlaces(np.full((rows, tokens), -1, np.int32), context)


def build_item_store(
    session: Session,
    params: dict,
    items: Items,
    shape: BatchShape,
    folder: str | Path | None = None,
    dtype: str = "",
) -> ItemStore:
    """Runs the lower layers over every item whose states `folder` does not have, and keeps the folder up to date.

    Args:
      shape: that of the run's evaluation batches.
      dtype: as which states are kept, `float32`, `bfloat16` or `int8` with a scale for each token; empty is the dtype
        of computation, as which they always are on the devices.

    Raises:
      InputError: an unknown dtype, or a folder that is not one of this model's states.
    """
    if not len(items.tokens):
        raise ValueError("no items to store")
    if dtype and dtype not in DTYPES:
        raise InputError(
            f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}, or empty for that of computation"
        )
    whole, rows = (NamedSharding(session.mesh, spec) for spec in (PartitionSpec(), PartitionSpec(ROWS)))
    own = np.dtype(ctr.merge(session.graphdef, params).bert.embeddings.dtype)
    special, kept = shape.layout.alone().candidate_special, DTYPES[dtype] if dtype else own
    compute = partial(compute_states, session, params, shape=shape)
    if folder is None:
        made = in_memory(items, special, kept, compute)
    else:
        fingerprint = model_fingerprint(session, params, shape.layout)
        known = ItemStates.load(folder, fingerprint) if Path(folder).exists() else None
        made = update(known, items, special, kept, fingerprint, compute)
        if made is not known:
            distributed.on_first(lambda: made.save(folder))
    jitted = jax.jit(
        partial(ctr.forward_stored, session.graphdef),
        in_shardings=(session.shardings, whole, rows, rows),
        out_shardings=whole,
        compiler_options=compiler_options(session.mesh),
    )
    return ItemStore(put_same(made.decoded(own), whole), np.asarray(made.offsets), jitted, made.computed)


def compute_states(session: Session, params: dict, items: Items, shape: BatchShape) -> np.ndarray:
    """States [S, D] in the dtype of computation, the tokens of one item after the other."""
    rows = NamedSharding(session.mesh, PartitionSpec(ROWS))
    step = jax.jit(
        partial(ctr.item_states, session.graphdef),
        in_shardings=(session.shardings, rows),
        out_shardings=NamedSharding(session.mesh, PartitionSpec()),
        compiler_options=compiler_options(session.mesh),
    )
    layout = shape.layout.alone()
    offsets = np.concatenate([[0], np.cumsum(items.tokens.lengths + layout.candidate_special, dtype=np.int64)])
    states = None
    for batch, numbers in eval_batches(items_alone(items), items, layout, rows=shape.eval_rows, tokens=shape.tokens):
        made = np.asarray(step(params, jax.tree.map(partial(put_same, sharding=rows), batch)))
        if states is None:
            states = np.zeros((offsets[-1], made.shape[-1]), made.dtype)
        places = _places(offsets, np.maximum(numbers, 0), batch)
        states[places[places >= 0]] = made[places >= 0]
    assert states is not None, "no items"
    return states


def _context_step(tokens: int) -> int:
    """What the context slots of rows of so many tokens are a multiple of."""
    return -(-tokens // CONTEXT_STEPS)


def _places(offsets: np.ndarray, item: np.ndarray, batch: PackedBatch) -> np.ndarray:
    """The row of the states of each candidate token, [R, L] int64; -1 for other tokens. `item` [R, C]: item of each
    candidate slot."""
    first = offsets[item] - batch.readout
    of = np.take_along_axis(first, np.maximum(batch.candidate - 1, 0), axis=1) + np.arange(batch.tokens.shape[1])
    return np.where(batch.candidate > 0, of, -1)
