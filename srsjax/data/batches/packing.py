"""The packing plan: which candidates share a row. A pure function of lengths, seed and epoch; no text, no model.

A unit is what must stay together: one candidate, or the candidates of one impression. Units of one class, that is with
equal token and candidate counts, are interchangeable. So rows are packed once per run, by histogram: best-fit
decreasing over classes instead of units (Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination",
arXiv:2107.02027). An epoch assigns the units of each class to the places of that class at random, and shuffles the
rows. Consequences:

- packing sees the whole split at once, so only the last few rows are not full;
- every epoch has the same number of rows, so step <-> (epoch, row) is arithmetic, and a resumed run computes only
  its current epoch;
- an epoch costs a few array operations.

The cost: a unit that is alone in its class keeps its row mates in every epoch; only its row moves.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from srsjax.data.store.ragged import Ragged

# Epoch orders cached: a batch, or two threads, may span the end of an epoch.
EPOCHS_KEPT = 2
# Share of rows in which the token limit, not the candidate limit, ends the packing (`choose_candidates`).
TOKEN_BOUND_ROWS = 0.99

CUTS = (2, 3, 4, 6, 8)
"""Where impressions may be cut: pieces of at most the row's tokens divided by each of these are tried too."""


@dataclass(frozen=True)
class Plan:
    """Rows of a split as places for classes of units; made by `plan_rows`."""

    units: Ragged
    """Candidate numbers of each unit, [U] ragged int64."""
    unit_class: np.ndarray
    """[U] int32, class of each unit; each piece of a split impression is a class by itself."""
    place_order: np.ndarray
    """[U] int64, the places, sorted by class."""
    row_offsets: np.ndarray
    """[rows + 1] int64, first place of each row."""
    row_block: np.ndarray
    """[rows] int64; rows of one block (the pieces of a split impression) stay adjacent when rows are shuffled."""
    padding_share: float
    """Share of token slots that hold padding, 0 to 1."""
    split_impressions: int
    """Impressions larger than a row, cut into pieces."""

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    def epoch(self, seed: int, epoch: int) -> Ragged:
        """Candidate numbers of each row in the order of this epoch, [rows] ragged int64."""
        random = np.random.default_rng((seed, epoch))
        shuffled = random.permutation(len(self.units))
        dealt = shuffled[np.argsort(self.unit_class[shuffled], kind="stable")]
        blocks = random.permutation(self.row_block.max(initial=-1) + 1)
        return self._fill(dealt, np.argsort(blocks[self.row_block], kind="stable"))

    def in_order(self) -> Ragged:
        """Candidate numbers of each row without shuffling, [rows] ragged int64."""
        return self._fill(np.argsort(self.unit_class, kind="stable"), np.arange(len(self)))

    def _fill(self, dealt: np.ndarray, row_order: np.ndarray) -> Ragged:
        """Rows of candidates. `dealt` [U]: units sorted by class, in the order of places; `row_order` [rows]."""
        placed = np.empty_like(dealt)
        placed[self.place_order] = dealt
        rows = Ragged(placed, self.row_offsets).take(row_order)
        return self.units.take(rows.values).regroup(rows.offsets)


