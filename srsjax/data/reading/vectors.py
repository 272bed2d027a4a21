"""Vectors that stand in files of their own: rows of a `.npy` file, a folder of `.npy` files, or a folder of pictures
that an image encoder reads once."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srsjax.data.reading.files import with_variables
from srsjax.errors import InputError
from srsjax.files import atomic_folder, write_json

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
AT_ONCE = 32
"""Pictures that the encoder reads at a time."""
_encoding = threading.Lock()


@dataclass(frozen=True)
class Place:
    """Where the vectors of a feature are."""

    files: str
    """`Vector.files`."""
    encoder: str = ""
    """`Vector.encoder`."""
    kept: str = ""
    """Folder below which the vectors of pictures are kept."""

    @property
    def path(self) -> Path:
        """`files` with environment variables replaced. Raises InputError where there is nothing, or a variable is not
        set."""
        path = Path(with_variables(self.files))
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; the working folder is {os.getcwd()}")
        return path

    def describe(self) -> dict[str, str]:
        """What the vectors depend on: names, sizes and times of the files, and the encoder."""
        digest, path = hashlib.sha256(), self.path
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                stat = file.stat()
                name = file.relative_to(path) if path.is_dir() else file.name
                digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return {"files": digest.hexdigest(), "encoder": self.encoder}


class VectorFiles(ABC):
    """Vectors by what a column says."""

    expected: str
    """What the column holds."""

    @abstractmethod
    def find(self, key: str) -> np.ndarray | None:
        """The vector of a key, [size]; None where there is none. Raises ValueError for what is no key."""

    def read(self, keys: pa.Array, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[n, size] float32 (0 where missing), and [n] bool where there is none and where the key is none.

        Raises InputError for a vector of another length, or one that is not finite.
        """
        keys = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
        coded = pc.dictionary_encode(keys)
        names = coded.dictionary.to_pylist()
        found = np.zeros((len(names) + 1, size), np.float32)
        missing, bad = np.ones(len(names) + 1, bool), np.zeros(len(names) + 1, bool)
        for number, name in enumerate(names):
            try:
                vector = self.find(name)
            except ValueError:
                bad[number] = True
                continue
            if vector is None:
                continue
            vector = np.asarray(vector, np.float32).ravel()
            if len(vector) != size or not np.isfinite(vector).all():
                what = f"{len(vector)} numbers" if len(vector) != size else "a number that is not finite"
                raise InputError(f"vector {name!r}: found {what}, expected {size} finite numbers")
            found[number], missing[number] = vector, False
        at = pc.fill_null(coded.indices, len(names)).to_numpy(zero_copy_only=False)
        return found[at], missing[at], bad[at]


class Rows(VectorFiles):
    """The rows of one array, memory-mapped."""

    def __init__(self, path: Path):
        self.array = load_array(path)
        if self.array.ndim != 2:
            raise InputError(f"{path}: found an array of shape {self.array.shape}, expected [rows, size]")
        self.expected = f"a row of {path.name}, 0 to {len(self.array) - 1}"

    def find(self, key: str) -> np.ndarray | None:
        """The row of a number from 0."""
        number = int(key)
        if not 0 <= number < len(self.array):
            raise ValueError(key)
        return self.array[number]


class Folder(VectorFiles):
    """A `.npy` file for each key, with its ending or without."""

    def __init__(self, path: Path):
        self.path, self.expected = path, f"the name of a file within {path}"

    def find(self, key: str) -> np.ndarray | None:
        """The file of that name."""
        if Path(key).is_absolute() or ".." in Path(key).parts:
            raise ValueError(key)
        file = self.path / (key if key.endswith(".npy") else f"{key}.npy")
        return load_array(file) if file.is_file() else None


