"""What can be decided only after all rows are read: duplicates, impressions, the split by time.

Clean rows are spilled to disk as they arrive, with the few numbers that these decisions need in arrays beside them;
every step below reads those in blocks, so memory does not grow with the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from srsjax.data.store.arrays import SPLITS, ArrayWriter

# Rows whose hashes are sorted at a time, and bytes of spilled rows that are sorted at a time.
BLOCK = 1 << 20
PART_BYTES = 1 << 24
# Parts are open files; beyond this number the parts become larger instead.
MOST_PARTS = 256
# Rows of a batch to be encoded.
BATCH_ROWS = 8192


class Spill:
    """K clean rows on disk: `rows.arrow`, and arrays [K] of what decides their order."""

    KINDS: ClassVar = {
        "group": np.uint64,
        "unique": np.uint64,
        "time": np.float64,
        "split": np.int8,
        "impression": np.int64,
    }

    def __init__(self, folder: Path, batches: Iterator[pa.RecordBatch], block: int = BLOCK):
        """Writes all batches; the rows of an impression are consecutive and in one batch."""
        self.folder, self.block, self.rows, self.bytes = folder, block, 0, 0
        folder.mkdir(parents=True)
        sink, writers = None, {}
        for batch in batches:
            if sink is None:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                sink = pa.ipc.new_stream(str(folder / "rows.arrow"), batch.schema, options=options)
                kinds = {name: kind for name, kind in self.KINDS.items() if name in batch.schema.names}
                writers = {name: ArrayWriter(folder / f"{name}.npy", kind) for name, kind in kinds.items()}
            sink.write_batch(batch)
            for name, writer in writers.items():
                writer.append(batch[name].to_numpy(zero_copy_only=False))
            self.rows += batch.num_rows
            self.bytes += batch.nbytes
        self.columns = set(writers)
        for file in ([sink] if sink else []) + list(writers.values()):
            file.close()

    def __getitem__(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def create(self, name: str, dtype) -> np.ndarray:
        """A new writable array of K zeros on disk."""
        if not self.rows:
            return np.zeros(0, dtype)
        return np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", dtype, (self.rows,))

    def blocks(self) -> Iterator[slice]:
        """Slices that cover all rows."""
        for start in range(0, self.rows, self.block):
            yield slice(start, min(start + self.block, self.rows))

    def batches(self) -> Iterator[tuple[slice, pa.RecordBatch]]:
        """The rows in input order, each batch with its slice."""
        if not self.rows:
            return
        at = 0
        with pa.OSFile(str(self.folder / "rows.arrow")) as file, pa.ipc.open_stream(file) as source:
            for batch in source:
                yield slice(at, at + batch.num_rows), batch
                at += batch.num_rows


@dataclass(frozen=True)
class Order:
    """Where each spilled row goes: arrays [K] on disk."""

    first: np.ndarray
    """int64, position of the first row of its impression."""
    split: np.ndarray
    """int8, 0 train, 1 valid, 2 test; -1 left out as a duplicate."""
    counts: list[int]
    """Rows of each split."""
    duplicates: int
    moved: int
    """Rows whose own key or column gives a different split than that of their impression."""
    periods: dict[str, list[float]] = field(default_factory=dict)
    """Of a split by time: by split with rows, the first and the last of their times."""


def settle(spill: Spill, valid: float, test: float) -> Order:
    """Finds duplicates (later rows with the same `unique` hash), then impressions (rows with the same `group` hash,
    or the same `impression`), then the split: that of the impression's first row, or by time that of its earliest."""
    keep = spill.create("keep", bool)
    if "unique" in spill.columns:
        same = first_positions(spill, "unique")
        for at in spill.blocks():
            keep[at] = same[at] == np.arange(at.start, at.stop)
    else:
        for at in spill.blocks():
            keep[at] = True
    first = first_positions(spill, "group" if "group" in spill.columns else "impression", keep)
    split = spill.create("settled", np.int8)
    by_time = "time" in spill.columns
    own = _split_by_time(spill, keep, first, valid, test) if by_time else spill["split"]
    counts, moved = np.zeros(3, np.int64), 0
    for at in spill.blocks():
        split[at] = np.where(keep[at], own[first[at]], -1)
        moved += 0 if by_time else int((keep[at] & (own[at] != split[at])).sum())
        counts += np.bincount(split[at][keep[at]], minlength=3)
    periods = _periods(spill, split) if by_time else {}
    return Order(first, split, counts.tolist(), spill.rows - int(counts.sum()), moved, periods)


