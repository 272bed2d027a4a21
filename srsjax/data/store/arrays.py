"""The token store: what `prepare` writes and everything after it reads. Integers and floats only.

    store/
      manifest.json                       schema, counts, label rates, lengths, fingerprints (`manifest`)
      tokenizer/                          a Hugging Face tokenizer folder
      items/tokens.values, .offsets       distinct candidate texts, already cut and joined, [V] ragged int32
      items/features/NAME.npy             candidate features of the catalogue, [V, ...]
      train/ valid/ test/                 one folder per split, the fields of `Split` below

Arrays are plain `.npy` files opened memory-mapped, so a store larger than memory costs only the pages that are
read, any impression is addressed by its index, and several processes share one copy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from srsjax.data.store.ragged import Ragged, spans
from srsjax.errors import InputError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Items:
    """Candidate texts and features that many candidates share: one row per catalogue item (or distinct text)."""

    tokens: Ragged
    """Token ids without special tokens, [V] ragged int32."""
    features: dict[str, np.ndarray] = field(default_factory=dict)
    """Categorical int32 [V], numeric float32 [V], vector float32 [V, size]."""


@dataclass(frozen=True)
class Split:
    """N impressions with M candidates altogether; impression i has candidates `candidates[i]:candidates[i + 1]`."""

    context: Ragged
    """Context token ids without special tokens, [N] ragged int32 (all context fields and histories, cut and joined)."""
    candidates: np.ndarray
    """[N + 1] int64, first candidate of each impression."""
    item: np.ndarray
    """[M] int64, row of `Items` that holds the candidate's text and shared features."""
    labels: np.ndarray
    """[M, T] float32; 0 where unknown."""
    weights: np.ndarray
    """[M, T] float32 >= 0; 0 = unknown label."""
    example: np.ndarray
    """[M] int64, index of the candidate in the input (0, 1, ... over all log rows, exploded)."""
    user: np.ndarray
    """[N] int64, id of the GAUC user (hash of `data.user`); the impression's index where `data.user` is empty."""
    oracle: np.ndarray | None = None
    """[M] float32, the known probability of the first task, where `data.oracle` names a column."""
    context_features: dict[str, np.ndarray] = field(default_factory=dict)
    """Categorical int32 [N], numeric float32 [N], vector float32 [N, size]."""
    candidate_features: dict[str, np.ndarray] = field(default_factory=dict)
    """The same per candidate, [M, ...], for features that are columns of the log."""

    def __len__(self) -> int:
        return len(self.candidates) - 1

    def take(self, impressions: np.ndarray) -> Split:
        """Some impressions [n] with their candidates, in this order, in memory."""
        starts, lengths = self.candidates[impressions], np.diff(self.candidates)[impressions]
        rows = spans(starts, lengths)
        return Split(
            context=self.context.take(impressions),
            candidates=np.concatenate([[0], np.cumsum(lengths)]),
            item=self.item[rows],
            labels=self.labels[rows],
            weights=self.weights[rows],
            example=self.example[rows],
            user=self.user[impressions],
            oracle=None if self.oracle is None else self.oracle[rows],
            context_features={name: values[impressions] for name, values in self.context_features.items()},
            candidate_features={name: values[rows] for name, values in self.candidate_features.items()},
        )

    @property
    def impression(self) -> np.ndarray:
        """[M] int64, the impression of each candidate."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.candidates))


@dataclass(frozen=True)
class Store:
    """An opened store."""

    folder: Path
    manifest: dict
    items: Items

    def split(self, name: str) -> Split:
        """Opens a split memory-mapped. Raises InputError if the store has no such split."""
        folder = self.folder / name
        if not (folder / "candidates.npy").exists():
            raise InputError(f"{self.folder}: no split {name!r}, expected one of {', '.join(SPLITS)}")
        arrays = {
            key: _load(folder / f"{key}.npy") for key in ("candidates", "item", "labels", "weights", "example", "user")
        }
        oracle = _load(folder / "oracle.npy") if (folder / "oracle.npy").exists() else None
        return Split(
            context=load_ragged(folder / "context"),
            oracle=oracle,
            context_features=_load_features(folder / "context_features"),
            candidate_features=_load_features(folder / "candidate_features"),
            **arrays,
        )


def open_store(folder: str | Path) -> Store:
    """Opens a prepared store. Raises InputError if there is none."""
    folder = Path(folder)
    if not (folder / "manifest.json").exists():
        raise InputError(f"{folder}: no manifest.json, expected a prepared store; run python -m srsjax.prepare")
    items = Items(load_ragged(folder / "items" / "tokens"), _load_features(folder / "items" / "features"))
    return Store(folder, json.loads((folder / "manifest.json").read_text()), items)


def load_ragged(stem: Path) -> Ragged:
    """`stem.values.npy` and `stem.offsets.npy`, memory-mapped."""
    return Ragged(_load(stem.with_name(stem.name + ".values.npy")), _load(stem.with_name(stem.name + ".offsets.npy")))


def _load(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _load_features(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: _load(path) for path in sorted(folder.glob("*.npy"))}


class ArrayWriter:
    """Appends rows to a `.npy` file on disk without keeping them in memory: the header is rewritten at the end."""

    # A header of this size has room for any row count, so that closing only rewrites it in place.
    HEADER = 128

    def __init__(self, path: Path, dtype, row_shape: tuple[int, ...] = ()):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "wb")  # noqa: SIM115 (closed in `close`)
        self._file.write(b"\0" * self.HEADER)
        self.dtype, self.row_shape, self.rows = np.dtype(dtype), row_shape, 0

    def append(self, rows: np.ndarray) -> None:
        """Appends `rows` [n, *row_shape], cast to the file's dtype."""
        rows = np.ascontiguousarray(rows, self.dtype).reshape(-1, *self.row_shape)
        rows.tofile(self._file)
        self.rows += len(rows)

    def close(self) -> None:
        """Writes the header (format 1.0 of numpy.lib.format, padded to `HEADER` bytes) and closes the file."""
        shape = (self.rows, *self.row_shape)
        text = repr({"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape})
        body = text.encode("latin1").ljust(self.HEADER - 11) + b"\n"
        self._file.seek(0)
        self._file.write(np.lib.format.magic(1, 0) + len(body).to_bytes(2, "little") + body)
        self._file.close()


class RaggedWriter:
    """Appends ragged rows to `stem.values.npy` and `stem.offsets.npy`."""

    def __init__(self, stem: Path, dtype=np.int32):
        self._values = ArrayWriter(stem.with_name(stem.name + ".values.npy"), dtype)
        self._offsets = ArrayWriter(stem.with_name(stem.name + ".offsets.npy"), np.int64)
        self._offsets.append(np.zeros(1, np.int64))

    def append(self, rows: Ragged) -> None:
        """Appends the rows of `rows`."""
        self._offsets.append(rows.offsets[1:] - rows.offsets[0] + self._values.rows)
        self._values.append(rows.values[rows.offsets[0] : rows.offsets[-1]])

    def close(self) -> None:
        """Closes both files."""
        self._values.close()
        self._offsets.close()
