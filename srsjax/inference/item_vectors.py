"""Vectors of towers: of all items of a catalogue, kept in a folder and only computed where new; and of contexts.

With the head's scales taken into the context's side (`heads.ProductHead.pairs`), the logit of output k is an inner
product for `model.product cosine` and `bilinear` alike, whatever features join the texts:

    logit_k(context, item) = query_k(context) . vector(item) + bias_k
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srsjax.compilation import compiler_options
from srsjax.config import Feature
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.contexts import items_alone
from srsjax.data.batches.layout import BatchShape
from srsjax.data.kind import ArrayKind
from srsjax.data.kinds import of_kind
from srsjax.data.preparing.sources import Sources
from srsjax.data.store.arrays import Items, Split
from srsjax.errors import InputError
from srsjax.files import atomic_folder, write_json
from srsjax.inference.fingerprint import HASH_BYTES, find_hashes, item_hashes, take_items
from srsjax.model import ctr
from srsjax.model.attention_choice import NONE
from srsjax.model.spec import ModelSpec
from srsjax.runs.evaluation import predict_split
from srsjax.runs.session import Session
from srsjax.runs.shapes import request_shapes
from srsjax.runs.sharding import ROWS, put_batch

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
"""Of stored vectors; scores of bfloat16 ones are off by 2^-9 of each product."""
MANIFEST, VECTORS, HASHES = "vectors.json", "vectors.npy", "hashes.npy"


@dataclass(frozen=True)
class ItemVectors:
    """The vectors of the items of a catalogue, in its order."""

    vectors: np.ndarray
    """[V, D] float32 or bfloat16; memory-mapped where they were read from a folder."""
    hashes: np.ndarray
    """[V, 16] uint8, of the contents of each item (`fingerprint.item_hashes`); [0, 16] where none are kept."""
    fingerprint: str
    """Of the model that computed them (`fingerprint.model_fingerprint`); empty where none are kept."""
    computed: int = 0
    """How many items had to be computed; the others were in the folder."""

    def save(self, folder: str | Path) -> None:
        """Writes the folder whole, in the place of an earlier one of this kind."""
        folder = Path(folder)
        check_replaceable(folder / MANIFEST, "item vectors")
        about = {"fingerprint": self.fingerprint, "dtype": str(self.vectors.dtype), "items": len(self.vectors)}
        with atomic_folder(folder, exists="replace") as partial_folder:
            np.save(partial_folder / VECTORS, as_plain(self.vectors))
            np.save(partial_folder / HASHES, self.hashes)
            write_json(partial_folder / MANIFEST, about)

    @classmethod
    def load(cls, folder: str | Path, fingerprint: str) -> ItemVectors:
        """Opens a folder memory-mapped.

        Raises InputError where it is not one that `save` wrote, or its vectors are those of another model.
        """
        folder = Path(folder)
        about = read_manifest(folder / MANIFEST, "item vectors", fingerprint)
        vectors = np.load(folder / VECTORS, mmap_mode="r").view(DTYPES[about["dtype"]])
        return cls(vectors, np.load(folder / HASHES, mmap_mode="r"), fingerprint)


def as_plain(array: np.ndarray) -> np.ndarray:
    """bfloat16 as the uint16 of its bits, which `np.save` knows; other arrays as they are."""
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


def check_replaceable(file: Path, what: str) -> None:
    """Raises InputError where the folder of this manifest is there and holds other files."""
    folder = file.parent
    if folder.exists() and not file.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: holds other files, expected a folder of {what} or a new name")


def read_manifest(file: Path, what: str, fingerprint: str) -> dict:
    """The JSON beside stored arrays. Raises InputError where it is missing, broken, or that of another model."""
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        found = about["fingerprint"]
    except FileNotFoundError:
        raise InputError(f"{file.parent}: no {file.name}, expected a folder of {what}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); delete the folder and compute them again") from None
    if found != fingerprint:
        raise InputError(
            f"{file.parent}: found {what} of model {found[:12]}, expected those of model {fingerprint[:12]}; another "
            "checkpoint computed them: delete the folder or name another one"
        )
    return about


class Towers:
    """What computes the vectors of both sides of a model, jitted."""

    def __init__(self, session: Session, params: dict[str, jax.Array], shape: BatchShape, sources: Sources):
        """Raises InputError where the two sides of the model have no vectors of their own."""
        check_towers(session.spec, sources)
        self.session, self.params, self.schema = session, params, sources.schema
        alone = shape.layout.alone() if session.spec.reads_text else shape.layout
        width, count = session.shapes["head/dense/kernel"].shape
        self.width, self.count = width, count
        self.item_shape = replace(shape, layout=alone, outputs=width)
        self.query_shape = replace(shape, outputs=width * count)
        self.shapes = request_shapes(shape, session.mesh, session.attention.name in (NONE.name, "xla"))
        self._item_step, self._query_step = self._jit(_item_vectors), self._jit(_queries)

    def items(self, items: Items) -> np.ndarray:
        """The vector of each item, [V, D] float32."""
        split = items_alone(items)
        contexts, own = self.schema.context, _absent(self.schema.candidate, items)
        split = replace(split, context_features=zeros(contexts, len(split)), candidate_features=zeros(own, len(split)))
        return self._run(self._item_step, split, items, self.item_shape)

    def queries(self, contexts: Split) -> np.ndarray:
        """The query of each output of each context, [N, K, D] float32; `contexts` as `encode_contexts` makes
        them, with one empty candidate each."""
        features = zeros(self.schema.candidate, 1)
        items = Items(contexts.context.take(np.full(1, -1)), features)
        made = self._run(self._query_step, contexts, items, self.query_shape)
        return made.reshape(len(made), self.count, self.width)

    def warm_up(self, batch: PackedBatch) -> None:
        """Compiles the program of queries for batches of this shape."""
        jax.block_until_ready(self._query_step(self.params, put_batch(self.session.mesh, batch, row_axis=0)))

    @property
    def bias(self) -> np.ndarray:
        """[K] float32, added to the inner products."""
        return np.asarray(self.params["head/dense/bias"])

    def computed(self, items: Items, dtype: str) -> ItemVectors:
        """The vectors of all items, for no folder."""
        none = np.zeros((0, HASH_BYTES), np.uint8)
        return ItemVectors(self.items(items).astype(DTYPES[dtype]), none, "", len(items.tokens))

    def stored(self, items: Items, fingerprint: str, dtype: str, known: ItemVectors | None) -> ItemVectors:
        """The vectors of all items, computed where `known` has none of the same contents and dtype."""
        hashes = item_hashes(items)
        if known is None or known.vectors.dtype != DTYPES[dtype]:
            known = ItemVectors(np.zeros((0, self.width), DTYPES[dtype]), hashes[:0], fingerprint)
        if np.array_equal(hashes, known.hashes):
            return known
        row = find_hashes(hashes, known.hashes)
        new = np.flatnonzero(row < 0)
        vectors = np.empty((len(hashes), self.width), DTYPES[dtype])
        vectors[row >= 0] = known.vectors[row[row >= 0]]
        if len(new):
            vectors[new] = self.items(take_items(items, new)).astype(DTYPES[dtype])
        return ItemVectors(vectors, hashes, fingerprint, len(new))

    def _run(self, step: Callable, split: Split, items: Items, shape: BatchShape) -> np.ndarray:
        if not len(split):
            return np.zeros((0, shape.outputs), np.float32)
        return predict_split(step, self.params, split, items, shape, self.session.mesh, shapes=self.shapes)

    def _jit(self, function: Callable) -> Callable:
        mesh = self.session.mesh
        return jax.jit(
            partial(function, self.session.graphdef),
            in_shardings=(self.session.shardings, NamedSharding(mesh, P(ROWS))),
            out_shardings=NamedSharding(mesh, P()),
            compiler_options=compiler_options(mesh),
        )


def _item_vectors(graphdef, params, batch):
    """[R, C, D] float32."""
    return ctr.forward_pairs(graphdef, params, batch)[1].items


def _queries(graphdef, params, batch):
    """[R, C, K * D] float32."""
    queries = ctr.forward_pairs(graphdef, params, batch)[1].queries
    return queries.reshape(*queries.shape[:2], -1)


def check_towers(spec: ModelSpec, sources: Sources) -> None:
    """Raises InputError where a logit is not the product of a vector of the context and one of the item."""
    if not spec.interaction.reads_context:
        raise InputError(
            f"model.interaction: found {spec.interaction.name!r}, expected towers: in the others a candidate has no "
            "vector of its own that any context could meet"
        )
    for feature in spec.features:
        if feature.side == "context" and feature.pooling == "attention" and feature.like:
            raise InputError(
                f"schema.context: {feature.name!r} is pooled by attention to each candidate, so that a context has no "
                "vector of its own; expected pooling mean or transformer"
            )


def check_catalogue(spec: ModelSpec, sources: Sources) -> None:
    """Raises InputError where the items are not the rows of a catalogue, with all that the model reads of them."""
    if not sources.home:
        raise InputError(
            "schema.candidate: its features are not those of one catalogue, expected a catalogue of items to retrieve "
            "from; give items to `recommend` or `rank` instead"
        )
    read = {feature.name for feature in spec.features if feature.fixed is None and feature.side == "candidate"}
    for feature in sources.schema.candidate:
        if feature.name in read and sources.column(feature).table != sources.home:
            raise InputError(
                f"schema.candidate: {feature.name!r} is not a column of catalogue {sources.home!r}, so that its items "
                "alone have no value of it; make it a feature of the catalogue or of the context, or give items"
            )


def _absent(features: Sequence[Feature], items: Items) -> list[Feature]:
    """Candidate features that items do not bring: those of the log, which `check_catalogue` found unread."""
    return [kind.feature for kind in of_kind(features, ArrayKind) if kind.feature.name not in items.features]


def zeros(features: Sequence[Feature], rows: int) -> dict[str, np.ndarray]:
    """Arrays of features that nothing reads, [rows, ...] by name."""
    return {
        kind.feature.name: np.zeros((rows, *kind.row_shape), kind.dtype) for kind in of_kind(tuple(features), ArrayKind)
    }