def plan_rows(
    lengths: np.ndarray,
    *,
    tokens: int,
    candidates: int,
    keep: np.ndarray | None = None,
    impressions: np.ndarray | None = None,
    contexts: np.ndarray | None = None,
    together: bool = True,
) -> Plan:
    """Packs candidates into rows of at most `tokens` tokens (L) and `candidates` candidates (C).

    Args:
      lengths: [M] integers, tokens of each candidate, those of its context included unless `contexts` has them.
      tokens: L.
      candidates: C.
      keep: [M] bool, the candidates to pack; None packs all.
      impressions: [N + 1] first candidate of each impression: its packed candidates stay in one row. An impression
        too large for a row is cut in order. None packs candidates singly.
      contexts: [N] tokens of each impression's context, which is stored once per row for its candidates there (once for
        each piece). None: nothing is shared.
      together: whether an impression that fits in a row is kept whole, and the pieces of a larger one are on
        consecutive rows, for a loss that compares its candidates. If not, impressions are cut where that gives fewer
        rows, although each piece repeats the context.

    Raises:
      ValueError: a candidate, with its context, does not have 1 to L tokens.
    """
    kept = np.arange(len(lengths)) if keep is None else np.flatnonzero(keep)
    lengths = np.asarray(lengths)[kept]
    firsts = np.arange(len(kept)) if impressions is None else np.searchsorted(kept, impressions[:-1])
    wholes = np.unique(np.append(firsts, len(kept)))
    # An impression without kept candidates has the same first as the next one: the last of equal firsts counts.
    head = np.zeros(len(wholes) - 1, np.int64)  # tokens of each unit's context
    if contexts is not None:
        head[np.searchsorted(wholes, firsts[firsts < len(kept)])] = np.asarray(contexts)[firsts < len(kept)]
    longest = lengths + np.repeat(head, np.diff(wholes))
    if len(kept) and not 1 <= longest.min() <= longest.max() <= tokens:
        raise ValueError(f"lengths from {longest.min()} to {longest.max()} cannot be packed in rows of {tokens} tokens")
    cuts = [tokens]
    if not together and impressions is not None:
        ends = np.concatenate([[0], np.cumsum(lengths)])
        largest = (np.diff(ends[wholes]) + head).max(initial=0)  # a limit that is not below it cuts nothing
        cuts += [cut for cut in (tokens // part for part in CUTS) if longest.max(initial=0) <= cut < largest]
    plans = [_pack(kept, lengths, wholes, head, cut, tokens, candidates, together) for cut in cuts]
    return min(plans, key=len)


def _pack(
    kept: np.ndarray,
    lengths: np.ndarray,
    wholes: np.ndarray,
    head: np.ndarray,
    cut: int,
    tokens: int,
    candidates: int,
    together: bool,
) -> Plan:
    """The plan in which impressions of more than `cut` tokens are cut into pieces of at most `cut`.

    `kept` [n] candidate numbers and their `lengths`, `wholes` [W + 1] the first candidate of each impression among them
    and `head` [W] the tokens of its context; others as in `plan_rows`.
    """
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    offsets, owner, head = _cut_large(wholes, ends, head, cut, candidates)
    splits = int(owner.max(initial=-1)) + 1
    if not together:
        owner = np.full_like(owner, -1)  # a piece is packed like any other unit
    pieces = np.flatnonzero(owner >= 0)

    length, count = np.diff(ends[offsets]) + head, np.diff(offsets)
    unit_class, classes = _classify(length, count, owner < 0)
    begun = [Shape(tokens - int(length[u]), candidates - int(count[u]), 1, ((int(unit_class[u]), 1),)) for u in pieces]
    place_class, row_units = _places(best_fit(classes, tokens, candidates, begun))
    place_order = np.argsort(place_class, kind="stable")
    row_offsets = np.concatenate([[0], np.cumsum(row_units)])

    row_block = splits + np.arange(len(row_units))
    piece_places = place_order[len(place_order) - len(pieces) :]  # pieces are the last classes, in their own order
    row_block[np.searchsorted(row_offsets, piece_places, side="right") - 1] = owner[pieces]
    return Plan(
        units=Ragged(kept, offsets),
        unit_class=unit_class,
        place_order=place_order,
        row_offsets=row_offsets,
        row_block=np.unique(row_block, return_inverse=True)[1],
        padding_share=1 - float(length.sum()) / max(1, len(row_units) * tokens),
        split_impressions=splits,
    )


def choose_candidates(
    lengths: np.ndarray, tokens: int, impressions: np.ndarray | None = None, contexts: np.ndarray | None = None
) -> int:
    """Candidate slots C of a row for `batch.candidates = 0`.

    Enough that nearly every row runs out of tokens before candidate slots, and that no impression is split for lack of
    candidate slots; above 4 a multiple of 4. Arguments as in `plan_rows`.
    """
    plan = plan_rows(lengths, tokens=tokens, candidates=tokens, impressions=impressions, contexts=contexts)
    if not len(plan):
        return 1
    enough = int(np.quantile(plan.in_order().lengths, TOKEN_BOUND_ROWS, method="higher"))
    if impressions is not None:
        enough = max(enough, int(plan.units.lengths.max()))
    return enough if enough <= 4 else -(-enough // 4) * 4


def _cut_large(
    wholes: np.ndarray, ends: np.ndarray, head: np.ndarray, tokens: int, candidates: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts units that are larger than a row into pieces, each as large as fits.

    `wholes` [W + 1]: first candidate of each unit; `ends` [n + 1]: tokens before each candidate; `head` [W]: tokens of
    each unit's context. Returns offsets [U + 1] of units and pieces, owner [U]: the cut unit (0, 1, ...) that a piece
    belongs to, -1 for a whole unit, and the tokens of each one's context [U].
    """
    large = np.flatnonzero((np.diff(ends[wholes]) + head > tokens) | (np.diff(wholes) > candidates))
    cuts = []
    for unit in large.tolist():
        first, last, space = int(wholes[unit]), int(wholes[unit + 1]), tokens - int(head[unit])
        while True:
            fitting = int(np.searchsorted(ends, ends[first] + space, side="right")) - 1
            first = min(first + candidates, fitting)
            if first >= last:
                break
            cuts.append(first)
    offsets = np.sort(np.concatenate([wholes, np.array(cuts, np.int64)]))
    rank = np.full(len(wholes), -1)
    rank[large] = np.arange(len(large))
    unit_of = np.searchsorted(wholes, offsets[:-1], side="right") - 1
    return offsets, rank[unit_of], head[unit_of]


def _classify(
    length: np.ndarray, count: np.ndarray, whole: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Class of each unit [U] int32, longest first, and (tokens, candidates, units) of each class.

    `length`, `count` [U]: tokens and candidates of each unit. Units that are not `whole` are left out of the classes
    and get the numbers after them, one each.
    """
    base = int(count.max(initial=0)) + 1
    keys, inverse, units = np.unique(length[whole] * base + count[whole], return_inverse=True, return_counts=True)
    unit_class = np.empty(len(length), np.int32)
    unit_class[whole] = len(keys) - 1 - inverse
    unit_class[~whole] = len(keys) + np.arange(len(length) - int(whole.sum()))
    columns = (keys[::-1] // base, keys[::-1] % base, units[::-1])
    return unit_class, list(zip(*(column.tolist() for column in columns), strict=True))


class Shape(NamedTuple):
    """Rows with the same content by class."""

    space: int
    """Token slots left in each."""
    slots: int
    """Candidate slots left in each."""
    rows: int
    """How many rows."""
    content: tuple[tuple[int, int], ...]
    """(class, units of it), in the order of packing."""

    def add(self, cls: int, units: int, length: int, count: int, rows: int) -> Shape:
        """`rows` of these rows after `units` units of a class, of `length` tokens and `count` candidates each."""
        return Shape(self.space - units * length, self.slots - units * count, rows, (*self.content, (cls, units)))


def best_fit(
    classes: list[tuple[int, int, int]], tokens: int, candidates: int, begun: Iterable[Shape] = ()
) -> list[Shape]:
    """Best-fit decreasing: each unit goes to the row with the least space in which it fits, else to a new row.

    `classes`: (tokens, candidates, units) from the longest to the shortest; `begun`: rows that hold something already.
    All units of a class are placed together: filling a row as far as possible is what best fit would do one by one.
    """
    rows = _OpenRows(tokens, begun)
    for cls, (length, count, units) in enumerate(classes):
        while units:
            shape = rows.pop_tightest(length, count) or Shape(tokens, candidates, units, ())
            each = min(shape.space // length, shape.slots // count)
            full = min(shape.rows, units // each)
            if full:
                rows.put(shape.add(cls, each, length, count, full))
                units -= full * each
            left = shape.rows - full
            if left and units:  # fewer than `each` are left: they share one row
                rows.put(shape.add(cls, units, length, count, 1))
                units, left = 0, left - 1
            if left and shape.content:
                rows.put(shape._replace(rows=left))
    return rows.all()


class _OpenRows:
    """Shapes by the space they have left. A bit mask of occupied spaces finds the tightest fit by bit operations."""

    def __init__(self, tokens: int, begun: Iterable[Shape]):
        self._stacks: list[list[Shape]] = [[] for _ in range(tokens + 1)]
        self._occupied = 0
        self._full: list[Shape] = []
        for shape in begun:
            self.put(shape)

    def put(self, shape: Shape) -> None:
        if not shape.slots:
            self._full.append(shape)
            return
        self._stacks[shape.space].append(shape)
        self._occupied |= 1 << shape.space

    def pop_tightest(self, length: int, count: int) -> Shape | None:
        """Removes and returns the shape with the least space for `length` tokens and `count` candidates.

        Only the latest shape of each space is considered, so candidate slots may be missed, never overfilled.
        """
        fits = self._occupied >> length << length
        while fits:
            space = (fits & -fits).bit_length() - 1
            stack = self._stacks[space]
            if stack[-1].slots >= count:
                shape = stack.pop()
                if not stack:
                    self._occupied ^= 1 << space
                return shape
            fits &= fits - 1
        return None

    def all(self) -> list[Shape]:
        return [shape for stack in (self._full, *self._stacks) for shape in stack]


def _places(shapes: list[Shape]) -> tuple[np.ndarray, np.ndarray]:
    """The class of every place [U] int64, row after row, and the units of every row [rows] int64."""
    empty = np.zeros(0, np.int64)
    one_row = [np.repeat(*np.array(shape.content, np.int64).T) for shape in shapes]
    classes = [np.tile(row, shape.rows) for row, shape in zip(one_row, shapes, strict=True)]
    units = [np.full(shape.rows, len(row)) for row, shape in zip(one_row, shapes, strict=True)]
    return np.concatenate([empty, *classes]), np.concatenate([empty, *units])


class RowStream:
    """The rows of epoch 0, 1, 2, ... one after another, up to row `end`; any of them is addressed by its index.

    Thread-safe; a copy in another process gives the same rows.
    """

    def __init__(self, plan: Plan, end: int, seed: int | None):
        """`seed` None: rows are not shuffled."""
        self.plan, self.end, self.seed = plan, end, seed
        self._epochs: dict[int, Ragged] = {}
        self._lock = threading.Lock()

    def __reduce__(self):
        return RowStream, (self.plan, self.end, self.seed)

    def take(self, rows: np.ndarray) -> Ragged:
        """Candidate numbers of these rows (increasing numbers, [n]), [n] ragged int64; from `end` on rows are empty."""
        within = np.where(rows < self.end, rows % len(self.plan), -1)
        epochs = rows // len(self.plan)
        parts = [self._epoch(int(epoch)).take(within[epochs == epoch]) for epoch in np.unique(epochs)]
        return Ragged.from_lengths(
            np.concatenate([part.values for part in parts]), np.concatenate([part.lengths for part in parts])
        )

    def _epoch(self, epoch: int) -> Ragged:
        with self._lock:
            if epoch not in self._epochs:
                while len(self._epochs) >= EPOCHS_KEPT:
                    del self._epochs[next(iter(self._epochs))]
                ordered = self.plan.in_order() if self.seed is None else self.plan.epoch(self.seed, epoch)
                self._epochs[epoch] = ordered
            return self._epochs[epoch]
