"""Packed batches for training, evaluation and scoring: the packing plan made into numpy arrays by Grain.

An element of the Grain pipeline is the batches of a few consecutive steps, addressed by index, not a row that Grain
batches afterwards. So the state is one integer, the step, whatever the number of hosts and workers; workers make no
ragged batches; and assembling many rows at once is many times as fast as one by one.
"""

from __future__ import annotations

import io
import logging
import math
import mmap
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from absl import flags

from srsjax import config
from srsjax.bounds import MOST_STEPS
from srsjax.data.batches.assembly import Assembler
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.layout import Layout
from srsjax.data.batches.packing import Plan, RowStream, choose_candidates, plan_rows
from srsjax.data.batches.workers import Feed, begin
from srsjax.data.store.arrays import Items, Split
from srsjax.errors import InputError

log = logging.getLogger(__name__)

# Elements prefetched by the threads of this process, and by each worker process.
THREADS, THREAD_BUFFER, WORKER_BUFFER = 1, 4, 2
# Tokens of an element, and its most steps. The time of numpy and Grain for a small element hardly depends on its size.
TOKENS_AT_ONCE, STEPS_AT_ONCE = 1 << 16, 16
# Workers send arrays through a pipe. Grain would put each in shared memory and unmap it when the array is deleted,
# while a device may still be reading it; and containers often have little shared memory.
BY_PIPE = grain.experimental.DatasetOptions(min_shm_size=2**62)