def _periods(spill: Spill, split: np.ndarray) -> dict[str, list[float]]:
    """The first and the last time of the rows of each split that has any."""
    time = spill["time"]
    ends: dict[str, list[float]] = {}
    for at in spill.blocks():
        for number, name in enumerate(SPLITS):
            own = time[at][split[at] == number]
            if len(own):
                low, high = ends.get(name, [np.inf, -np.inf])
                ends[name] = [float(min(low, own.min())), float(max(high, own.max()))]
    return ends


def first_positions(spill: Spill, name: str, keep: np.ndarray | None = None) -> np.ndarray:
    """For each row the position of the first row with the same value, [K] int64 on disk; rows not kept are ignored.

    Values are partitioned by hash into parts of about `block` rows, each sorted separately.
    """
    values, out = spill[name], spill.create(f"first_{name}", np.int64)
    parts = -(-spill.rows // spill.block)
    folder = spill.folder / f"parts_{name}"
    writers = [ArrayWriter(folder / f"{part}.npy", np.uint64, (2,)) for part in range(parts)]
    for at in spill.blocks():
        value = values[at].astype(np.uint64)
        part = (value * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(33)) % np.uint64(max(parts, 1))
        pairs = np.stack([value, np.arange(at.start, at.stop, dtype=np.uint64)], 1)
        out[at] = np.arange(at.start, at.stop)
        for number, writer in enumerate(writers):
            writer.append(pairs[(part == number) & (True if keep is None else keep[at])])
    for number, writer in enumerate(writers):
        writer.close()
        pairs = np.load(folder / f"{number}.npy")
        order = np.argsort(pairs[:, 0], kind="stable")
        value, position = pairs[order, 0], pairs[order, 1].astype(np.int64)
        starts = np.maximum.accumulate(np.where(np.diff(value, prepend=~value[:1]) != 0, np.arange(len(value)), 0))
        out[position] = position[starts]
        (folder / f"{number}.npy").unlink()
    return out


def _split_by_time(spill: Spill, keep: np.ndarray, first: np.ndarray, valid: float, test: float) -> np.ndarray:
    """The split of each impression's earliest time, at the position of its first row, [K] int8 on disk.

    The newest `test` of the rows test and the `valid` before them validate; rows with equal times are in one split,
    the later one.
    """
    time, earliest, split = spill["time"], spill.create("earliest", np.float64), spill.create("by_time", np.int8)
    for at in spill.blocks():
        earliest[at] = np.inf
    for at in spill.blocks():
        rows = np.flatnonzero(keep[at])
        np.minimum.at(earliest, first[at][rows], time[at][rows])

    def times() -> Iterator[np.ndarray]:
        for at in spill.blocks():
            yield earliest[first[at][keep[at]]]

    count = sum(len(block) for block in times())
    bounds = []
    for share in (valid + test, test):
        rank = round(count * (1 - share))
        bounds.append(kth_smallest(times, rank) if rank < count else np.inf)
    for at in spill.blocks():
        split[at] = np.searchsorted(bounds, earliest[at], side="right")
    return split


def kth_smallest(blocks: Callable[[], Iterator[np.ndarray]], k: int) -> float:
    """The k-th smallest (from 0) of float64 values given in blocks, exactly: a radix selection that reads them four
    times, 16 bits of their order-preserving integers at a time."""
    prefix = np.uint64(0)
    for shift in (48, 32, 16, 0):
        counts = np.zeros(1 << 16, np.int64)
        for block in blocks():
            bits = (block + 0.0).view(np.uint64)  # + 0.0 turns -0.0 into 0.0
            negative = bits >> np.uint64(63) == 1
            bits = np.where(negative, ~bits, bits | np.uint64(1 << 63))
            if shift < 48:
                bits = bits[bits >> np.uint64(shift + 16) == prefix]
            digits = (bits >> np.uint64(shift)) & np.uint64(0xFFFF)
            counts += np.bincount(digits.astype(np.int64), minlength=1 << 16)
        below = np.cumsum(counts)
        digit = int(np.searchsorted(below, k, side="right"))
        k -= int(below[digit - 1]) if digit else 0
        prefix = (prefix << np.uint64(16)) | np.uint64(digit)
    found = prefix ^ np.uint64(1 << 63) if prefix >> np.uint64(63) else ~prefix
    return float(np.array([found], np.uint64).view(np.float64)[0])


# ---------------------------------------------------------------------------------------------- rows in order


def by_impression(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Gives each impression, whose rows are consecutive, the split of its first row (where that is not settled yet)."""
    for batch in batches:
        impression = batch["impression"].to_numpy()
        split = batch["split"].to_numpy()[np.searchsorted(impression, impression)]
        yield batch.set_column(batch.schema.get_field_index("split"), "split", pa.array(split))


def training_rows(spill: Spill, order: Order) -> Iterator[pa.RecordBatch]:
    """The training rows, in input order."""
    for at, batch in spill.batches():
        yield batch.filter(pa.array(np.asarray(order.split[at]) == 0))


def in_impressions(spill: Spill, order: Order) -> Iterator[pa.RecordBatch]:
    """The kept rows, impressions in the order of their first rows and whole within a batch; columns `split` and
    `impression` as settled."""
    if _adjacent(spill, order):
        parts: Iterator[pa.Table] = (_settled(order, at, batch) for at, batch in spill.batches())
        parts = _joined_at_ends(parts) if "group" in spill.columns else parts
    else:
        parts = _by_first_row(spill, order)
    for part in parts:
        yield from _whole_impressions(part)


def _settled(order: Order, at: slice, batch: pa.RecordBatch) -> pa.Table:
    """The kept rows of a batch, with their settled impression and split."""
    decided = [name for name in Spill.KINDS if name in batch.schema.names]
    table = pa.Table.from_batches([batch]).drop_columns(decided)
    table = table.append_column("impression", pa.array(order.first[at]))
    split = np.asarray(order.split[at])
    return table.append_column("split", pa.array(split)).filter(pa.array(split >= 0))


def _adjacent(spill: Spill, order: Order) -> bool:
    """Whether the rows of every impression are already consecutive."""
    last = -1
    for at in spill.blocks():
        kept = order.first[at][np.asarray(order.split[at]) >= 0]
        if len(kept) and (kept[0] < last or (np.diff(kept) < 0).any()):
            return False
        last = kept[-1] if len(kept) else last
    return True


def _joined_at_ends(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Moves an impression that continues in the next part into that part."""
    held: pa.Table | None = None
    for part in parts:
        part = part if held is None else pa.concat_tables([held, part]).combine_chunks()
        if not len(part):
            continue
        impression = part["impression"].to_numpy()
        cut = int(np.searchsorted(impression, impression[-1]))
        held = part.slice(cut)
        yield part.slice(0, cut)
    if held is not None:
        yield held


def _by_first_row(spill: Spill, order: Order) -> Iterator[pa.Table]:
    """An external sort by (first row of the impression, position): rows are partitioned into files by the former."""
    bounds = _part_bounds(spill, order)
    folder = spill.folder / "parts_rows"
    folder.mkdir()
    sinks: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
    for at, batch in spill.batches():
        table = _settled(order, at, batch)
        part = np.searchsorted(bounds, table["impression"].to_numpy(), side="right")
        by_part = np.argsort(part, kind="stable")
        ends = np.cumsum(np.bincount(part, minlength=len(bounds) + 1))
        for number in np.unique(part).tolist():
            start = ends[number - 1] if number else 0
            if number not in sinks:
                sinks[number] = pa.ipc.new_stream(str(folder / f"{number}.arrow"), table.schema)
            sinks[number].write_table(table.take(pa.array(by_part[start : ends[number]])))
    for sink in sinks.values():
        sink.close()
    for number in sorted(sinks):
        with pa.OSFile(str(folder / f"{number}.arrow")) as file, pa.ipc.open_stream(file) as source:
            table = source.read_all().combine_chunks()
        (folder / f"{number}.arrow").unlink()
        yield table.take(pa.array(np.argsort(table["impression"].to_numpy(), kind="stable")))


def _part_bounds(spill: Spill, order: Order) -> np.ndarray:
    """First positions at which a new part begins, so that each part has about `PART_BYTES`."""
    size = max(spill.rows * PART_BYTES // max(spill.bytes, 1), -(-spill.rows // MOST_PARTS), 1)
    grain = max(size // 16, 1)
    counts = np.zeros(-(-spill.rows // grain), np.int64)
    for at in spill.blocks():
        first = order.first[at][np.asarray(order.split[at]) >= 0]
        counts += np.bincount(first // grain, minlength=len(counts))
    part = np.cumsum(counts) // size
    return (np.flatnonzero(np.diff(part) > 0) + 1) * grain


def _whole_impressions(part: pa.Table) -> Iterator[pa.RecordBatch]:
    """Batches of about `BATCH_ROWS` rows that end where an impression ends."""
    impression = part["impression"].to_numpy()
    start = 0
    while start < len(part):
        stop = min(start + BATCH_ROWS, len(part))
        if stop < len(part):
            stop = int(np.searchsorted(impression, impression[stop - 1], side="right"))
        yield part.slice(start, stop - start).combine_chunks().to_batches()[0]
        start = stop
