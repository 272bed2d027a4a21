"""Retrieval with a run of towers: all items of its catalogue, their vectors on the devices, the best for a context."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from srsjax import distributed
from srsjax.data.batches.layout import BatchShape
from srsjax.data.preparing.encode import Encoder
from srsjax.data.preparing.one_side import encode_contexts
from srsjax.data.preparing.values import Value
from srsjax.errors import InputError
from srsjax.inference.catalogue_items import CatalogueItems, warn_unknown
from srsjax.inference.fingerprint import model_fingerprint
from srsjax.inference.item_vectors import DTYPES, ItemVectors, Towers, check_catalogue
from srsjax.inference.retrieval import ExactIndex
from srsjax.runs.session import Session


class Retriever:
    """Towers with the vectors of a catalogue. Safe to call from several threads, but for `store`."""

    def __init__(self, session: Session, params: dict[str, jax.Array], encoder: Encoder, shape: BatchShape):
        """Raises InputError for a model without vectors of its sides."""
        self.towers = Towers(session, params, shape, encoder.sources)
        self.session, self.params, self.encoder, self.shape = session, params, encoder, shape
        self._lock = threading.RLock()
        self.vectors: ItemVectors | None = None
        """Those of the catalogue's items, once `store` has computed them."""
        self.index: Any = None
        """What `search` asks: an `ExactIndex`, or an approximate one (`ann.AnnIndex`)."""

    def store(self, folder: str | Path | None = None, dtype: str = "float32") -> ItemVectors:
        """Computes the vectors of all items that `folder` does not have, keeps the folder up to date, and puts the
        vectors on the devices. See `Scorer.item_vectors`."""
        if dtype not in DTYPES:
            raise InputError(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
        check_catalogue(self.session.spec, self.encoder.sources)
        items = CatalogueItems(self.encoder).items
        if folder is None:
            made = self.towers.computed(items, dtype)
        else:
            fingerprint = model_fingerprint(self.session, self.params, self.shape.layout)
            known = ItemVectors.load(folder, fingerprint) if Path(folder).exists() else None
            made = self.towers.stored(items, fingerprint, dtype, known)
            if made is not known:
                distributed.on_first(lambda: made.save(folder))
        with self._lock:
            self.index = ExactIndex(made.vectors, self.session.mesh)
            self.vectors = made  # last: `stored` asks for it without the lock
        return made

    def stored(self) -> ItemVectors:
        """The vectors, computed in float32 at the first call unless `store` was called."""
        if self.vectors is None:
            with self._lock:
                return self.vectors or self.store()
        return self.vectors

    def queries(self, contexts: Sequence[Value], output: int) -> np.ndarray:
        """[N, D] float32, of one output."""
        encoded = encode_contexts(self.encoder, contexts)
        warn_unknown(encoded.unknown, stacklevel=4)
        return self.towers.queries(encoded.split)[:, output]

    def search(self, queries: np.ndarray, output: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The logits [N, k] float32 of the best items and their rows, best first; -1 for a row and -inf for a logit
        where an approximate index found fewer."""
        self.stored()
        scores, rows = self.index.search(queries, k)
        return scores + self.towers.bias[output], rows