class Encoded(VectorFiles):
    """What an encoder made of pictures, by file name, with its ending or without."""

    def __init__(self, folder: Path, expected: str):
        self.array, self.expected = load_array(folder / "vectors.npy"), expected
        names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
        self.row = {os.path.splitext(name)[0]: number for number, name in enumerate(names)}
        self.row |= {name: number for number, name in enumerate(names)}

    def find(self, key: str) -> np.ndarray | None:
        """The picture of that name."""
        row = self.row.get(key)
        return None if row is None else self.array[row]


@functools.lru_cache(maxsize=64)
def open_vectors(place: Place) -> VectorFiles:
    """The vectors at a place; pictures are encoded first, if they have not been.

    Raises InputError where there are none, or the encoder cannot be loaded.
    """
    path = place.path
    if path.is_file():
        return Rows(path)
    if not place.encoder:
        return Folder(path)
    described = json.dumps(place.describe(), sort_keys=True)
    folder = Path(place.kept) / "pictures" / hashlib.sha256(described.encode()).hexdigest()[:12]
    with _encoding:  # threads that read a log would each run the encoder
        if not (folder / "names.json").exists():
            _keep_encoded(path, place.encoder, folder)
    return Encoded(folder, f"the name of a picture within {path}")


def _keep_encoded(path: Path, encoder: str, folder: Path) -> None:
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.suffix.lower() in PICTURES)
    if not names:
        raise InputError(f"{path}: no pictures, expected files that end in {', '.join(PICTURES)}")
    with atomic_folder(folder, exists="keep") as partial:
        kept, vectors = zip(*encode_pictures(path, names, encoder), strict=True)
        np.save(partial / "vectors.npy", np.stack(vectors))
        write_json(partial / "names.json", kept)


def load_array(path: Path) -> np.ndarray:
    """A `.npy` file of numbers, memory-mapped. Raises InputError where it is none."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: not a .npy file of numbers ({error})") from None


def encode_pictures(
    folder: Path, names: list[str], encoder: str, say: Callable[[str], None] = print
) -> Iterator[tuple[str, np.ndarray]]:
    """The vectors [size] float32 of pictures by a Hugging Face image encoder, on a GPU where PyTorch has one.

    The vector is `get_image_features` of a model of texts and images (CLIP, SigLIP), else the pooled output, else the
    mean over all patches. A file that is no picture is left out, and said. Raises InputError without torch and Pillow,
    and where the encoder cannot be loaded.
    """
    try:
        import torch
        from PIL import Image, UnidentifiedImageError
        from transformers import AutoImageProcessor, AutoModel
    except ImportError as error:
        raise InputError(f"encoder {encoder!r}: {error}; pip install 'srsjax[images]'") from None
    try:
        processor = AutoImageProcessor.from_pretrained(encoder)
        model: Any = AutoModel.from_pretrained(encoder).eval()
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise InputError(f"encoder {encoder!r}: not an image encoder that transformers can load ({said})") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, lost, made = model.to(device), 0, 0
    for start in range(0, len(names), AT_ONCE):
        read = []
        for name in names[start : start + AT_ONCE]:
            try:
                with Image.open(folder / name) as picture:
                    read.append((name, picture.convert("RGB")))
            except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
                lost += 1
        if read:
            inputs = processor(images=[picture for _, picture in read], return_tensors="pt").to(device)
            with torch.inference_mode():
                vectors = _vectors_of(model, inputs)
            made += len(read)
            yield from zip([name for name, _ in read], vectors.float().cpu().numpy(), strict=True)
    if not made:
        raise InputError(f"{folder}: none of {len(names):,} files can be read as a picture")
    say(f"{folder}: {made:,} pictures encoded by {encoder}" + f", {lost:,} could not be read" * bool(lost))


def _vectors_of(model: Any, inputs: Any) -> Any:
    if hasattr(model, "get_image_features"):
        found = model.get_image_features(**inputs)
        return getattr(found, "pooler_output", found)
    found = model(**inputs)
    pooled = getattr(found, "pooler_output", None)
    return found.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)
