"""Packed batches for training, evaluation and scoring: the packing plan made into numpy arrays by Grain.

The element of the Grain pipeline is a whole step's batch, found by its step number; it is not a row that Grain batches
afterwards. That keeps the state one integer, the step, whatever the number of hosts and workers; it keeps workers from
making ragged batches; and a batch assembled at once is many times as fast as rows assembled and stacked one by one.
"""

from __future__ import annotations

import io
import logging
import math
import mmap
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from absl import flags

from srsjax import config
from srsjax.data.assembly import Assembler, Layout
from srsjax.data.batch import PackedBatch
from srsjax.data.packing import Plan, RowStream, choose_candidates, plan_rows
from srsjax.data.store import Items, Split
from srsjax.errors import InputError

log = logging.getLogger(__name__)

# Batches made ahead: by the threads of this process, and by each worker process.
THREADS, THREAD_BUFFER, WORKER_BUFFER = 1, 4, 2
# Workers send arrays through a pipe. Grain would put each into shared memory and unmap it when the array is deleted,
# while a device may still read it; and containers often have little shared memory.
BY_PIPE = grain.experimental.DatasetOptions(min_shm_size=2**62)


class Batches(Iterator[tuple[PackedBatch, np.ndarray]]):
    """Batches one after another; the state is one integer, the number of batches given so far.

    Each is `(PackedBatch, numbers)`: `numbers` int64 is the candidate's number in the split (its row of `split.labels`)
    in every candidate slot, -1 in empty ones.
    """

    def __init__(self, source: StepSource, plan: Plan, epoch_ends: list[int], workers: int):
        self.steps = len(source)
        """Batches altogether."""
        self.epoch_ends = epoch_ends
        """Steps after which an epoch is complete, increasing; the last one is `steps`."""
        self.padding_share = plan.padding_share
        """Share of token slots of an epoch that hold padding."""
        self.split_impressions = plan.split_impressions
        """Impressions cut because they do not fit in a row; 0 where candidates are packed singly."""
        self.candidates = source.candidates
        """Candidate slots C of a row."""
        self._source, self._workers = source, workers
        self._step = 0
        self._iterator: grain.DatasetIterator | None = None

    def __len__(self) -> int:
        return self.steps

    def __next__(self) -> tuple[PackedBatch, np.ndarray]:
        if self._step >= self.steps:
            self.close()
            raise StopIteration
        if self._iterator is None:
            self._iterator = self._open()
        batch = next(self._iterator)
        self._step += 1
        return batch

    def first(self) -> PackedBatch:
        """The first batch, whatever was given so far: all have its shapes and dtypes."""
        return self._source[0][0]

    def state(self) -> int:
        """Batches given so far; batches made ahead do not count."""
        return self._step

    def restore(self, step: int) -> None:
        """Goes on after `step` batches, with any number of workers and hosts. Raises ValueError beyond `steps`."""
        if not 0 <= step <= self.steps:
            raise ValueError(f"cannot go on after batch {step} of {self.steps}")
        self.close()
        self._step = step

    def close(self) -> None:
        """Ends threads and worker processes. The next batch starts them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _open(self) -> grain.DatasetIterator:
        # Always a fresh pipeline that begins at the step: Grain's own state counts batches by worker, and is silently
        # wrong when restored with another number of workers.
        steps = grain.MapDataset.source(self._source)[self._step :]
        if not self._workers:
            return iter(steps.to_iter_dataset(grain.ReadOptions(THREADS, THREAD_BUFFER)))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags; their defaults are right here
        workers = grain.MultiprocessingOptions(self._workers, WORKER_BUFFER)
        batches = grain.experimental.WithOptionsIterDataset(steps.to_iter_dataset(grain.ReadOptions(0, 0)), BY_PIPE)
        return iter(batches.mp_prefetch(workers))


def train_batches(
    split: Split,
    items: Items,
    layout: Layout,
    batch: config.Batch,
    *,
    whole_impressions: bool,
    seed: int,
    epochs: float = 1.0,
    max_steps: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Shuffled training batches of the candidates that have a weight above 0 for some task.

    Arrays are [A, R / (A P), ...] for A = `batch.micro_batches` and P = `process_count`; concatenated over hosts along
    axis 1 they are the batch of a single host. Rows of one epoch follow those of the last without a gap; empty rows
    fill the last batch.

    Args:
      split, items: what the pairs are read from, memory-mapped or in memory.
      layout: how texts become sequences.
      whole_impressions: keep the candidates of an impression in one row, or on consecutive rows where they do not fit
        in one (for a loss within impressions). Where they share a context they are in one row if they fit in any case.
      seed: of the order and of which pairs share a row.
      epochs: passes over the split; `max_steps`, where above 0, decides instead.

    Raises:
      InputError: rows that cannot be divided, a pair longer than a row, or nothing to train on.
    """
    parts = batch.micro_batches * process_count
    if batch.rows < 1 or batch.rows % parts:
        raise InputError(
            f"batch.rows is {batch.rows}, expected a multiple of {parts} (batch.micro_batches {batch.micro_batches} x "
            f"{process_count} hosts); set batch.rows to {max(1, -(-batch.rows // parts)) * parts}"
        )
    assembler = Assembler(split, items, layout)
    trained = np.any(np.asarray(split.weights) > 0, axis=1)
    if not trained.any():
        raise InputError(
            f"the training split has {len(trained)} candidates and none with a label of weight above 0; check "
            f"data.split, the label columns and their weights"
        )
    plan, candidates = _plan(assembler, batch.tokens, batch.candidates, keep=trained, whole=whole_impressions)
    end = max_steps * batch.rows if max_steps else max(1, math.ceil(epochs * len(plan) - 1e-6))
    source = StepSource(
        assembler,
        RowStream(plan, end, seed),
        rows=batch.rows,
        tokens=batch.tokens,
        candidates=candidates,
        micro_batches=batch.micro_batches,
        process_index=process_index,
        process_count=process_count,
    )
    ends = -(-np.arange(len(plan), end, len(plan)) // batch.rows)
    return Batches(source, plan, np.unique(np.append(ends, len(source))).tolist(), batch.workers)


def eval_batches(
    split: Split,
    items: Items,
    layout: Layout,
    *,
    rows: int,
    tokens: int,
    candidates: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Every candidate of the split exactly once, packed as tightly as possible and not shuffled.

    Arrays are [R / P, ...] for R = `rows` and P = `process_count`; every host has the same number of batches, and empty
    rows fill the last. `candidates` 0 chooses C by the lengths; other arguments as in `train_batches`.

    Raises:
      InputError: rows that cannot be divided, or a pair longer than a row.
    """
    if rows < 1 or rows % process_count:
        raise InputError(f"batch.eval_rows is {rows}, expected a multiple of the {process_count} hosts")
    assembler = Assembler(split, items, layout)
    plan, candidates = _plan(assembler, tokens, candidates)
    source = StepSource(
        assembler,
        RowStream(plan, len(plan), seed=None),
        rows=rows,
        tokens=tokens,
        candidates=candidates,
        micro_batches=None,
        process_index=process_index,
        process_count=process_count,
    )
    return Batches(source, plan, [len(source)], workers=0)


def _plan(
    assembler: Assembler, tokens: int, candidates: int, keep: np.ndarray | None = None, whole: bool = False
) -> tuple[Plan, int]:
    """The plan and C, chosen where `candidates` is 0. Raises InputError where a pair is longer than a row."""
    pairs, layout = assembler.pair_lengths(), assembler.layout
    longest = int(pairs.max(initial=0))
    if longest > tokens:
        raise InputError(
            f"batch.tokens is {tokens}, but the longest pair has {longest} tokens (context and candidate text with "
            f"{layout.special_tokens} special tokens); set batch.tokens to at least {longest}, or lower max_tokens of "
            f"the schema's Text and History features"
        )
    lengths = assembler.candidate_lengths() if layout.shares_context else pairs
    contexts = assembler.context_lengths() if layout.shares_context else None
    impressions = np.asarray(assembler.split.candidates) if whole or layout.shares_context else None
    if candidates < 1:
        candidates = choose_candidates(lengths, tokens, impressions, contexts)
        log.info("batch.candidates: %d candidate slots in a row of %d tokens, by the lengths", candidates, tokens)
    limits = {"tokens": tokens, "candidates": candidates}
    return plan_rows(
        lengths, **limits, keep=keep, impressions=impressions, contexts=contexts, together=whole
    ), candidates


@dataclass(frozen=True)
class StepSource:
    """Grain random-access source: step -> this host's part of that step's batch."""

    assembler: Assembler
    stream: RowStream
    rows: int
    """R of all hosts together."""
    tokens: int
    candidates: int
    micro_batches: int | None
    """A, the leading axis; None for no such axis."""
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return -(-self.stream.end // self.rows)

    def __getitem__(self, step: int) -> tuple[PackedBatch, np.ndarray]:
        # Micro-batch by micro-batch, each divided over the hosts: the order of rows does not depend on the hosts.
        rows = np.arange(step * self.rows, (step + 1) * self.rows)
        mine = rows.reshape(self.micro_batches or 1, self.process_count, -1)[:, self.process_index].reshape(-1)
        batch, numbers = self.assembler.assemble(self.stream.take(mine), self.tokens, self.candidates)
        if self.micro_batches is None:
            return batch, numbers
        return PackedBatch(*(self._divide(field) for field in batch)), self._divide(numbers)

    def _divide(self, array: Any) -> Any:
        """[R, ...] -> [A, R / A, ...], of arrays and of dicts of arrays."""
        if isinstance(array, dict):
            return {name: self._divide(value) for name, value in array.items()}
        return array.reshape(self.micro_batches, -1, *array.shape[1:])

    def __reduce__(self):
        buffer = io.BytesIO()
        _ByPath(buffer, pickle.HIGHEST_PROTOCOL).dump(self.__dict__)
        return _unpickle_source, (buffer.getvalue(),)


class _ByPath(pickle.Pickler):
    """Pickles a memory-mapped file as its path, so that worker processes map the store too instead of copying it."""

    def reducer_override(self, obj: Any) -> Any:
        # A view of a mapped array has another base and an offset it does not know; it is pickled by value.
        if type(obj) is np.memmap and isinstance(obj.base, mmap.mmap):
            order = "F" if obj.flags.fnc else "C"
            return np.memmap, (obj.filename, obj.dtype, "r", obj.offset, obj.shape, order)
        return NotImplemented


def _unpickle_source(state: bytes) -> StepSource:
    return StepSource(**pickle.loads(state))
