"""Packed batches for training, evaluation and scoring: the packing plan made into numpy arrays by Grain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from srsjax import config
from srsjax.data.batch import PackedBatch
from srsjax.data.store import Items, Split

if TYPE_CHECKING:
    from srsjax.data.tokenizer import PairTemplate


class Batches(Iterator):
    """Batches one after another; its state is one integer, the number of batches already given.

    Each is `(PackedBatch, numbers)`; `numbers` int64 holds the candidate's number in the split (row of
    `split.labels`) in each candidate slot, -1 in empty ones.
    """

    steps: int
    """Batches altogether."""
    epoch_ends: list[int]
    """Steps after which an epoch is complete, increasing; the last one is `steps`."""
    padding_share: float
    """Share of token slots that hold padding."""
    split_impressions: int
    """Impressions cut because they do not fit in a row (whole impressions only)."""
    candidates: int
    """Candidate slots C of a row."""

    def __next__(self) -> tuple[PackedBatch, np.ndarray]:
        raise NotImplementedError

    def __len__(self) -> int:
        """`steps`."""
        raise NotImplementedError

    def state(self) -> int:
        """Batches given so far."""
        raise NotImplementedError

    def restore(self, step: int) -> None:
        """Goes on after `step` batches, whatever the number of workers and hosts was before."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the worker processes or threads."""
        raise NotImplementedError


def train_batches(
    split: Split,
    items: Items,
    template: PairTemplate,
    pad_id: int,
    batch: config.Batch,
    *,
    pair: bool,
    whole_impressions: bool,
    seed: int,
    epochs: float = 1.0,
    max_steps: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Shuffled training batches; arrays are [A, R / (A * process_count), ...] with A = `batch.micro_batches`.

    Concatenated over hosts along axis 1 they are the batch of a single host.
    """
    raise NotImplementedError


def eval_batches(
    split: Split,
    items: Items,
    template: PairTemplate,
    pad_id: int,
    *,
    rows: int,
    tokens: int,
    candidates: int = 0,
    pair: bool,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Every candidate of the split exactly once, arrays [rows / process_count, ...]; as many batches on every host."""
    raise NotImplementedError