class Batches(Iterator[tuple[PackedBatch, np.ndarray]]):
    """Batches one after another; the state is one integer, the number of batches given so far.

    Each is `(PackedBatch, numbers)`: `numbers` int64 is the candidate's number in the split (its row of `split.labels`)
    in every candidate slot, -1 in empty ones. With worker processes `next` raises WorkerLost where one was lost.
    """

    def __init__(self, source: StepSource, plan: Plan, epoch_ends: list[int], workers: int):
        self.steps = source.steps
        """Batches altogether."""
        self.epoch_ends = epoch_ends
        """Steps after which an epoch is complete, increasing; the last one is `steps`."""
        self.padding_share = plan.padding_share
        """Share of token slots of an epoch that hold padding."""
        self.split_impressions = plan.split_impressions
        """Impressions cut because they do not fit in a row; 0 where candidates are packed singly."""
        self.candidates = source.candidates
        """Candidate slots C of a row."""
        self.steps_per_epoch = len(plan) / source.rows
        """Batches of a pass over the split."""
        self.examples_per_step = len(plan.units.values) / max(len(plan), 1) * source.rows
        """Candidates of a batch of all hosts, on average."""
        self.tokens_per_step = (1 - plan.padding_share) * source.rows * source.tokens
        """Real (non-padding) tokens of a batch of all hosts, on average."""
        self.interrupted: Callable[[], bool] = lambda: False
        """Asked while worker processes are waited for; true makes `next` raise Interrupted, and loses no batch."""
        self._source, self._workers = source, workers
        self._step = 0
        self._iterator: grain.DatasetIterator | Feed | None = None
        self._made: list[tuple[PackedBatch, np.ndarray]] = []  # of the element at hand, the next one last

    def __len__(self) -> int:
        return self.steps

    def __next__(self) -> tuple[PackedBatch, np.ndarray]:
        if self._step >= self.steps:
            self.close()
            self.wait_checked()
            raise StopIteration
        if checks := self._source.assembler.split.checks:
            checks.tell()
        if self._iterator is None:
            self._iterator = self._open()
        feed = self._iterator
        if isinstance(feed, Feed):
            feed.check()
        if not self._made:
            made = feed.take(self.interrupted) if isinstance(feed, Feed) else next(feed)
            given = self._step % self._source.steps_at_once  # more than 0 only right after `restore`
            self._made = made[given:][::-1]
        self._step += 1
        return self._made.pop()

    def wait_checked(self) -> None:
        """Returns once every file behind the batches has been compared with its checksum. Raises InputError where one
        is damaged. The last batch does so too, and each batch where that is known by then."""
        if checks := self._source.assembler.split.checks:
            checks.wait()

    def first(self) -> PackedBatch:
        """The first batch, whatever was given so far: all have its shapes and dtypes."""
        return self._source.batches(0, 1)[0][0]

    def examples(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers of candidates in the split -> their numbers in the log."""
        return np.asarray(self._source.assembler.split.example)[numbers]

    def state(self) -> int:
        """Batches returned so far; prefetched batches do not count."""
        return self._step

    def restore(self, step: int) -> None:
        """Resumes after `step` batches, with any number of workers and hosts. Raises ValueError beyond `steps`."""
        if not 0 <= step <= self.steps:
            raise ValueError(f"cannot go on after batch {step} of {self.steps}")
        self.close()
        self._step = step

    def close(self) -> None:
        """Stops threads and worker processes. The next batch starts them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator, self._made = None, []

    def _open(self) -> grain.DatasetIterator | Feed:
        # Always a fresh pipeline that starts at the step: Grain's own state counts batches per worker, and is silently
        # wrong when restored with a different number of workers.
        steps = grain.MapDataset.source(self._source)[self._step // self._source.steps_at_once :]
        if not self._workers:
            return iter(steps.to_iter_dataset(grain.ReadOptions(THREADS, THREAD_BUFFER)))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags; the defaults are what we want
        workers = grain.MultiprocessingOptions(self._workers, WORKER_BUFFER)
        batches = grain.experimental.WithOptionsIterDataset(steps.to_iter_dataset(grain.ReadOptions(0, 0)), BY_PIPE)
        return Feed(batches.mp_prefetch(workers, begin), self._workers)


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
    axis 1 they are the batch of a single host. Rows of an epoch follow those of the previous one without a gap; the
    last batch is filled up with empty rows.

    Args:
      split, items: what the pairs are read from, memory-mapped or in memory.
      layout: how texts become sequences.
      whole_impressions: keep the candidates of an impression in one row, or on consecutive rows where they do not fit
        in one (for a loss within impressions). Where they share a context they are in one row if they fit in any case.
      seed: of the order and of which pairs share a row.
      epochs: passes over the split; `max_steps`, where above 0, decides instead.

    Raises:
      InputError: indivisible rows, a pair longer than a row, or nothing to train on.
    """
    parts = batch.micro_batches * process_count
    if batch.rows < 1 or batch.rows % parts:
        raise InputError(
            f"batch.rows is {batch.rows}, expected a multiple of {parts} (batch.micro_batches {batch.micro_batches} x "
            f"{process_count} hosts); set batch.rows to {max(1, -(-batch.rows // parts)) * parts}"
        )
    assembler = Assembler(split, items, layout)
    plan, candidates = _training_plan(assembler, batch, whole_impressions)
    end = max_steps * batch.rows if max_steps else max(1, math.ceil(epochs * len(plan) - 1e-6))
    if end > MOST_STEPS * batch.rows:
        raise InputError(f"epochs: found {end / batch.rows:,.0f} steps, expected at most {MOST_STEPS:,}")
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
    return Batches(source, plan, np.unique(np.append(ends, source.steps)).tolist(), batch.workers)


def rows_for(
    split: Split, items: Items, layout: Layout, batch: config.Batch, *, whole_impressions: bool, divisor: int
) -> int:
    """The rows R whose steps hold about `batch.examples` candidates, a multiple of `divisor`; others as in
    `train_batches`."""
    plan, _ = _training_plan(Assembler(split, items, layout), batch, whole_impressions)
    rows = batch.examples * len(plan) / len(plan.units.values)
    return max(1, round(rows / divisor)) * divisor


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
      InputError: indivisible rows, or a pair longer than a row.
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
    return Batches(source, plan, [source.steps], workers=0)


def _training_plan(assembler: Assembler, batch: config.Batch, whole_impressions: bool) -> tuple[Plan, int]:
    """The plan of the candidates that are trained on, and C. Raises InputError where there are none."""
    trained = np.any(np.asarray(assembler.split.weights) > 0, axis=1)
    if not trained.any():
        raise InputError(
            f"the training split has {len(trained)} candidates and none with a label of weight above 0; check "
            f"data.split, the label columns and their weights"
        )
    return _plan(assembler, batch.tokens, batch.candidates, keep=trained, whole=whole_impressions)


def _plan(
    assembler: Assembler, tokens: int, candidates: int, keep: np.ndarray | None = None, whole: bool = False
) -> tuple[Plan, int]:
    """The plan and C, chosen where `candidates` is 0. Raises InputError where a pair is longer than a row."""
    pairs, layout = assembler.pair_lengths(), assembler.layout
    longest = int(pairs.max(initial=0))
    if longest > tokens:
        special = layout.context_special + layout.candidate_special
        raise InputError(
            f"batch.tokens is {tokens}, but the longest pair has {longest} tokens (context and candidate text with "
            f"{special} special tokens); set batch.tokens to at least {longest}, or lower max_tokens of "
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
    """Grain random-access source: number of an element -> this host's part of the batches of its steps."""

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

    @property
    def steps(self) -> int:
        """Batches altogether."""
        return -(-self.stream.end // self.rows)

    @property
    def steps_at_once(self) -> int:
        """Batches of an element; the last one may have fewer."""
        return min(max(1, TOKENS_AT_ONCE * self.process_count // (self.rows * self.tokens)), STEPS_AT_ONCE)

    def __len__(self) -> int:
        return -(-self.steps // self.steps_at_once)

    def __getitem__(self, element: int) -> list[tuple[PackedBatch, np.ndarray]]:
        first = element * self.steps_at_once
        return self.batches(first, min(first + self.steps_at_once, self.steps))

    def batches(self, first: int, last: int) -> list[tuple[PackedBatch, np.ndarray]]:
        """This host's part of the batches of steps first..last-1."""
        # Each micro-batch is divided over the hosts, so that the order of rows does not depend on their number.
        rows = np.arange(first * self.rows, last * self.rows)
        parts = ((last - first) * (self.micro_batches or 1), self.process_count, -1)
        mine = rows.reshape(parts)[:, self.process_index].reshape(-1)
        batch, numbers = self.assembler.assemble(self.stream.take(mine), self.tokens, self.candidates)
        axes = (last - first, -1) if self.micro_batches is None else (last - first, self.micro_batches, -1)

        def of(step: int, array: Any) -> Any:
            """The part of a step, of an array or of a dict of arrays."""
            if isinstance(array, dict):
                return {name: of(step, value) for name, value in array.items()}
            return array.reshape(*axes, *array.shape[1:])[step]

        return [(PackedBatch(*(of(s, field) for field in batch)), of(s, numbers)) for s in range(last - first)]

    def __reduce__(self):
        buffer = io.BytesIO()
        _ByPath(buffer, pickle.HIGHEST_PROTOCOL).dump(self.__dict__)
        return _unpickle_source, (buffer.getvalue(),)


class _ByPath(pickle.Pickler):
    """Pickles a memory-mapped file as its path, so that worker processes map the store instead of copying it."""

    def reducer_override(self, obj: Any) -> Any:
        # A view of a mapped array has a different base and an unknown offset; it is pickled by value.
        if type(obj) is np.memmap and isinstance(obj.base, mmap.mmap):
            order = "F" if obj.flags.fnc else "C"
            return np.memmap, (obj.filename, obj.dtype, "r", obj.offset, obj.shape, order)
        return NotImplemented


def _unpickle_source(state: bytes) -> StepSource:
    return StepSource(**pickle.loads(state))
