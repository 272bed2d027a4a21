"""Batches, splits and layouts for tests, with a default for every field: the one place that makes them by hand.

A new field of `PackedBatch`, `Split` or `Layout` gets its default here, and no test has to know of it.
"""

from __future__ import annotations

import numpy as np

from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.layout import Layout
from srsjax.data.store.arrays import Items, Split
from srsjax.data.store.ragged import Ragged
from srsjax.data.store.tokenizer import PairTemplate
from srsjax.model.interactions import INTERACTIONS

TEMPLATE = PairTemplate(prefix=(1,), between=(2,), suffix=(2,), candidate_type=1, separator=2)


def make_batch(tokens: np.ndarray | None = None, slots: int = 1, tasks: int = 1, **arrays) -> PackedBatch:
    """A batch of `tokens` [R, L] (without: of rows without tokens); `arrays` are further fields by name.

    The others are of full rows of one pair each, whose first token is read: one segment, positions from 0, no
    features, `slots` candidate slots and labels and weights of 0 for `tasks` tasks. `labels` or `weights` [R, C, T]
    and `readout` or `group` [R, C] give the number of rows and slots where they are there.
    """
    shaped = [arrays[name] for name in ("labels", "weights", "readout", "group") if name in arrays]
    if shaped:
        rows, slots = shaped[0].shape[:2]
    else:
        rows = 1 if tokens is None else len(tokens)
    tasks = next((arrays[name].shape[2] for name in ("labels", "weights") if name in arrays), tasks)
    tokens = np.zeros((rows, 0), np.int32) if tokens is None else tokens
    slot, number = np.zeros((rows, slots), np.int32), np.zeros((rows, slots, tasks), np.float32)
    segment = arrays.get("segment", np.ones_like(tokens))
    defaults = {
        "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
        "token_types": np.zeros_like(tokens),
        "segment": segment,
        "candidate": segment,
        "context_readout": slot,
        "readout": slot,
        "context_of": slot,
        "group": slot,
        "labels": number,
        "weights": number,
        "context_features": {},
        "candidate_features": {},
    }
    return PackedBatch(tokens=tokens, **(defaults | arrays))


def make_split(labels: np.ndarray, weights: np.ndarray | None = None, counts=None, **fields) -> Split:
    """A split of M candidates with `labels` and `weights` [M, T] (without: 1), or [M] of one task.

    `counts` [N] are the candidates of each impression; without, each has one. Other fields by name; without, contexts
    are empty, every candidate is an item of its own, and every impression a user.
    """
    labels = np.asarray(labels, np.float32)
    labels = labels[:, None] if labels.ndim == 1 else labels
    weights = np.ones_like(labels) if weights is None else np.asarray(weights, np.float32)
    weights = weights[:, None] if weights.ndim == 1 else weights
    size = len(labels)
    counts = np.ones(size, np.int64) if counts is None else np.asarray(counts, np.int64)
    defaults = {
        "context": Ragged.from_lengths(np.zeros(0, np.int32), np.zeros(len(counts), np.int64)),
        "candidates": np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        "item": np.arange(size),
        "example": np.arange(size),
        "user": np.arange(len(counts)),
    }
    return Split(labels=labels, weights=weights, **(defaults | fields))


def make_impressions(contexts: list[list[int]], candidates: list[list[list[int]]], **fields) -> tuple[Split, Items]:
    """Impressions with these token ids, every candidate an item of its own; `fields` are those of the split."""
    counts = [len(own) for own in candidates]
    context = Ragged.from_rows(contexts, np.int32)
    items = Items(Ragged.from_rows([text for own in candidates for text in own], np.int32))
    return make_split(np.zeros(sum(counts)), counts=counts, context=context, **fields), items


def make_layout(
    start: int | None = None, template: PairTemplate = TEMPLATE, pad_id: int = 0, has_context: bool = True
) -> Layout:
    """A layout whose candidates start at `start`; without, of pairs with a context each (`cross`)."""
    return Layout(template, pad_id, has_context, start)


def layout_for(interaction: str, start: int, template: PairTemplate = TEMPLATE) -> Layout:
    """The layout of an interaction; candidates that follow a shared context start at `start`."""
    if INTERACTIONS[interaction].apart:
        return make_layout(0, template.apart())
    return make_layout(start if INTERACTIONS[interaction].shares_context else None, template)
