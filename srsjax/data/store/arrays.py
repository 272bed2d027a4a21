"""The token store: what `prepare` writes and everything after it reads. Integers and floats only.

    store/
      manifest.json                       schema, counts, label rates, lengths, fingerprints (`manifest`), and the
                                          checksums of all other files (`checksums`)
      tokenizer/                          a Hugging Face tokenizer folder
      items/tokens.values, .offsets       distinct candidate texts, already cut and joined, [V] ragged int32
      items/features/NAME.npy             candidate features of the catalogue, [V, ...]
      train/ valid/ test/                 one folder per split, the fields of `Split` below

Arrays are plain `.npy` files opened memory-mapped, so a store larger than memory costs only the pages that are
read, any impression is addressed by its index, and several processes share one copy. Only the files that the manifest
names are read, and none that is not as it was written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from srsjax.data.store.checksums import SEAL, Checks, are_checksums, is_sealed, of_file, sealed
from srsjax.data.store.ragged import Ragged, spans
from srsjax.errors import InputError
from srsjax.files import write_json

SPLITS = ("train", "valid", "test")
FILES = "files"
"""Key of the manifest: the checksum of every other file of the store, by its path in the folder."""
PARTS = ("tokenizer/*", "items/**/*.npy", *(f"{name}/**/*.npy" for name in SPLITS))
"""The files that have checksums."""
ARRAYS = ("candidates", "item", "labels", "weights", "example", "user")


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
    checks: Checks | None = None
    """What reads the files behind it, where there are any; who has read the arrays asks it (`Checks.wait`)."""

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
            checks=self.checks,
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
    checks: Checks

    def split(self, name: str) -> Split:
        """Opens a split memory-mapped. Raises InputError if the store has no such split, or a file of it is missing or
        damaged."""
        if not any(file.startswith(f"{name}/") for file in self.checks.files):
            raise InputError(f"{self.folder}: no split {name!r}, expected one of {', '.join(SPLITS)}")
        files = _Files(self.checks, name)
        return Split(
            context=files.ragged("context"),
            oracle=files.optional("oracle"),
            context_features=files.arrays("context_features"),
            candidate_features=files.arrays("candidate_features"),
            checks=self.checks,
            **{key: files.array(key) for key in ARRAYS},
        )

    @property
    def final_split(self) -> str:
        """The split that a run is judged by: `test`, or `valid` where no row is in it."""
        return "test" if len(self.split("test")) else "valid"


def open_store(folder: str | Path, fingerprint: str = "") -> Store:
    """Opens a prepared store. `fingerprint` is the one that its manifest must have, where that is known.

    Raises InputError if there is none, and for files that are missing or damaged; of large ones, which are read in the
    background, `Store.checks` does so.
    """
    folder = Path(folder)
    manifest, advice = read_manifest(folder), _advice(folder)
    if FILES not in manifest:
        raise InputError(f"{folder / 'manifest.json'}: found no checksums, expected those of a store{advice}")
    if fingerprint and (found := manifest.get("fingerprint")) != fingerprint:
        raise InputError(f"{folder / 'manifest.json'}: found that of store {found}, expected {fingerprint}{advice}")
    checks = Checks(folder, manifest[FILES], advice)
    checks.begin(name for name in checks.files if name.startswith("tokenizer/"))
    for file in (folder / "tokenizer").glob("*"):
        if f"tokenizer/{file.name}" not in checks.files:  # it may change what the tokenizer is
            raise InputError(f"{file}: found a file that the store did not have; delete it")
    files = _Files(checks, "items")
    return Store(folder, manifest, Items(files.ragged("tokens"), files.arrays("features")), checks)


def has_checksums(folder: Path) -> bool:
    """Whether a store has checksums; those prepared by the first versions have none. Raises as `read_manifest`."""
    return FILES in read_manifest(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store. Raises InputError if there is none, or one that is not as it was written."""
    path = folder / "manifest.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no manifest.json, expected a prepared store; run python -m srsjax.prepare"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not JSON ({error}){_advice(folder)}") from None
    if not isinstance(found, dict) or ((FILES in found or SEAL in found) and not is_sealed(found)):
        raise InputError(f"{path}: damaged: found other contents than its checksum is of{_advice(folder)}")
    if not are_checksums(found.get(FILES, {})):
        raise InputError(f"{path}: found other data than checksums under {FILES!r}{_advice(folder)}")
    return found


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest of a store whose other files are complete, with their checksums unless it has them."""
    if FILES not in manifest:
        paths = sorted(path for part in PARTS for path in folder.glob(part))
        manifest = manifest | {FILES: {path.relative_to(folder).as_posix(): of_file(path) for path in paths}}
    write_json(folder / "manifest.json", sealed(manifest))


def _advice(folder: Path) -> str:
    return f"; delete {folder}, and it is prepared again"


class _Files:
    """The arrays in one part of a store (`items`, a split): those that the manifest names, checked, memory-mapped."""

    def __init__(self, checks: Checks, part: str):
        self._folder = checks.folder / part
        self._names = {name.removeprefix(f"{part}/") for name in checks.files if name.startswith(f"{part}/")}
        checks.begin(f"{part}/{name}" for name in sorted(self._names))

    def array(self, name: str) -> np.ndarray:
        """One array. Raises InputError where the store was prepared without it."""
        if f"{name}.npy" not in self._names:
            raise InputError(f"{self._folder / name}.npy: not in the manifest of the store, expected it there")
        return np.load(self._folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def optional(self, name: str) -> np.ndarray | None:
        """One array, None where the store was prepared without it."""
        return self.array(name) if f"{name}.npy" in self._names else None

    def ragged(self, name: str) -> Ragged:
        """`name.values.npy` and `name.offsets.npy`."""
        return Ragged(self.array(f"{name}.values"), self.array(f"{name}.offsets"))

    def arrays(self, folder: str) -> dict[str, np.ndarray]:
        """All arrays in a folder by name; {} where the store was prepared without any."""
        names = sorted(name for name in self._names if name.startswith(f"{folder}/"))
        stems = [name.removeprefix(f"{folder}/").removesuffix(".npy") for name in names]
        return {stem: self.array(f"{folder}/{stem}") for stem in stems}


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
